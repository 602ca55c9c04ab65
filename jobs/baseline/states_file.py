"""The states baseline: one GGUF with what entered the reference's head, from which its logits are rebuilt.

Key-values: ``quantcard.baseline`` holds :class:`StatesMeta` as JSON. Tensors (rows first)::

    tokens         I32  (n_chunks, n_ctx)          the corpus, before any BOS is put in
    nll            F64  (n_chunks, rows)           the reference's own NLL of each scored token, from true logits
    chunk_sums     I64  (n_chunks,)                per chunk: xxh3_64 of each row of states, seeded with its number,
                                                   added up mod 2**64
    self_check     F64  (2,)                       mean KLD (nats) of rebuilt from true logits; rows checked
    sample_rows    I32  (n_samples, 2)             chunk and row of the rows below
    sample_logits  F32  (n_samples, n_vocab)       the reference's true logits there, for 'baseline verify'
    bias           F32  (n_vocab,)                 of the head, if it has one
    digest         I64  (1,)                       xxh3_64 over the file up to here
    states         F16 | BF16 | F32  (n_chunks * rows, n_embd)
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from core.contract import Environment
from core.errors import BaselineError, GGUFError
from core.gguf_header import GGUFHeader, Tensor, read_file_header
from jobs.baseline.gguf_file import Planned
from jobs.baseline.kld_file import KldShape

ARCHITECTURE = "quantcard-baseline"
KEY = "quantcard.baseline"
_KINDS: dict[str, Any] = {"F16": np.float16, "BF16": np.uint16, "F32": np.float32}
_NUMPY: dict[str, Any] = {"I32": "<i4", "I64": "<i8", "F32": "<f4", "F64": "<f8"}


class StatesMeta(BaseModel):
    """What a states baseline was recorded from and how."""

    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    reference_name: str
    reference_sha256: str
    corpus_sha256: str
    vocab_sha256: str
    add_bos: bool
    n_ctx: int
    n_chunks: int
    n_vocab: int
    n_embd: int
    n_samples: int
    state_type: Literal["F16", "BF16", "F32"]
    head_file: str
    scale: float = 1.0
    softcap: float = 0.0
    has_bias: bool = False
    n_batch: int
    n_ubatch: int
    type_k: str
    type_v: str
    flash_attn: str
    environment: Environment

    @property
    def shape(self) -> KldShape:
        """The sizes that both formats share."""
        return KldShape(self.n_ctx, self.n_vocab, self.n_chunks)


def plan(meta: StatesMeta) -> list[Planned]:
    """The tensors of a file with this description."""
    rows = meta.shape.rows_per_chunk
    return [
        Planned("tokens", (meta.n_chunks, meta.n_ctx), "I32"),
        Planned("nll", (meta.n_chunks, rows), "F64"),
        Planned("chunk_sums", (meta.n_chunks,), "I64"),
        Planned("self_check", (2,), "F64"),
        Planned("sample_rows", (meta.n_samples, 2), "I32"),
        Planned("sample_logits", (meta.n_samples, meta.n_vocab), "F32"),
        *([Planned("bias", (meta.n_vocab,), "F32")] if meta.has_bias else []),
        Planned("digest", (1,), "I64"),
        Planned("states", (meta.n_chunks * rows, meta.n_embd), meta.state_type),
    ]


def stored(states: NDArray[np.float32], kind: str) -> NDArray[Any]:
    """States in the type they are stored as; BF16 as the upper 16 bits, rounded half to even as ggml rounds."""
    if kind != "BF16":
        with np.errstate(over="ignore"):  # what does not fit is found by the check against true logits
            return states.astype(_KINDS[kind])
    bits = np.ascontiguousarray(states).view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(states), np.uint16(0x7FC0), rounded)


def restored(values: NDArray[Any], kind: str) -> NDArray[np.float32]:
    """What :func:`stored` gave, as f32."""
    if kind != "BF16":
        return values.astype(np.float32)
    return (values.astype(np.uint32) << 16).view(np.float32)


def digest(path: Path, end: int) -> int:
    """Checksum of a file's first ``end`` bytes, as a signed 64-bit number."""
    state = xxhash.xxh3_64()
    with path.open("rb") as file:
        while end > 0 and (piece := file.read(min(end, 1 << 20))):
            state.update(piece)
            end -= len(piece)
    return signed(state.intdigest())


def signed(value: int) -> int:
    """An unsigned 64-bit number as GGUF's I64 holds it."""
    return value - (1 << 64) if value >= 1 << 63 else value


