"""A dry run on a messy card, whole: what stands on stdout and stderr, and that ``patch`` takes it.

The figures are given, so that the transcript is the same on every machine; ids and addresses are put for what varies.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bot_helpers import BASE, REPO, World

from bot.commands.common import open_hub
from bot.publish import card as cards
from bot.publish.outcome import Outcome
from bot.publish.pulls import publish_repo
from bot.store import Store
from core.dataset import DatasetRow
from localhub import seed

sys.path.append(str(Path(__file__).parents[1] / "unit"))
from rows import row, sha

GOLDEN = Path(__file__).parents[1] / "golden" / "dry-run-messy-card.txt"
NOON = 1_800_014_400.0
#: Front matter with comments, flow style and a version that is no number; CRLF with one LF; tables, HTML that hides
#: markdown, fences and comments that hold our markers, code never indented alike, and no newline at the end.
MESSY = (
    "---\r\n"
    f"base_model: {BASE}   # keep this\r\n"
    "tags: [ gguf,'quantized' ]\r\n"
    "version: 1.10\r\n"
    "model-index: []   # mine\r\n"
    "---\r\n"
    "\r\n"
    '<div align="center">\r\n'
    "  <img src=\"banner.png\"  width='100%'>\r\n"
    "</div>\r\n"
    "\r\n"
    "# Messy  GGUF  \r\n"
    "\ttabs, trailing spaces   \r\n"
    "\r\n"
    "| Quant|Size |\r\n"
    "|:--|--:|\r\n"
    "|Q8_0|4 MB|\r\n"
    "\n"
    "```md\r\n"
    "<!-- quantcard:begin v=1 key=abcdef012345 pad=1,0 -->\r\n"
    "## Which file should I pick?\r\n"
    "<!-- quantcard:end -->\r\n"
    "```\r\n"
    "<!-- an old note:\r\n"
    "<!-- quantcard:begin v=1 -->\r\n"
    "-->\r\n"
    "<details><summary>Prompt</summary>\r\n"
    "\r\n"
    "~~~\r\n"
    "{system}\r\n"
    "~~~~\r\n"
    "</details>\r\n"
    "Last line — no newline"
).encode()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, template=False) as found:
        seed.upload_files(found.root, REPO, {"README.md": MESSY})
        with Store(found.settings().db) as store:
            store.repos.save_repo(
                REPO, sha="0" * 40, last_modified=None, source="follow", note=None, base_model=BASE, config={}, now=1.0
            )
        yield found


def rows(**changed: object) -> list[DatasetRow]:
    own = {"repo_id": REPO, "owner": REPO.split("/")[0], "reference_repo": REPO}
    found = [row(label, **own) for label in ("F16", "Q8_0", "Q4_K_M", "Q2_K")]
    return [one.model_copy(update=changed) if one.label == "Q4_K_M" else one for one in found]


def decide(world: World, told: list[DatasetRow], *, dry_run: bool) -> Outcome:
    settings = world.settings(dry_run=dry_run)
    with Store(settings.db) as store:
        repo = store.repos.repo(REPO)
        assert repo is not None
        return publish_repo(store, open_hub(settings), settings, repo, told, now=NOON)


def transcript(world: World, capfd: pytest.CaptureFixture[str], told: list[DatasetRow]) -> str:
    """What a dry run prints, with names for what is another one in each run."""
    capfd.readouterr()
    outcome = decide(world, told, dry_run=True)
    shown = capfd.readouterr()
    whole = f"$ stderr\n{shown.err}\n{outcome.decision.reason}\n$ stdout\n{shown.out}"
    whole = whole.replace(world.server.url, "https://hub")
    whole = re.sub(r"parent_commit='[0-9a-f]{40}'", "parent_commit='COMMIT'", whole)
    whole = re.sub(r"comment_id='\w+'", "comment_id='ID'", whole)
    return re.sub(r"(\s+[\w./-]+): [\d,]+ bytes", r"\1: N bytes", whole)


def apply(diff: str, folder: Path, before: bytes) -> bytes:
    """What ``patch`` makes of a card."""
    folder.mkdir()
    (folder / "README.md").write_bytes(before)
    subprocess.run(["patch", "-p1", "--binary", "--silent"], cwd=folder, input=diff.encode(), check=True, timeout=20)
    return (folder / "README.md").read_bytes()


def test_the_transcript_is_as_agreed_and_patch_takes_it(
    world: World, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    opened = transcript(world, capfd, rows())
    assert world.pulls() == []
    decide(world, rows(), dry_run=True)
    diff = capfd.readouterr().out
    after = apply(diff, tmp_path / "open", MESSY)
    assert cards.remove(after.decode()).encode() == MESSY
    assert decide(world, rows(), dry_run=False).decision.action == "open"
    assert world.card("refs/pr/1") == after, "what is printed is what is committed"
    # The file was replaced and is much closer now: an update in place, and a comment since advice does not hold.
    moved = rows(kld_mean=0.0011, kld_stderr=0.00001, variant_key=sha("new"))
    updated = transcript(world, capfd, moved)
    decide(world, moved, dry_run=True)
    diff = capfd.readouterr().out
    newer = apply(diff, tmp_path / "update", after)
    assert cards.remove(newer.decode()).encode() == MESSY and world.card("refs/pr/1") == after
    text = f"{opened}\n{updated}"
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_bytes(text.encode())
    assert text.encode() == GOLDEN.read_bytes(), f"{GOLDEN} differs; look, then UPDATE_GOLDEN=1"
