"""The runners that the settings name. A new one is a module of its own and a function here; see docs/runners.md."""

from __future__ import annotations

from collections.abc import Callable

from bot.hub.door import HubDoor
from bot.queue.runners.base import Runner
from bot.settings import Settings
from core.errors import SettingsError


def _local(settings: Settings, hub: HubDoor) -> Runner:
    from bot.queue.runners.local import LocalRunner

    return LocalRunner(settings)


def _hf_jobs(settings: Settings, hub: HubDoor) -> Runner:
    from bot.queue.runners.hf_jobs import hf_jobs_runner

    return hf_jobs_runner(settings, hub)


def _ray(settings: Settings, hub: HubDoor) -> Runner:
    from bot.queue.runners.ray import ray_runner

    return ray_runner(settings, hub)


#: By name; each is imported only where it is wanted.
RUNNERS: dict[str, Callable[[Settings, HubDoor], Runner]] = {"local": _local, "hf-jobs": _hf_jobs, "ray": _ray}


def runners_of(settings: Settings, hub: HubDoor) -> list[Runner]:
    """The runners in the order of the settings.

    Raises:
        SettingsError: one of them is not known, or can't be used as it is set.
    """
    found = []
    for name in dict.fromkeys(settings.runners):
        if name not in RUNNERS:
            raise SettingsError(f"There is no runner {name!r} (QUANTCARD_RUNNERS), only {', '.join(RUNNERS)}.")
        found.append(RUNNERS[name](settings, hub))
    return found
