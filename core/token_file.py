"""The token file: every scored token's figures, so that two variants can be compared pair-wise on the same tokens.

It is plain parquet for whoever wants to look inside. A checksum over the whole file stands in its footer, so that
no damaged byte gets as far as a figure, or as far as the parquet library.
"""

from __future__ import annotations

import hashlib
import json
import stat
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.canonical import write_atomic
from core.contract import Scoring
from core.errors import TokenFileError
from core.statistics import F32

FORMAT = "quantcard-tokens"
VERSION = 1

#: Larger is none: a token has 16 bytes or so, and 32 unpacked.
MAX_BYTES = 4 << 30

_MAGIC = b"PAR1"
#: Before the checksum's 64 hex digits; the line break keeps it apart from any text in the JSON, where there is none.
_MARK = b"\nquantcard-tokens sha256 "
_BLANK = b"0" * 64
_COLUMNS: dict[str, Any] = {
    "chunk": pa.int32(),
    "position": pa.int32(),
    "token": pa.int32(),
    "nll": pa.float32(),
    "nll_base": pa.float32(),
    "kld": pa.float32(),
    "p_top_base": pa.float32(),
    "same_top": pa.bool_(),
}
_SCHEMA = pa.schema([pa.field(name, kind, nullable=False) for name, kind in _COLUMNS.items()])
_FLOATS = ["nll", "nll_base", "kld", "p_top_base"]


class TokenMeta(BaseModel):
    """What was measured against what, and how; hashes are None where they are not known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="name of the variant's file, for people")
    model_sha256: str | None = None
    baseline_sha256: str | None = None
    reference_sha256: str | None = None
    protocol: dict[str, Any] = {}
    scoring: Scoring
    environment: str | None = Field(default=None, description="fingerprint of the environment")


@dataclass(frozen=True, slots=True, eq=False)
class TokenFile:
    """Per-token values of shape (n_chunks, rows_per_chunk), in corpus order; nats, fractions, f32.

    ``first`` is the position in the chunk of the first row: row i's context ends with the token at ``first + i``, and
    ``token`` is the one that followed it, whose likelihood ``nll`` tells. ``p_top_base`` is the probability that the
    baseline gave its favourite. Other number types are cast (an f64 ``kld`` too).

    Raises:
        ValueError: nothing scored, shapes differ, or a value is not finite.
    """

    meta: TokenMeta
    first: int
    token: NDArray[np.int32]
    nll: F32
    nll_base: F32
    kld: F32
    p_top_base: F32
    same_top: NDArray[np.bool_]

    def __post_init__(self) -> None:
        kinds = {"token": np.int32, "same_top": np.bool_} | dict.fromkeys(_FLOATS, np.float32)
        for field in fields(self)[2:]:
            values: NDArray[Any] = np.ascontiguousarray(getattr(self, field.name), dtype=kinds[field.name])
            if values.ndim != 2 or not values.size or values.shape != np.shape(self.token):
                raise ValueError(f"{field.name} is of shape {values.shape}, tokens of {np.shape(self.token)}")
            if not np.isfinite(values).all():
                raise ValueError(f"{field.name} is not finite everywhere")
            object.__setattr__(self, field.name, values)

    @classmethod
    def of_chunks(cls, meta: TokenMeta, chunks: NDArray[np.integer], **values: NDArray[Any]) -> TokenFile:
        """The file for chunks of tokens (n_chunks, n_ctx) whose last rows were scored; ``values`` by field name."""
        first = chunks.shape[1] - 1 - values["nll"].shape[1]
        return cls(meta=meta, first=first, token=chunks[:, first + 1 :].astype(np.int32), **values)

    @property
    def n_chunks(self) -> int:
        return self.nll.shape[0]

    @property
    def rows_per_chunk(self) -> int:
        return self.nll.shape[1]


def write_tokens(path: Path, tokens: TokenFile) -> str:
    """Write ``tokens`` to ``path`` whole or not at all; gives the file's sha256. Equal data makes equal bytes.

    Raises:
        StorageError: the disk is full or the folder can't be written.
    """
    data = _encode(tokens)
    write_atomic(path, data)
    return hashlib.sha256(data).hexdigest()


def read_tokens(path: Path) -> TokenFile:
    """The token file at ``path``.

    Raises:
        TokenFileError: it is missing, damaged, not ours or of a newer version.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_BYTES:
            raise TokenFileError(f"{path} can't be read: it is no file, or far too large for a token file.")
        with path.open("rb") as file:
            begin = file.read(len(_MAGIC))
            if len(begin) == len(_MAGIC) and begin != _MAGIC:
                hint = " Measure it with 'quantcard measure quality --tokens'." if path.suffix == ".gguf" else ""
                raise TokenFileError(f"{path} is no parquet file, so no token file of quantcard.{hint}")
        data = path.read_bytes()
    except FileNotFoundError:
        raise TokenFileError(f"There is no token file at {path}.") from None
    except OSError as error:
        raise TokenFileError(f"{path} can't be read ({error.strerror}).") from error
    _check_whole(path, data)
    try:
        return _decode(path, data)
    except (pa.ArrowException, OSError, ValidationError, ValueError, KeyError, TypeError) as error:
        raise TokenFileError(f"{path} is not a token file as quantcard writes it: {error}") from error


