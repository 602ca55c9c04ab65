"""The leaderboard beside the bot: the Space's app over the dataset or the local copy, requests into our database."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bot.clock import SystemClock
from bot.intake.requests import queue_rows, submit
from bot.publish.export import local_path
from bot.settings import Settings
from core.dataset import QueueRow, RequestAck
from space.data import Results
from space.serve import RunningApp, serve
from space.sources import HubSource, LocalSource


def results_of(settings: Settings, *, folder: Path | None = None) -> Results:
    """The results to show: a folder's, else the dataset's, else the local copy's."""
    if folder is not None:
        return Results(LocalSource(folder))
    if settings.dataset:
        return Results(HubSource(settings.dataset, endpoint=settings.hf_endpoint))
    return Results(LocalSource(local_path(settings.data)))


def taker(settings: Settings, *, then: Callable[[], None] = lambda: None) -> Callable[[str, str | None], RequestAck]:
    """What takes the page's requests into our database; ``then`` is called after each that was accepted."""

    def take(repo: str, person: str | None) -> RequestAck:
        ack = submit(settings.db, repo, person, clock=SystemClock(), per_hour=settings.requests_per_hour)
        if ack.accepted:
            then()
        return ack

    return take


def queue_of(settings: Settings) -> Callable[[], list[QueueRow]]:
    """What shows our database's queue on the page."""
    return lambda: queue_rows(settings.db, now=SystemClock().now(), slots=settings.slots)


def open_leaderboard(settings: Settings, *, folder: Path | None = None) -> RunningApp:
    """Start the leaderboard in the background; its requests and queue are our database's."""
    return serve(
        results_of(settings, folder=folder),
        host=settings.host,
        port=settings.port,
        submit=taker(settings),
        queue=queue_of(settings),
        block=False,
    )
