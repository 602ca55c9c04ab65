"""What a repo's owner wishes, and why nothing is to be told there at all, whatever the Hub has. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from bot.intake.repo_config import RepoConfig, with_known
from bot.publish.manners import Decision
from bot.publish.section import no_quality, rows_for
from bot.settings import Settings
from bot.store.repos import Repo
from core.dataset import DatasetRow


def wishes_of(repo: Repo, settings: Settings, rows: Sequence[DatasetRow]) -> RepoConfig:
    """A repo's ``.quantcard.yml``, held against the protocols that there are.

    Raises:
        SettingsError: the operator's protocols can't be read.
    """
    config = RepoConfig.from_json(repo.config)
    if not config.protocols:
        return config
    # The one in force may be a variation with a name of its own.
    return with_known(config, [*dict.fromkeys([*settings.known_protocols(), *(row.protocol_name for row in rows)])])


def refusal(repo: Repo, config: RepoConfig, rows: Sequence[DatasetRow], *, settled: bool) -> Decision | None:
    """Why nothing is to be told in a repo, or None.

    Args:
        rows: of its current variants, of whatever protocol.
        settled: whether all of its measurements have ended.
    """
    if repo.stopped is not None:
        return Decision("nothing", f"{repo.stopped} told us to stop; '/quantcard remeasure' calls us back.")
    if repo.state not in ("live", "gated"):
        return Decision("nothing", repo.note or f"The repo is {repo.state}.")
    if not config.enabled:
        return Decision("nothing", config.problem or "The repo's .quantcard.yml says no.")
    if not settled:
        return Decision("wait", "Its measurements have not ended yet.")
    wanted = rows_for(rows, config)
    if rows and not wanted:
        return Decision("nothing", f"The repo's .quantcard.yml wants figures of {', '.join(config.protocols)} only.")
    quants = [row for row in wanted if not row.is_reference]
    if not quants:
        return Decision("nothing", "There is no quantized file in the repo.")
    if not any(row.measured_here for row in quants):
        imported = any(row.quality_imported or row.speed_imported for row in quants)
        said = "Its figures were all imported." if imported else "None of its quantized files could be measured."
        return Decision("nothing", said)
    if reason := no_quality(wanted):
        return Decision("wait", f"No quality figure yet: {reason}")
    return None