def _places(tokens: TokenFile) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Chunk and position of every row."""
    shape = tokens.nll.shape
    chunk, row = (np.broadcast_to(index, shape).ravel() for index in np.ogrid[: shape[0], : shape[1]])
    return chunk.astype(np.int32), (row + tokens.first).astype(np.int32)


def _encode(tokens: TokenFile) -> bytes:
    chunk, position = _places(tokens)
    columns = {"chunk": chunk, "position": position}
    columns |= {name: getattr(tokens, name).ravel() for name in _COLUMNS if name not in columns}
    shape = {"n_chunks": tokens.n_chunks, "rows_per_chunk": tokens.rows_per_chunk, "first": tokens.first}
    # ASCII, since a name may hold what has no UTF-8.
    about = json.dumps(tokens.meta.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False)
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "shape": json.dumps(shape, sort_keys=True, separators=(",", ":")),
        "meta": about,
        "checksum": _MARK + _BLANK,
    }
    sink = pa.BufferOutputStream()
    writer = pq.ParquetWriter(
        sink,
        _SCHEMA,
        compression="zstd",
        compression_level=9,
        use_dictionary=["token"],
        use_byte_stream_split=_FLOATS,
        column_encoding={"chunk": "DELTA_BINARY_PACKED", "position": "DELTA_BINARY_PACKED"},
        store_schema=False,
    )
    with writer:
        writer.write_table(pa.table(columns, schema=_SCHEMA), row_group_size=1 << 20)
        writer.add_key_value_metadata(metadata)
    data = bytearray(sink.getvalue())
    at = data.rindex(_MARK) + len(_MARK)
    data[at : at + len(_BLANK)] = hashlib.sha256(data).hexdigest().encode()
    return bytes(data)


def _check_whole(path: Path, data: bytes) -> None:
    """Raise unless every byte is as it was written."""
    again = "Measure the variant again, or fetch the file again."
    if not data:
        raise TokenFileError(f"{path} is empty. {again}")
    if not data.startswith(_MAGIC):
        raise TokenFileError(f"{path} is not a token file (it is no parquet file).")
    if len(data) < 2 * len(_MAGIC) or not data.endswith(_MAGIC):
        raise TokenFileError(f"{path} is damaged: its end is missing. {again}")
    at = data.rfind(_MARK) + len(_MARK)
    if at < len(_MARK):
        raise TokenFileError(f"{path} is a parquet file, but not a token file of quantcard, or it is damaged.")
    digest = hashlib.sha256(data[:at])
    digest.update(_BLANK)
    digest.update(data[at + len(_BLANK) :])
    if digest.hexdigest().encode() != data[at : at + len(_BLANK)]:
        raise TokenFileError(f"{path} is damaged: it fails its checksum. {again}")


def _decode(path: Path, data: bytes) -> TokenFile:
    with pq.ParquetFile(pa.BufferReader(data)) as file:
        metadata = file.metadata.metadata or {}
        if metadata[b"format"] != FORMAT.encode():
            raise ValueError("it says to be of another format")
        if (version := int(metadata[b"version"])) > VERSION:
            raise TokenFileError(
                f"{path} is of version {version} of the format; this quantcard reads up to {VERSION}. Update quantcard."
            )
        if not file.schema_arrow.equals(_SCHEMA):
            raise ValueError("its columns are others")
        shape = json.loads(metadata[b"shape"])
        size = int(shape["n_chunks"]), int(shape["rows_per_chunk"])
        # Before anything is unpacked: few bytes may claim to be very many.
        unpacked = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
        if file.metadata.num_rows != size[0] * size[1] or unpacked > MAX_BYTES:
            raise ValueError("its sizes can't be")
        table = file.read()
    arrays = {name: table[name].to_numpy() for name in _COLUMNS}
    tokens = TokenFile(
        meta=TokenMeta.model_validate(json.loads(metadata[b"meta"])),
        first=int(shape["first"]),
        **{name: arrays[name].reshape(size) for name in _COLUMNS if name not in ("chunk", "position")},
    )
    chunk, position = _places(tokens)
    if not (np.array_equal(arrays["chunk"], chunk) and np.array_equal(arrays["position"], position)):
        raise ValueError("its rows are out of order")
    return tokens
