"""Takes what a job's process made out of its folder, after looking at it: the process read a stranger's file."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from bot.queue.places import fallback_path
from core.canonical import sha256_file
from core.contract import (
    BaselineResult,
    BaselineSpec,
    QualityResult,
    QualitySpec,
    Result,
    SpeedResult,
    SpeedSpec,
    result_adapter,
)
from core.errors import JobProtocolError, StorageError

_RESULT_OF = {"baseline": BaselineResult, "quality": QualityResult, "speed": SpeedResult}
#: Bytes of a result as JSON, and characters of one text in it.
_MOST_BYTES, _MOST_WORDS = 8 << 20, 4096
_HEAD = re.compile(r"head-[0-9a-f]{16}\.gguf")


def checked(result: Result, spec: BaselineSpec | QualitySpec | SpeedSpec) -> Result:
    """The result, if it is of the kind that was asked for and can be stored and read again.

    A figure that is NaN would be stored as null and stop every later reader, and a path would be used as ours.

    Raises:
        JobProtocolError: it is something else.
    """
    if not isinstance(result, _RESULT_OF[spec.kind]):
        raise JobProtocolError(f"The measuring process answered a {spec.kind} job with something else.")
    text = result.model_dump_json()
    if len(text) > _MOST_BYTES or not _is_bounded(json.loads(text)):
        raise JobProtocolError("The measuring process gave figures that nothing can have.")
    try:
        found: Result = result_adapter.validate_json(text)
    except ValueError:
        raise JobProtocolError("The measuring process gave figures that are no numbers.") from None
    if isinstance(found, BaselineResult) and isinstance(spec, BaselineSpec):
        out = Path(spec.out)
        path = out if found.format == spec.format else fallback_path(out)
        return found.model_copy(update={"path": str(path), "head_path": None})
    if isinstance(found, QualityResult) and isinstance(spec, QualitySpec):
        if found.scoring != ("llama-cpp" if spec.as_llama_cpp else found.scoring):
            raise JobProtocolError("The measuring process answered with figures of another scoring.")
        name = Path(spec.tokens_out).name if spec.tokens_out and found.tokens_sha256 else None
        return found.model_copy(update={"tokens_path": name, "imported": None})
    if isinstance(found, SpeedResult) and isinstance(spec, SpeedSpec):
        asked = {(n, 0, depth) for n in spec.n_prompt for depth in spec.n_depth}
        asked |= {(0, n, depth) for n in spec.n_gen for depth in spec.n_depth}
        asked |= {(*pair, depth) for pair in spec.n_pg for depth in spec.n_depth}
        told = [(test.n_prompt, test.n_gen, test.n_depth) for test in found.tests]
        if sorted(told) != sorted(one for one in asked if one[:2] != (0, 0)):
            raise JobProtocolError("The measuring process answered with other speed tests than it was asked for.")
        return found.model_copy(update={"imported": None})
    return found


def _is_bounded(value: Any) -> bool:
    """Whether what a process told can be stored and shown: no number that a column can't hold, no endless text."""
    if isinstance(value, dict):
        return all(map(_is_bounded, value.values())) and all(len(name) <= _MOST_WORDS for name in value)
    if isinstance(value, list):
        return all(map(_is_bounded, value))
    if isinstance(value, str):
        return len(value) <= _MOST_WORDS
    return not isinstance(value, int) or abs(value) < 1 << 53


def collect(result: Result, spec: BaselineSpec | QualitySpec | SpeedSpec, *, to: Path | None) -> Result:
    """Move what the result names to its place, and let the result name that.

    Args:
        result: :func:`checked`.
        to: where the baseline or the sidecar is to lie; None: nothing is kept.

    Raises:
        JobProtocolError: a file is not there, is no file, or is not the one that the result tells of.
        StorageError: it could not be moved.
    """
    if to is None:
        return result
    if isinstance(result, BaselineResult):
        made = Path(result.path)
        place = to if made.suffix == to.suffix else fallback_path(to)
        _is_as_told(made, result.sha256, size=result.size_bytes)
        beside = [
            made.with_name(f"{made.name}.json"),
            *sorted(p for p in made.parent.iterdir() if _HEAD.fullmatch(p.name)),
        ]
        # The file itself comes last: where it is, everything is.
        for path in [one for one in beside if _is_file(one)]:
            _move(path, place.parent / path.name.replace(made.name, place.name))
        _move(made, place)
        return result.model_copy(update={"path": str(place)})
    if isinstance(result, QualityResult) and isinstance(spec, QualitySpec) and spec.tokens_out and result.tokens_path:
        _is_as_told(Path(spec.tokens_out), result.tokens_sha256)
        _move(Path(spec.tokens_out), to)
        return result.model_copy(update={"tokens_path": to.name})
    return result


def _is_file(path: Path) -> bool:
    """Whether it is a plain file: no link to elsewhere, no pipe."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _is_as_told(path: Path, sha256: str | None, *, size: int | None = None) -> None:
    if not _is_file(path):
        raise JobProtocolError(f"The measuring process reported success, but {path.name} is not there.")
    if (size is not None and path.stat().st_size != size) or sha256_file(path) != sha256:
        raise JobProtocolError(f"{path.name} is not what the measuring process says that it wrote.")


def _move(path: Path, to: Path) -> None:
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        # Under another uid's name it could be changed later.
        if path.stat().st_uid != os.geteuid():
            os.chown(path, os.geteuid(), os.getegid())
        path.chmod(0o644)
        path.replace(to)
    except OSError as error:
        raise StorageError(
            f"{to.name} could not be put in its place ({error.strerror}). Check the data folder."
        ) from None
