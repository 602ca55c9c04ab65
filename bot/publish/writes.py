"""Whether anything may be written to the Hub just now: the operator's pause, quiet hours, the Hub's own limit."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from bot.hub.budget import HubBudgetError
from bot.hub.door import HubDoor
from bot.publish.hours import parse_hours, time_of_day
from bot.publish.lease import keep_publishing
from bot.publish.manners import Decision
from bot.settings import Settings
from bot.store import Store
from bot.store.switch import paused
from core.errors import HubRateLimitError

T = TypeVar("T")
#: Seconds that all writing waits after a 429 that does not say for how long, and the longest wait it may ask for.
LIMIT_S, MAX_LIMIT_S = 3600.0, 6 * 3600.0
#: Seconds until a pause is looked at again.
PAUSE_S = 600.0
_NAME = "writes_until"
_RETRY = re.compile(r"\bin (?:about )?(\d{1,5}|an?) (second|minute|hour)s?\b", re.I)
_UNITS = {"second": 1.0, "minute": 60.0, "hour": 3600.0}


class WritesLimitedError(HubRateLimitError):
    """The Hub takes no more pulls, commits or comments for a while; ``until``: seconds since the epoch."""

    def __init__(self, message: str, *, until: float) -> None:
        super().__init__(message)
        self.until = until


def held(store: Store, hub: HubDoor, settings: Settings, *, now: float) -> Decision | None:
    """Why nothing is written to the Hub now, or None. A dry run writes nothing, so a pause does not stop it."""
    if not hub.dry_run and (pause := paused(store)):
        return Decision("wait", str(pause), until=now + PAUSE_S)
    quiet = parse_hours(settings.quiet_hours)
    if quiet and (until := quiet.until(now)):
        return Decision("wait", f"Quiet hours until {time_of_day(until)} UTC.", until=until)
    return limited(store, now=now)


def limited(store: Store, *, now: float) -> Decision | None:
    """Whether the Hub told us to write nothing for a while."""
    until = float(store.results.get(_NAME) or 0.0)
    if now < until <= now + MAX_LIMIT_S:
        return Decision("wait", f"The Hub takes no more of our pulls until {time_of_day(until)} UTC.", until=until)
    return None


def write(store: Store, hub: HubDoor, call: Callable[[], T], *, now: float) -> T:
    """Write something; a 429 makes every other writing wait as well, since the Hub counts them together.

    Raises:
        WritesLimitedError: that happened.
        LeaseLostError: another process publishes by now.
        HubError: whatever else the call raises.
    """
    keep_publishing()
    try:
        return call()
    except HubBudgetError:
        raise
    except HubRateLimitError as error:
        until = now + wait_of(str(error))
        if not hub.dry_run:
            store.results.put(_NAME, repr(until))
        raise WritesLimitedError(str(error), until=until) from error


def wait_of(message: str) -> float:
    """The seconds that the Hub asks to wait in words (``retry in about 1 hour``), bounded; else an hour. Pure."""
    found = _RETRY.search(message)
    if not found:
        return LIMIT_S
    number = float(found[1]) if found[1].isdigit() else 1.0
    return min(max(number * _UNITS[found[2].lower()], 60.0), MAX_LIMIT_S)
