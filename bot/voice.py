"""How the service tells what it does: lines and bars for people, or records for who collects logs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bot.logs import Format
from bot.progress import Bars, say
from bot.queue.worker import JobEvent

logger = logging.getLogger(__name__)


class Voice:
    """Says sentences and shows jobs, as the log's format asks for; secrets are said in neither."""

    def __init__(self, form: Format) -> None:
        self._form = form

    def say(self, text: str) -> None:
        """A sentence about the service."""
        if self._form == "json":
            logger.info("%s", text)
        else:
            say(text)

    @contextmanager
    def jobs(self) -> Iterator[Callable[[JobEvent], None]]:
        """What job events are told to."""
        if self._form == "json":
            yield record
            return
        with Bars() as bars:
            yield bars.job


def record(event: JobEvent) -> None:
    """Log a job's change of state; how far it is, is no event."""
    if event.progress is not None:
        return
    job, variant = event.job, event.variant
    logger.info(
        "%s of %s: %s%s",
        job.kind,
        variant.name,
        event.state,
        f": {event.error}" if event.error else "",
        extra={
            "job": job.id,
            "kind": job.kind,
            "state": event.state,
            "repo": variant.repo_id,
            "variant": variant.name,
            "runner": getattr(event, "runner", None),
            "error_type": type(event.cause).__name__ if event.cause else None,
        },
    )