def is_states_file(path: Path) -> bool:
    """Whether a file is a GGUF and so can only be a states baseline."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


class StatesReader:
    """A states baseline opened for reading: header, tokens, NLL and checksums in memory, states read where wanted.

    Raises:
        BaselineError: missing, not a baseline, truncated or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            header = read_file_header(path)
        except GGUFError as error:
            raise BaselineError(f"The baseline can't be used: {error}") from error
        if header.architecture != ARCHITECTURE:
            raise BaselineError(
                f"{path} is a model, not a baseline. Record one from it with 'quantcard baseline record'."
            )
        self.meta = _meta(path, header)
        self._tensors = {tensor.name: tensor for tensor in header.tensors}
        self._start = header.data_start
        wanted = {p.name: (p.shape, p.kind) for p in plan(self.meta)}
        if wanted != {t.name: (t.shape[::-1], t.type_name) for t in header.tensors}:
            raise BaselineError(f"{path} is damaged: its tensors are not what it says of itself. Record it again.")
        if digest(path, self._place("digest")) != int(self._array("digest")[0]):
            raise BaselineError(f"{path} is damaged: its checksum does not hold. Record it again.")
        self.shape = self.meta.shape
        self.tokens: NDArray[np.int32] = self._array("tokens").astype(np.int32)
        if int(self.tokens.min()) < 0 or int(self.tokens.max()) >= self.meta.n_vocab:
            raise BaselineError(f"{path} is damaged: it holds token ids outside its vocabulary. Record it again.")
        self.nll: NDArray[np.float64] = self._array("nll")
        self.chunk_sums = [int(value) & ((1 << 64) - 1) for value in self._array("chunk_sums")]
        self.bias = self._array("bias").astype(np.float32) if self.meta.has_bias else np.zeros(0, np.float32)
        self._file = os.open(path, os.O_RDONLY)

    def _place(self, name: str) -> int:
        return self._start + self._tensors[name].offset

    def _array(self, name: str) -> NDArray[Any]:
        tensor: Tensor = self._tensors[name]
        values = np.fromfile(self.path, _NUMPY[tensor.type_name], tensor.n_elements, offset=self._place(name))
        return values.reshape(tensor.shape[::-1])

    def samples(self) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """(chunk and row, shape (n, 2); true logits there, shape (n, n_vocab))."""
        places = self._array("sample_rows").astype(np.int32)
        if (places < 0).any() or (places >= [self.shape.n_chunks, self.shape.rows_per_chunk]).any():
            raise BaselineError(f"{self.path} is damaged: its sample rows can't be. Record it again.")
        return places, self._array("sample_logits").astype(np.float32)

    @property
    def head(self) -> Path:
        """Where the output head stands: beside the baseline."""
        return self.path.with_name(self.meta.head_file)

    def close(self) -> None:
        """Close the file; safe to call twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def read(self, chunk: int, row: int, n: int) -> NDArray[Any]:
        """Stored states of one chunk from ``row`` on, shape (n, n_embd), in their own type.

        Raises:
            BaselineError: the file ends early (it was cut while we read).
        """
        kind = _KINDS[self.meta.state_type]
        width = self.meta.n_embd * np.dtype(kind).itemsize
        offset = self._place("states") + (chunk * self.shape.rows_per_chunk + row) * width
        data = os.pread(self._file, n * width, offset)
        if len(data) != n * width:
            raise BaselineError(f"{self.path} is damaged: it ends within chunk {chunk}. Record it again.")
        return np.frombuffer(data, kind).reshape(n, self.meta.n_embd)

    def prefetch(self, chunks: range) -> None:
        """Ask the system to read these chunks ahead, where it can be asked."""
        if hasattr(os, "posix_fadvise") and len(chunks):
            row = self.meta.n_embd * np.dtype(_KINDS[self.meta.state_type]).itemsize
            rows = self.shape.rows_per_chunk
            start = self._place("states") + chunks.start * rows * row
            os.posix_fadvise(self._file, start, len(chunks) * rows * row, os.POSIX_FADV_WILLNEED)


def _meta(path: Path, header: GGUFHeader) -> StatesMeta:
    try:
        meta = StatesMeta.model_validate_json(header.kv.get(KEY) or "")
    except (ValidationError, TypeError, ValueError):
        raise BaselineError(
            f"{path} is damaged, or was recorded by another version of quantcard. Record it again."
        ) from None
    if (
        not meta.head_file
        or Path(meta.head_file).name != meta.head_file
        or meta.n_ctx < 4
        or meta.n_chunks < 1
        or meta.n_vocab < 1
    ):
        raise BaselineError(f"{path} is damaged: what it says of itself can't be. Record it again.")
    return meta
