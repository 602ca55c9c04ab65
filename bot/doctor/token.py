"""The token: is it good, can it do what it has to, and can it do more than that? Pure. The token is never shown."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlencode

from bot.doctor.finding import Finding, bad, clean, ok, some, unknown, warn
from bot.hub.account import Account, Answer

#: The days before its end in which a token is spoken of.
_SOON_DAYS = 14
#: Rights that only read what a token's user may read anyway.
_READING = frozenset(
    {"repo.content.read", "repo.access.read", "collection.read", "org.read", "user.webhooks.read", "job.read"}
)


@dataclass(frozen=True, slots=True)
class Needs:
    """What the settings ask of the token.

    ``jobs``: that it starts Hugging Face Jobs; with ``namespace`` and ``bucket`` as they are set ("": the token's own
    user, and NAMESPACE/quantcard).
    """

    pulls: bool
    dataset: str = ""
    webhook: bool = False
    jobs: bool = False
    namespace: str = ""
    bucket: str = ""

    def repos(self, name: str) -> list[str]:
        """What a token of the user ``name`` has to be able to write to."""
        bucket = self.bucket or f"{self.namespace or name}/quantcard"
        return [self.dataset] * bool(self.dataset) + [bucket] * self.jobs

    @property
    def writes(self) -> bool:
        """Whether anything is written."""
        return self.pulls or bool(self.dataset) or self.webhook or self.jobs


def new_token_url(endpoint: str, needs: Needs) -> str:
    """The Hub's page that makes a fine-grained token, with most of what is needed ticked."""
    own = ["repo.content.read"]
    own += ["user.webhooks.read", "user.webhooks.write"] * needs.webhook + ["job.write"] * needs.jobs
    asked = [("tokenType", "fineGrained"), *(("ownUserPermissions", one) for one in own)]
    asked += [("globalPermissions", "discussion.write")] * needs.pulls
    return f"{endpoint}/settings/tokens/new?{urlencode(asked)}"


def judge_token(*, present: bool, answer: Answer, needs: Needs, now: float) -> list[Finding]:
    """Whether the token is there, valid, enough, and not too much.

    Args:
        present: whether a token is set.
        answer: what the Hub said to it.
        now: seconds since the epoch.
    """
    if not present:
        if needs.writes:
            return [
                warn(
                    "No token is set: repos are read as nobody (half the request budget), nothing can be written.",
                    f"Make one at {new_token_url(answer.endpoint, needs)} and set HF_TOKEN.",
                )
            ]
        return [ok("No token is set, and none is needed: nothing is written.")]
    if answer.account is None:
        if answer.refused:
            return [
                bad(
                    "The Hub does not know the token that is set: it was revoked, has expired, or is misspelled.",
                    f"Make a new one at {new_token_url(answer.endpoint, needs)} and set HF_TOKEN.",
                )
            ]
        return [unknown(f"The token could not be checked: {clean(answer.error)}", "See the check 'hub'.")]
    account = answer.account
    found = [_rights(account, needs, answer.endpoint), *_expiry(account, now)]
    return [one for one in found if one is not None]


def _rights(account: Account, needs: Needs, endpoint: str) -> Finding:
    who = f"The token{f' {clean(account.token_name, limit=60)!r}' if account.token_name else ''} of "
    who += clean(account.name, limit=80)
    url = new_token_url(endpoint, needs)
    if account.role == "fineGrained":
        return _fine_grained(who, account, needs, url)
    if account.role == "read":
        if needs.writes:
            return bad(
                f"{who} can only read: pulls, the dataset and webhooks are refused.",
                f"Make one that may write what it has to at {url}.",
            )
        return ok(f"{who} can only read, and nothing more is needed.")
    if account.role in ("write", "admin"):
        admins = [name for name, role in account.orgs if role == "admin"]
        reach = f"every repo of {clean(account.name, limit=80)}"
        if account.orgs:
            reach += f" and of {len(account.orgs)} organisations ({some(name for name, _ in account.orgs)})"
        more = f", and is an administrator of {some(admins)}" if admins else ""
        return warn(
            f"{who} is a classic {account.role!r} token: it can write to and delete {reach}{more}, and open pulls "
            "anywhere. The bot needs less.",
            f"Replace it with a fine-grained one: {url}{_only(needs, account.name)}",
        )
    return unknown(
        f"{who} has the role {clean(account.role or 'none', limit=40)!r}, which this quantcard does not know.",
        f"If in doubt make a fine-grained one at {url}.",
    )


def _only(needs: Needs, name: str) -> str:
    repos = needs.repos(name)
    return f", with write access to {some(repos)} alone." if repos else "."


def _fine_grained(who: str, account: Account, needs: Needs, url: str) -> Finding:
    listed = _listed(account)
    if lacks := _lacking(account, needs):
        return bad(
            f"{who} (fine-grained: {listed}) lacks {some(lacks)}.",
            f"Add it in the Hub's settings, under Access Tokens, or make a new one at {url}.",
        )
    if extra := _beyond(account, needs):
        return warn(
            f"{who} (fine-grained) can do more than the bot needs: {some(extra, most=6)}.",
            "Take these away in the Hub's settings, under Access Tokens; whoever gets hold of the token has them too.",
        )
    return ok(f"{who} is fine-grained and can do what it has to, no more: {listed}.")


