"""What a status report holds, and what of it strangers may see. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

#: What is not for the public: tokens, and absolute paths (which repos' and addresses' slashes are not).
_TOKEN = re.compile(r"\b(hf|api|gh[a-z]|sk)_[A-Za-z0-9]{3,}")
_PATH = re.compile(r"file://\S+|(?<![\w/:.~-])~?(?:/[\w.@+~-]+){2,}/?")
_SLASHED = re.compile(r"[\w.-]+(?:/[\w.-]+)+")


class _Lenient(BaseModel):
    """What another version may have written: unknown fields are left out."""

    model_config = ConfigDict(extra="ignore")


class Problem(_Lenient):
    """Something that went wrong: where, and a sentence."""

    what: str
    error: str


class LastCycle(_Lenient):
    """The last cycle of any process over this database. ``at``: its end, seconds since the epoch."""

    at: float
    seconds: float = 0.0
    repos_seen: int = 0
    repos_changed: int = 0
    headers_read: int = 0
    queued: int = 0
    jobs_done: int = 0
    jobs_dead: int = 0
    errors: list[Problem] = []
    errors_total: int = 0


class Window(_Lenient):
    """What is left of a request budget; ``resets_at``: seconds since the epoch."""

    resource: str
    limit: int
    remaining: int
    resets_at: float


class Paused(_Lenient):
    """Why nothing is written to the Hub, and since when."""

    reason: str
    at: float


class WebhookCounts(_Lenient):
    """What came of webhooks since the service began; ``open``: whether they are taken at all.

    ``ignored``: none of our business; ``refused``: wrong secret, too much, too fast, or not a webhook. ``last_at``: of
    the last taken one, seconds since the epoch.
    """

    open: bool = False
    taken: int = 0
    ignored: int = 0
    refused: int = 0
    last_at: float | None = None


class FollowStatus(_Lenient):
    """One follow and its last poll; ``repos``: how many are watched by it."""

    name: str
    kind: str
    consented: bool
    polled_at: float | None
    swept_at: float | None
    error: str | None
    repos: int


class JobStatus(_Lenient):
    """A job; ``progress`` from 0 to 1."""

    id: int
    kind: str
    repo_id: str
    variant: str
    progress: float | None
    error_type: str | None
    error: str | None
    updated_at: float


class PullStatus(_Lenient):
    """An open pull; ``reason``: what was last decided about its card."""

    repo_id: str
    num: int
    status: str
    key: str
    url: str | None
    created_at: float
    reason: str | None


class Reason(_Lenient):
    """A reason for which ``repos`` cards stand as they do; ``repo_id`` is one of them."""

    action: str
    reason: str
    repos: int
    repo_id: str
    next_at: float | None


class Refusal(_Lenient):
    """A 'no': said (``stopped``, ``by`` whom), in a file (``disabled``), or by closing pull ``num`` (``closed``)."""

    repo_id: str
    how: str
    by: str | None
    num: int | None


class RepoProblem(_Lenient):
    """A repo and what is the matter with it; ``until``: when it is tried again, seconds since the epoch."""

    repo_id: str
    problem: str
    until: float | None = None


class Dispute(_Lenient):
    """A figure that an owner disputes on pull ``num``."""

    id: int
    repo_id: str
    num: int
    author: str
    text: str
    at: float


class Money(BaseModel):
    """What this month's Hugging Face Jobs cost, in USD: ended ones, and what open ones may cost at most."""

    month: str
    spent: float
    reserved: float
    limit: float


class StatusReport(BaseModel):
    """Everything at a glance. Times are seconds since the epoch; lists are bounded, ``more`` tells what they leave out.

    ``repos``, ``jobs``, ``pull_counts`` and ``decisions`` count by state; ``publishing``: whether cards are written;
    ``unready``: what keeps the service from its work.
    """

    at: float
    paused: Paused | None
    publishing: bool
    dry_run: bool
    last_poll: float | None
    last_cycle: LastCycle | None
    budget: list[Window]
    follows: list[FollowStatus]
    repos: dict[str, int]
    repos_due: int
    repos_due_since: float | None
    headers_waiting: int
    requests_waiting: int
    repo_errors: list[RepoProblem]
    jobs: dict[str, int]
    oldest_job: float | None
    running: list[JobStatus]
    failed: list[JobStatus]
    pulls: list[PullStatus]
    pull_counts: dict[str, int]
    decisions: dict[str, int]
    reasons: list[Reason]
    refusals: list[Refusal]
    config_problems: list[RepoProblem]
    disputes: list[Dispute]
    webhooks: WebhookCounts
    unready: list[str] = Field(default_factory=list)
    queue_paused: str | None = None
    money: Money | None = None
    more: dict[str, int] = Field(default_factory=dict)

    def public(self, *, hidden: set[str], secrets: Iterable[str] = ()) -> StatusReport:
        """What strangers may see: no tokens, no paths, nothing that names a repo which is private or gone. Pure.

        Args:
            hidden: ids of the repos that are not to be named.
            secrets: further texts that must not be seen.
        """
        names = {name.lower() for name in hidden}

        def clean(value: Any) -> Any:
            if isinstance(value, str):
                return scrub(value, secrets)
            if isinstance(value, list):
                return [clean(item) for item in value if not any(_names(text, names) for text in _texts(item))]
            return {key: clean(item) for key, item in value.items()} if isinstance(value, dict) else value

        seen = clean(self.model_dump())
        for name, shown in seen.items():
            if isinstance(shown, list) and (left := len(getattr(self, name)) - len(shown)):
                seen["more"][name] = seen["more"].get(name, 0) + left
        return StatusReport.model_validate(seen)


def _texts(value: Any) -> list[str]:
    """The texts in a list's item."""
    if isinstance(value, dict):
        return [text for item in value.values() for text in _texts(item)]
    return [value] if isinstance(value, str) else []


def _names(text: str, repos: set[str]) -> bool:
    """Whether a text names one of these repos (lower case), however it stands in a path or an address."""
    for run in _SLASHED.findall(text.lower()):
        parts = run.split("/")
        for owner, name in pairwise(parts):
            if f"{owner}/{name}" in repos or f"{owner}/{name.rstrip('.-')}" in repos:
                return True
    return False


def scrub(text: str, secrets: Iterable[str] = ()) -> str:
    """``text`` without tokens and paths of this machine. Pure."""
    for secret in secrets:
        if len(secret) > 3:
            text = text.replace(secret, "…")
    return _PATH.sub("…", _TOKEN.sub(r"\1_…", text))


def ago(then: float | None, now: float) -> str:
    """How long ago something was, or in how long it will be, for people: ``5 min ago``, ``in 2 h``, ``never``."""
    if then is None:
        return "never"
    seconds = abs(now - then)
    for unit, size, until in (("s", 1, 90), ("min", 60, 90 * 60), ("h", 3600, 36 * 3600), ("d", 86400, float("inf"))):
        if seconds < until:
            return f"in {seconds / size:.0f} {unit}" if then > now else f"{seconds / size:.0f} {unit} ago"
    raise AssertionError("unreachable")
