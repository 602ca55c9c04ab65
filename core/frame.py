"""How a job that runs elsewhere tells its end through a log that others write to as well: one line, checked.

``quantcard-result v1 <nonce> <sha256 of payload> <base64 of zlib of payload>``, where the payload is the JSON of an
:class:`Ended`; and ``quantcard-progress <json>`` for steps, on which nothing depends. The nonce is known to the bot and
to the small parent inside the job, never to the process that reads the model.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import zlib
from collections.abc import Iterable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.contract import ErrorEvent, ProgressEvent, ResultEvent
from core.errors import JobProtocolError, QuantcardError, by_name

RESULT, PROGRESS = "quantcard-result", "quantcard-progress"
VERSION = "v1"
#: Characters of a line of ours, and bytes of its payload, at most; real ones take some kilobytes.
MAX_LINE = 4 << 20
MAX_PAYLOAD = 16 << 20
_MAX_PROGRESS_LINE = 8192
_MAX_WORDS = 500
NONCE_PATTERN = r"^[0-9a-f]{32}$"
_NONCE = re.compile(r"[0-9a-f]{32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Output(BaseModel):
    """A file that a job left for us, to be checked when it is fetched."""

    model_config = ConfigDict(extra="forbid")

    #: Relative to the folder that the asker named, with "/".
    path: str = Field(max_length=1024)
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Ended(BaseModel):
    """How a job ended: its result or its error, and the files it left."""

    model_config = ConfigDict(extra="forbid")

    event: Annotated[ErrorEvent | ResultEvent, Field(discriminator="event")]
    outputs: list[Output] = Field(default=[], max_length=10_000)


def error_of(event: ErrorEvent) -> QuantcardError:
    """The error that a job told of, to be raised; its sentence is cut to 500 characters on one line."""
    return by_name(event.type)(" ".join(event.message[: 4 * _MAX_WORDS].split())[:_MAX_WORDS])


def progress_line(event: ProgressEvent) -> str:
    """A step as one ASCII line without its end; words of more than 500 characters are cut."""
    cut = event.model_copy(update={"stage": event.stage[:_MAX_WORDS], "note": event.note[:_MAX_WORDS]})
    return f"{PROGRESS} {json.dumps(cut.model_dump(), separators=(',', ':'))}"


def frame(event: ErrorEvent | ResultEvent, nonce: str, *, outputs: Iterable[Output] = ()) -> str:
    """A job's end as one ASCII line without its end.

    Raises:
        ValueError: the nonce is not 32 hex digits, or the payload is larger than a reader takes.
    """
    if not _NONCE.fullmatch(nonce):
        raise ValueError("a nonce has 32 hex digits")
    if isinstance(event, ErrorEvent):
        # A name of bytes that are no text has no UTF-8; its error has to arrive all the same.
        event = event.model_copy(update={"message": event.message.encode("utf-8", "replace").decode()})
    payload = Ended(event=event, outputs=list(outputs)).model_dump_json().encode()
    packed = base64.b64encode(zlib.compress(payload, 9)).decode("ascii")
    line = f"{RESULT} {VERSION} {nonce} {hashlib.sha256(payload).hexdigest()} {packed}"
    if len(payload) > MAX_PAYLOAD or len(line) > MAX_LINE:
        raise ValueError(f"a result of {len(payload)} bytes does not fit a line")
    return line


def read_line(line: str, nonce: str) -> ProgressEvent | Ended | None:
    """What a line of a job's log says; None for whatever is not ours.

    A line of ours may stand behind other text that was not ended. Where it begins the line it has to be whole.

    Raises:
        JobProtocolError: a result line is cut, changed, of another job or of another version.
    """
    line = line.strip()
    if line.startswith(RESULT + " ") or line == RESULT:
        return _ended(line, nonce)
    if (at := line.find(f"{RESULT} {VERSION} ")) > 0:
        try:
            return _ended(line[at:], nonce)
        except JobProtocolError:
            return None
    if (at := line.find(PROGRESS + " {")) >= 0:
        return _progress(line[at + len(PROGRESS) + 1 :])
    return None


def _progress(text: str) -> ProgressEvent | None:
    if len(text) > _MAX_PROGRESS_LINE:
        return None
    try:
        return ProgressEvent.model_validate_json(text)
    except ValidationError:
        return None


def _ended(line: str, nonce: str) -> Ended:
    if len(line) > MAX_LINE:
        raise JobProtocolError(f"A result line of {len(line)} characters is larger than any of ours.")
    words = line.split(" ")
    if len(words) > 1 and words[1] != VERSION and len(words) == 5:
        raise JobProtocolError(
            f"The job's result line is of version {words[1][:20]!r}, not {VERSION}: the job runs another version of "
            "quantcard. Give the runner the image of this version."
        )
    if len(words) != 5 or not _SHA256.fullmatch(words[3]):
        raise JobProtocolError("The job's result line is cut.")
    if not hmac.compare_digest(words[2].encode(), nonce.encode()):
        raise JobProtocolError("A result line does not carry this job's nonce: it is another's, or made up.")
    try:
        packed = base64.b64decode(words[4], validate=True)
        payload = _inflated(packed)
    except (binascii.Error, ValueError, zlib.error):
        raise JobProtocolError("The job's result line is cut or changed: it does not unpack.") from None
    if hashlib.sha256(payload).hexdigest() != words[3]:
        raise JobProtocolError("The job's result line is changed: its checksum does not hold.")
    try:
        return Ended.model_validate_json(payload)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))[:100]
        raise JobProtocolError(f"The job's result is not what the contract says: {where}: {first['msg']}.") from None


def _inflated(packed: bytes) -> bytes:
    """The payload, of which no more than :data:`MAX_PAYLOAD` bytes are ever unpacked."""
    inflater = zlib.decompressobj()
    payload = inflater.decompress(packed, MAX_PAYLOAD + 1)
    if len(payload) > MAX_PAYLOAD or not inflater.eof or inflater.unused_data:
        raise ValueError("too large, cut, or with something behind it")
    return payload
