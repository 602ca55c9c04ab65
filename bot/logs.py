"""Logs: one handler on stderr for everything, text or JSON, one event a line, without secrets.

It is the only handler of the process, so that no record reaches the outside by another way: tracebacks, other
libraries' records, warnings and errors that nobody caught go through it too.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
import traceback
from collections.abc import Iterable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal, TextIO

from bot.masking import Mask

Format = Literal["text", "json"]
Level = Literal["debug", "info", "warning", "error"]

#: What a record may carry besides its message (``extra=``), in the order in which it is told.
FIELDS = ("job", "kind", "state", "repo", "variant", "runner", "seconds", "error_type")
#: Characters of a message or a traceback that are kept.
LONGEST = 16_000
#: Rooms of the house; records of others are told from WARNING on, if not everything is asked for.
_OURS = frozenset({"bot", "core", "jobs", "space", "localhub", "templates", "py", "__main__"})

logger = logging.getLogger(__name__)


class Masked(logging.Formatter):
    """What both formats share: the parts of a record, bounded and masked."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        super().__init__()
        self._secrets = frozenset(secrets)
        self.mask = Mask(self._secrets)

    def know(self, secrets: Iterable[str]) -> None:
        """Hide these too from now on."""
        new = self._secrets | frozenset(filter(None, secrets))
        if new != self._secrets:
            self._secrets, self.mask = new, Mask(new)

    def parts(self, record: logging.LogRecord) -> dict[str, Any]:
        """time, level, logger, message, the fields that it carries, and the traceback where there is one."""
        when = datetime.fromtimestamp(record.created, UTC)
        found: dict[str, Any] = {
            "time": f"{when:%Y-%m-%dT%H:%M:%S}.{when.microsecond // 1000:03d}Z",
            "level": record.levelname.lower(),
            "logger": self._text(record.name),
            "message": self._text(_message(record)),
        }
        for name in FIELDS:
            value = getattr(record, name, None)
            if value is not None:
                number = isinstance(value, int | float) and math.isfinite(value)
                found[name] = value if number else self._text(str(value))
        if record.exc_info and record.exc_info[0] is not None:
            found["traceback"] = self._text(_traceback(record.exc_info))
        return found

    def _text(self, text: str) -> str:
        # Masked before it is cut: half a secret would not be known as one.
        text = self.mask(text)
        return text if len(text) <= LONGEST else self.mask(text[: LONGEST - 1]) + "…"


class TextLog(Masked):
    """``TIME LEVEL LOGGER: MESSAGE job=3 repo=o/r``; a traceback follows, indented."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        parts = self.parts(record)
        fields = "".join(f" {name}={_plain(str(parts[name]))}" for name in FIELDS if name in parts)
        line = f"{parts['time']} {parts['level'].upper()} {parts['logger']}: {_plain(parts['message'])}{fields}"
        trace = [f"    {_plain(one)}" for one in parts.get("traceback", "").splitlines()]
        # A secret of several lines has become one of escapes by now.
        return self.mask("\n".join([line, *trace]))


class JsonLog(Masked):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        # ASCII: a line separator of Unicode's would end the line for some readers.
        return json.dumps(self.parts(record))


class _Handler(logging.StreamHandler[TextIO]):
    """Writes to whatever stderr is at that moment; that it can't be written is nobody's to hear."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.threshold, self.others = logging.ERROR, logging.ERROR

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record in one piece."""
        self.stream = sys.stderr
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing: logging's own complaint would hold the arguments, secrets and all."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is loud enough: ours at one level, other people's at another."""
        ours = record.name.partition(".")[0] in _OURS
        return record.levelno >= (self.threshold if ours else self.others)


_handler = _Handler()
_handler.setFormatter(TextLog())


def begin(*, verbose: bool) -> None:
    """Log errors to stderr, as text (``verbose``: all that happens); what hosts us keeps a handler of its own."""
    root = logging.getLogger()
    if root.handlers and _handler not in root.handlers:
        return
    level = logging.INFO if verbose else logging.ERROR
    _install(level, others=level)


def serve(*, form: Format, level: Level) -> None:
    """Log as a service does; never less than what was asked for at :func:`begin`."""
    before: logging.Formatter | None = _handler.formatter
    secrets = before._secrets if isinstance(before, Masked) else frozenset[str]()
    _handler.setFormatter((JsonLog if form == "json" else TextLog)(secrets))
    wanted = logging.getLevelNamesMapping()[level.upper()]
    others = wanted if wanted <= logging.DEBUG else max(wanted, logging.WARNING)
    if _handler in logging.getLogger().handlers:
        wanted, others = min(wanted, _handler.threshold), min(others, _handler.others)
    logging.captureWarnings(True)
    _install(wanted, others=others)


def know(secrets: Iterable[str | None]) -> None:
    """Never show these."""
    if isinstance(_handler.formatter, Masked):
        _handler.formatter.know(secret for secret in secrets if secret)


def masked(text: str) -> str:
    """``text`` as it may be shown."""
    return _handler.formatter.mask(text) if isinstance(_handler.formatter, Masked) else Mask()(text)


def _install(level: int, *, others: int) -> None:
    root = logging.getLogger()
    if _handler not in root.handlers:
        root.addHandler(_handler)
    _handler.threshold, _handler.others = level, others
    root.setLevel(min(level, others))
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    sys.unraisablehook = _unraisable


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:
        return f"{record.msg!s} (its arguments do not fit it)"


def _traceback(info: Any) -> str:
    try:
        return "".join(traceback.format_exception(*info)).rstrip()
    except Exception:
        return f"{info[0].__name__} (its traceback can't be told)"


def _plain(text: str) -> str:
    """One line of what a terminal shows as it is: no controls, and nothing that turns text round."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    logger.critical("An error that nobody expected ended the program.", exc_info=(kind, error, trace))


def _uncaught_in_thread(said: threading.ExceptHookArgs) -> None:
    if said.exc_type is SystemExit or said.exc_value is None:
        return
    name = said.thread.name if said.thread else "unknown"
    info = (said.exc_type, said.exc_value, said.exc_traceback)
    logger.critical("An error that nobody expected ended the thread %s.", name, exc_info=info)


def _unraisable(said: Any) -> None:
    if said.exc_value is not None:
        info = (said.exc_type, said.exc_value, said.exc_traceback)
        logger.error("An error in a place that can't raise it: %s", said.err_msg or "", exc_info=info)
