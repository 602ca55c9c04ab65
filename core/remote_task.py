"""What a job that runs elsewhere is told: one value in the environment variable QUANTCARD_TASK, read by jobs.remote."""

from __future__ import annotations

import base64
import binascii
import zlib

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.contract import JobSpec
from core.errors import JobProtocolError
from core.frame import NONCE_PATTERN

VARIABLE = "QUANTCARD_TASK"
#: An environment variable holds 128 KiB on Linux.
MAX_TEXT = 120_000
_MAX_JSON = 4 << 20


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class InputFile(_Part):
    """A file that is read whole and compared before anything is measured; paths are of the machine that measures."""

    path: str
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class OutputFolder(_Part):
    """Where the job writes, and where what it wrote is to go.

    The folder is made where it is not there. After a result each of its files that is not hidden is copied to ``to``
    under its own name, whole or not at all, and told with size and sha256; with ``to`` None it stays and is told.
    """

    path: str
    to: str | None = None


class TaskLimits(_Part):
    """What the measuring process may take; None: as much as there is."""

    seconds: float = Field(gt=0)
    memory_bytes: int | None = Field(default=None, gt=0)
    output_bytes: int | None = Field(default=None, gt=0)


class RemoteTask(_Part):
    """One try at one job, as ``python -m jobs.remote`` is told of it.

    With ``unsafe`` the job also runs where no sandbox can be had, as in a container that allows neither namespaces
    nor another user: then nothing but that container or node holds a stranger's file.
    """

    nonce: str = Field(pattern=NONCE_PATTERN)
    spec: JobSpec
    model_files: list[InputFile] = Field(default=[], max_length=10_000)
    outputs: OutputFolder | None = None
    #: A file that the result line is also written to, where the bot sees it: a machine's log may go with the machine.
    end: str | None = None
    limits: TaskLimits
    unsafe: bool = False


def packed(task: RemoteTask) -> str:
    """A task as the value of :data:`VARIABLE`: ASCII, without spaces.

    Raises:
        ValueError: it does not fit an environment variable.
    """
    text = base64.b64encode(zlib.compress(task.model_dump_json().encode(), 9)).decode("ascii")
    if len(text) > MAX_TEXT:
        raise ValueError(f"a task of {len(text)} characters does not fit an environment variable")
    return text


def unpacked(text: str) -> RemoteTask:
    """The task in the value of :data:`VARIABLE`.

    Raises:
        JobProtocolError: it is not one of this version's.
    """
    try:
        inflater = zlib.decompressobj()
        data = inflater.decompress(base64.b64decode(text, validate=True), _MAX_JSON)
        if not inflater.eof:
            raise ValueError("cut or too large")
        return RemoteTask.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise JobProtocolError(
            f"{VARIABLE} is not a task of this version of quantcard: {'.'.join(map(str, first['loc']))}: "
            f"{first['msg']}. Give the runner the image of the bot's version."
        ) from None
    except (binascii.Error, zlib.error, ValueError):
        raise JobProtocolError(f"{VARIABLE} holds no task: it does not unpack.") from None
