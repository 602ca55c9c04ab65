"""Long work that can't be interrupted, done in a thread that a stop leaves behind."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from bot.queue.runners.base import JobStopped, Stop

T = TypeVar("T")
_TICK = 0.1


def patiently(
    work: Callable[[], T], stop: Stop, *, name: str = "patiently", meanwhile: Callable[[], None] = lambda: None
) -> T:
    """What ``work`` gives, or its error.

    Args:
        name: of the thread.
        meanwhile: called again and again in this thread while it lasts.

    Raises:
        JobStopped: ``stop`` was set first; the work goes on, and nobody hears of its end.
    """
    done: queue.SimpleQueue[tuple[bool, T | BaseException]] = queue.SimpleQueue()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            done.put((True, context.run(work)))
        except BaseException as error:
            done.put((False, error))

    threading.Thread(target=run, name=name, daemon=True).start()
    while True:
        try:
            good, value = done.get(timeout=_TICK)
        except queue.Empty:
            if stop.is_set():
                raise JobStopped from None
            meanwhile()
            continue
        if good:
            return value  # type: ignore[return-value]
        assert isinstance(value, BaseException)
        raise value