def _listed(account: Account) -> str:
    """A fine-grained token's rights as a list."""
    parts = [f"everywhere {one}" for one in sorted(account.everywhere)]
    parts += [f"{clean(scope.name, limit=80)} {one}" for scope in account.scopes for one in sorted(scope.permissions)]
    return some(parts, most=8) if parts else "no rights"


def _lacking(account: Account, needs: Needs) -> list[str]:
    missing = []
    if needs.pulls and "discussion.write" not in account.everywhere:
        missing.append("discussion.write everywhere ('interact with discussions and open pull requests on repos')")
    for repo in needs.repos(account.name):
        if not any("repo.write" in one.permissions and _covers(one.name, repo) for one in account.scopes):
            missing.append(f"repo.write on the {'dataset' if repo == needs.dataset else 'bucket'} {repo}")
    own = {one for scope in account.scopes for one in scope.permissions}
    if needs.webhook and "user.webhooks.write" not in own:
        missing.append("user.webhooks.write, for 'quantcard webhooks sync'")
    if needs.jobs and "job.write" not in own | account.everywhere:
        missing.append("job.write, for the hf-jobs runner")
    return missing


def _covers(name: str, repo_id: str) -> bool:
    """Whether an entity is a repo or its owner."""
    return name.casefold() in ((repo_id.casefold(),) if "/" in name else (repo_id.partition("/")[0].casefold(),))


def _beyond(account: Account, needs: Needs) -> list[str]:
    """The rights that nothing here needs; what only reads is left aside."""
    extra = [f"{one} everywhere" for one in sorted(account.everywhere - _READING - {"discussion.write"})]
    if not needs.pulls and "discussion.write" in account.everywhere:
        extra.append("discussion.write everywhere")
    for scope in account.scopes:
        fine = set(_READING)
        fine |= {"user.webhooks.write"} if needs.webhook else set()
        fine |= {"job.write"} if needs.jobs else set()
        fine |= {"discussion.write"} if needs.pulls else set()
        name = clean(scope.name, limit=80)
        extra += [f"{one} on {name}" for one in sorted(scope.permissions - fine - {"repo.write"})]
        if "repo.write" in scope.permissions:
            covered = [repo for repo in needs.repos(account.name) if _covers(scope.name, repo)]
            if not covered:
                extra.append(f"repo.write on {name}")
            elif "/" not in scope.name:
                enough = f"{some(covered)} {'are' if len(covered) > 1 else 'is'} enough"
                extra.append(f"repo.write on all repos of {name} ({enough})")
    return extra


def _expiry(account: Account, now: float) -> list[Finding]:
    if account.expires is None:
        return []
    try:
        left = (datetime.fromisoformat(account.expires).timestamp() - now) / 86400
    except ValueError:
        return []
    if left > _SOON_DAYS:
        return []
    when = "has ended" if left < 0 else f"ends in {left:.1f} days"
    return [warn(f"The token's life {when}.", "Renew it in the Hub's settings, under Access Tokens.")]


def judge_hub(answer: Answer) -> list[Finding]:
    """Whether the Hub answers, and how soon."""
    if answer.account is not None or not answer.error or answer.refused:
        slow = answer.took > 3.0
        found = f"{clean(answer.endpoint, limit=120)} answered in {answer.took:.2f} s"
        if slow:
            return [warn(f"{found}, which is slow.", "Look at the network, or at a proxy in between.")]
        return [ok(f"{found}.")]
    found, _, _ = clean(answer.error).partition(". ")
    return [bad(f"{found.rstrip('.')}.", "Check HF_ENDPOINT, HF_HUB_OFFLINE, the network and HTTPS_PROXY.")]


def judge_clock(answer: Answer, *, newest: float | None, now: float, drift: float | None = None) -> list[Finding]:
    """Whether this machine's clock is right.

    Args:
        newest: the latest time that stands in the database, seconds since the epoch.
        drift: seconds by which the wall clock moved more than a clock that nobody sets, since the doctor began.
    """
    found: list[Finding] = []
    ntp = "Have it set by NTP: timedatectl set-ntp true (in a container: on its host)."
    if newest is not None and newest > now + 60:
        found.append(
            bad(
                f"The database has a row that was written {_span(newest - now)} in the future: the clock was set back, "
                "or was wrong then.",
                f"{ntp} Leases and waits end when the clock has come there.",
            )
        )
    if drift is not None and abs(drift) > 2:
        found.append(warn(f"The clock was moved by {drift:+.1f} s while the doctor looked.", ntp))
    if answer.date is None:
        return found or [unknown("The Hub's clock is not known, so ours can't be compared.", "See the check 'hub'.")]
    # The header has whole seconds; half a journey on either side is not known.
    offset = (answer.sent + answer.received) / 2 - (answer.date + 0.5)
    unsure = answer.took / 2 + 0.5
    told = f"The clock is {abs(offset):.1f} s {'ahead of' if offset > 0 else 'behind'} the Hub's (± {unsure:.1f} s)"
    if abs(offset) - unsure > 300:
        found.append(bad(f"{told}: TLS and tokens fail, figures get wrong dates.", ntp))
    elif abs(offset) - unsure > 10:
        found.append(warn(f"{told}.", ntp))
    elif not found:
        found.append(ok(f"{told}."))
    return found


def _span(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
