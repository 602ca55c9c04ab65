"""A reference's output head as a GGUF of its own, which llama.cpp loads and runs on any device.

It is a ``llama`` of one block whose weights are zero, so that the residual carries the states through, and whose
(tied) embedding is the head. llama.cpp norms before the head; to undo that exactly, states get extra channels, with
zero weights in the head, whose value makes the mean square of the row a power of four: the norm then divides by a
power of two, and the norm's weights multiply by it.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from core.canonical import storage_error
from core.closes import Closes
from core.contract import Machine
from core.errors import BaselineError, GGUFError
from core.gguf_header import GGUFHeader, Tensor, read_file_header
from jobs.baseline.gguf_file import Planned, block_size, lay_out
from jobs.baseline.head_rules import HeadNotSupported, HeadRule, head_rule, head_tensor
from jobs.context import StatesContext
from jobs.llama import Model, shard_paths

VERSION = 1
#: The norm divides by 2**11 and its weights multiply by it: room for states of a root mean square of 2,048, while the
#: extra channels, which enter the head as they are, stay within F16 (weights of zero do not help against infinity).
_RMS = float(1 << 11)
_EPS = 1e-30
#: Extra channels of a head of plain floats; a quantized head gets one block.
_PAD = 32
#: Width of the idle attention and feed-forward of the block.
_IDLE = 32
_COPY_BYTES = 64 << 20
#: The checksum's place in the header: found by what stands before it, well within the first bytes.
_SUM_MARK = b"quantcard xxh3 "
_BLANK = b"0" * 16
_SUM_WITHIN = 1 << 16


@dataclass(frozen=True, slots=True)
class HeadSource:
    """Where a reference keeps its head, and what its graph does around it."""

    shard: Path
    data_start: int
    tensor: Tensor
    rule: HeadRule
    bias: NDArray[np.float32] | None

    @property
    def n_embd(self) -> int:
        """Width of a state."""
        return self.tensor.shape[0]

    @property
    def n_vocab(self) -> int:
        """Rows of the head."""
        return self.tensor.shape[1]

    @property
    def state_type(self) -> str:
        """What states are stored as: what llama.cpp turns them into before it multiplies them with this head."""
        return {"F16": "F16", "BF16": "BF16"}.get(self.tensor.type_name, "F32")


def find_head(reference: Path) -> HeadSource:
    """The head of a reference, which may be split over shards.

    Raises:
        GGUFError: the file is no GGUF.
        HeadNotSupported: its logits can't be rebuilt from states.
    """
    found: dict[str, tuple[Path, GGUFHeader, Tensor]] = {}
    headers = [(shard, read_file_header(shard)) for shard in shard_paths(reference)]
    for shard, header in headers:
        found |= {tensor.name: (shard, header, tensor) for tensor in header.tensors}
    rule = head_rule(headers[0][1].kv, found.keys())
    shard, header, tensor = found[head_tensor(found.keys())]
    if tensor.type_name.startswith("TYPE_") or len(tensor.shape) != 2:
        raise HeadNotSupported(f"{tensor.name} is of a type or shape that is not known here.")
    bias = None
    if rule.bias:
        where, its_header, info = found[rule.bias]
        if info.type_name != "F32":
            raise HeadNotSupported(f"{rule.bias} is {info.type_name}, not F32.")
        bias = np.fromfile(where, "<f4", info.n_elements, offset=its_header.data_start + info.offset)
    return HeadSource(shard, header.data_start, tensor, rule, bias)


def make_head(source: HeadSource, out: Path, *, reference_sha256: str) -> bool:
    """Write a reference's head to ``out``, whole or not at all; whether it did: nothing if it stands there already.

    Raises:
        StorageError: no room for it.
    """
    if _is_head_of(out, source, reference_sha256):
        return False
    part = out.with_name(f".{out.name}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _locked(out.parent):
            # Another process may have been making the same head.
            if _is_head_of(out, source, reference_sha256):
                return False
            try:
                _write(source, part, reference_sha256)
                part.replace(out)
            finally:
                part.unlink(missing_ok=True)
            return True
    except OSError as error:
        raise storage_error(out, error) from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Only one process at a time makes heads in a folder; the folder itself is locked, so that no file is left."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _is_head_of(path: Path, source: HeadSource, reference_sha256: str) -> bool:
    try:
        kv = check_head(path, reference_sha256=reference_sha256)
    except BaselineError:
        return False
    return bool(kv.get("quantcard.head.tensor") == source.tensor.name)


def check_head(path: Path, *, reference_sha256: str) -> dict[str, Any]:
    """The key-values of ``path``; :class:`BaselineError` unless it is the whole and undamaged head of that
    reference."""
    if not path.exists():
        raise BaselineError(f"{path} is missing: the baseline's output head stands beside it. Record it again.")
    try:
        kv = read_file_header(path).kv
    except GGUFError as error:
        raise BaselineError(f"The baseline's output head is damaged: {error} Record it again.") from error
    if kv.get("quantcard.head.version") != VERSION:
        raise BaselineError(f"{path} is no output head of this version of quantcard. Record the baseline again.")
    found, told = _sum(path)
    if found != told:
        raise BaselineError(f"{path} is damaged: its checksum does not hold. Record the baseline again.")
    if kv.get("quantcard.head.reference_sha256") != reference_sha256:
        raise BaselineError(f"{path} is the output head of another reference. Record the baseline again.")
    return kv


def _sum(path: Path) -> tuple[str, str]:
    """A head's checksum as it is (xxh3 of the file with the checksum's own place blank), and as it says."""
    state = xxhash.xxh3_64()
    with path.open("rb") as file:
        begin = file.read(_SUM_WITHIN)
        at = begin.find(_SUM_MARK) + len(_SUM_MARK)
        told = begin[at : at + len(_BLANK)]
        state.update(begin[:at] + _BLANK + begin[at + len(_BLANK) :])
        while piece := file.read(1 << 20):
            state.update(piece)
    return state.hexdigest(), told.decode("ascii", "replace")


def _write(source: HeadSource, path: Path, reference_sha256: str) -> None:
    kind = source.tensor.type_name
    width = source.n_embd + (_PAD if block_size(kind) == 1 else block_size(kind))
    tensors = [
        Planned("token_embd.weight", (source.n_vocab, width), kind),
        Planned("output_norm.weight", (width,), "F32"),
        *(Planned(f"blk.0.{name}.weight", (width,), "F32") for name in ("attn_norm", "ffn_norm")),
        *(
            Planned(f"blk.0.{name}.weight", (_IDLE, width), "F32")
            for name in ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up")
        ),
        *(Planned(f"blk.0.{name}.weight", (width, _IDLE), "F32") for name in ("attn_output", "ffn_down")),
    ]
    metadata: dict[str, Any] = {
        "general.name": f"Output head of {source.shard.name}",
        "llama.vocab_size": source.n_vocab,
        "llama.context_length": 1 << 20,
        "llama.embedding_length": width,
        "llama.block_count": 1,
        "llama.feed_forward_length": _IDLE,
        "llama.attention.head_count": 1,
        "llama.attention.head_count_kv": 1,
        "llama.attention.key_length": _IDLE,
        "llama.attention.value_length": _IDLE,
        "llama.rope.dimension_count": _IDLE,
        "llama.attention.layer_norm_rms_epsilon": _EPS,
        "tokenizer.ggml.model": "no_vocab",
        "quantcard.head.version": VERSION,
        "quantcard.head.reference_sha256": reference_sha256,
        "quantcard.head.tensor": source.tensor.name,
        "quantcard.head.sum": (_SUM_MARK + _BLANK).decode(),
    }
    places = lay_out(path, "llama", metadata, tensors)
    by_name = {tensor.name: tensor for tensor in tensors}
    with path.open("r+b") as target, source.shard.open("rb") as origin:
        target.seek(places["output_norm.weight"])
        target.write(np.full(width, _RMS, "<f4").tobytes())
        for name in ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"):
            target.seek(places[name])
            target.write(np.ones(width, "<f4").tobytes())
        _copy_padded(source, origin, target, places["token_embd.weight"], by_name["token_embd.weight"].row_bytes)
        target.flush()
        begin = _begin(path)
        target.seek(begin.find(_SUM_MARK) + len(_SUM_MARK))
        target.write(_sum(path)[0].encode())
        target.flush()
        os.fsync(target.fileno())


def _begin(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_SUM_WITHIN)


def _copy_padded(source: HeadSource, origin: Any, target: Any, place: int, row_bytes: int) -> None:
    """Copy the head's rows, each with zeros behind it (all bits 0 mean 0 in every type)."""
    old = source.tensor.n_bytes // source.n_vocab
    step = max(1, _COPY_BYTES // row_bytes)
    origin.seek(source.data_start + source.tensor.offset)
    target.seek(place)
    for start in range(0, source.n_vocab, step):
        n = min(step, source.n_vocab - start)
        data = np.frombuffer(origin.read(n * old), np.uint8)
        rows = np.zeros((n, row_bytes), np.uint8)
        rows[:, :old] = data.reshape(n, old)
        target.write(rows.tobytes())


def padded(states: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """States, shape (n, n_embd), with channels behind them that make each row's mean square exactly 2**22.

    llama.cpp squares in f32 and adds in f64. Most of the channels share what is missing evenly, the last three meet
    the sum to the last bit of the mean. A row that is larger already is left as it is, and will not be rebuilt right.
    """
    n, n_embd = states.shape
    out = np.zeros((n, width), np.float32)
    out[:, :n_embd] = states
    with np.errstate(over="ignore", invalid="ignore"):
        rest = width * _RMS * _RMS - (states * states).sum(axis=1, dtype=np.float64)
        rest = np.where(rest > 0, rest, 0)
        even = width - n_embd - 3
        for channels in (slice(n_embd, n_embd + even), *(slice(k, k + 1) for k in range(width - 3, width))):
            count = channels.stop - channels.start
            value = np.sqrt(rest / count).astype(np.float32)
            # Never more than what is missing: what is too little, the next channels add.
            value = np.where(count * _square(value) > rest, np.nextafter(value, np.float32(0)), value)
            out[:, channels] = value[:, None]
            rest = rest - count * _square(value)
    return out


def _square(value: NDArray[np.float32]) -> NDArray[np.float64]:
    return (value * value).astype(np.float64)


class Head(Closes):
    """A head's GGUF, loaded to run. Use as a context manager.

    Args:
        n_rows: most states at a time.

    Raises:
        BaselineError: the file is missing or is not the head of that reference.
    """

    def __init__(
        self, path: Path, *, reference_sha256: str, n_embd: int, machine: Machine, n_rows: int, n_threads: int
    ) -> None:
        check_head(path, reference_sha256=reference_sha256)
        self.seconds = 0.0
        self.n_rows = n_rows
        with ExitStack() as stack:
            self._model = stack.enter_context(Model(path, machine, is_head=True))
            self._context = stack.enter_context(StatesContext(self._model, n_rows=n_rows, n_threads=n_threads))
            self.n_vocab = self._model.n_vocab
            if self._model.n_embd <= n_embd:
                raise BaselineError(f"{path} does not fit the baseline's states. Record the baseline again.")
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Free model and context; safe to call twice."""
        self._stack.close()

    def run(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """The head's raw output for states, shape (n, n_embd) -> (n, n_vocab): a view, valid until the next call."""
        begin = time.perf_counter()
        out = self._context.run(padded(states, self._model.n_embd))
        self.seconds += time.perf_counter() - begin
        return out
