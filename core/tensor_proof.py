"""Whether a GGUF holds a checkpoint's own weights: which pieces to compare, and what comparing them says. Pure.

Every tensor is sampled, over as many turns as that takes, at a place that follows from a seed. The seed is drawn after
the file was uploaded, so that nobody can know beforehand what to leave as it is; whoever knows it can repeat the
comparison.
"""

from __future__ import annotations

import hashlib
import json
from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from core.conversion import FLOATS, Rules, as_floats, converted, heads_of, role_of
from core.correspondence import EMBEDDINGS, HEAD, Counterpart
from core.gguf_header import Tensor
from core.safetensors import SafeTensor

#: ``partly``: what was compared is the same, but not every tensor was yet.
Verdict = Literal["proven", "partly", "differs", "unprovable"]

#: Bytes of the GGUF that one piece has, where its tensor is that large.
PIECE: Final = 32 << 10
#: A longer row is not read; whole rows are compared where they were reordered.
MAX_ROW: Final = 1 << 20
#: Ranges that lie no further apart (bytes) are read in one request.
GAP: Final = 64 << 10
#: Tensors that a proof needs at least.
MIN_TENSORS: Final = 8


@dataclass(frozen=True, slots=True)
class Piece:
    """What is compared: a GGUF tensor, and whose values they were."""

    tensor: str
    counterpart: Counterpart


@dataclass(frozen=True, slots=True)
class Span:
    """Where a piece lies in both files (bytes; of the GGUF from its tensor data's start), and how it was converted.

    The checkpoint's rows, of ``row`` values each, are every ``stride``-th of the GGUF's, from ``phase`` on.
    """

    piece: Piece
    gguf_offset: int
    gguf_bytes: int
    gguf_type: str
    base_offset: int
    base_bytes: int
    base_type: str
    row: int
    stride: int
    phase: int
    shift: float

    @property
    def n_values(self) -> int:
        """Values that are compared."""
        return self.base_bytes // FLOATS[self.base_type]


class Draw:
    """Random numbers that follow from a seed, the same in every version of everything."""

    def __init__(self, *seed: str) -> None:
        self._seed = hashlib.sha256("\0".join(seed).encode()).digest()
        self._n = 0

    def below(self, n: int) -> int:
        """A number from 0 to n - 1."""
        self._n += 1
        return int.from_bytes(hashlib.sha256(self._seed + self._n.to_bytes(8, "little")).digest(), "little") % n

    def start(self, total: int, n: int) -> int:
        """Where ``n`` of ``total`` values begin, so that the outermost ones are taken as often as all others."""
        return min(max(self.below(total + n - 1) - n + 1, 0), total - n)


@dataclass(frozen=True, slots=True)
class Seen:
    """What earlier turns compared: tensors of the GGUF and files of the checkpoint, by their number in sorted order.

    ``turns`` counts the turns, ``values`` all values that were compared; ``weights`` says which of the base model's.
    """

    tensors: frozenset[int] = frozenset()
    files: frozenset[int] = frozenset()
    turns: int = 0
    values: int = 0
    weights: str = ""

    def text(self) -> str:
        """As it is stored: JSON, the numbers as bits."""
        bits = {"tensors": self.tensors, "files": self.files}
        masks = {name: f"{sum(1 << number for number in numbers):x}" for name, numbers in bits.items()}
        return json.dumps(masks | {"turns": self.turns, "values": self.values, "weights": self.weights})

    @classmethod
    def of(cls, text: str) -> Seen:
        """What :meth:`text` stored; nothing of what is no such text."""
        try:
            found = json.loads(text)
            masks = [int(found[name], 16) for name in ("tensors", "files")]
            sets = [frozenset(i for i in range(mask.bit_length()) if mask >> i & 1) for mask in masks]
            return cls(sets[0], sets[1], int(found["turns"]), int(found["values"]), str(found["weights"]))
        except (ValueError, TypeError, KeyError):
            return cls()


def in_turn(names: Sequence[str], draw: Draw) -> list[str]:
    """Names in their order from a random one on.

    Neighbours stay together, so that few files have to be opened in one turn.
    """
    start = draw.below(len(names)) if names else 0
    return [*names[start:], *names[:start]]


def merged(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted ranges (start, end), those together that lie no more than :data:`GAP` apart."""
    found: list[tuple[int, int]] = []
    for start, end in ranges:
        if found and start - found[-1][1] <= GAP:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found


class Plan:
    """Ranges of files that are to be read within so many requests and bytes."""

    def __init__(self, *, requests: int, n_bytes: int) -> None:
        self.requests, self.n_bytes = requests, n_bytes
        self._ranges: dict[str, list[tuple[int, int]]] = {}
        self._costs: dict[str, tuple[int, int]] = {}

    @property
    def cost(self) -> tuple[int, int]:
        """(requests, bytes) so far."""
        return sum(one for one, _ in self._costs.values()), sum(two for _, two in self._costs.values())

    def add(self, ranges: Mapping[str, tuple[int, int]]) -> bool:
        """Take a (start, end) of each of some files in, unless that is too much; whether they were."""
        before = {file: self._costs.get(file) for file in ranges}
        for file, one in ranges.items():
            insort(self._ranges.setdefault(file, []), one)
            joined = merged(self._ranges[file])
            self._costs[file] = len(joined), sum(end - start for start, end in joined)
        requests, n_bytes = self.cost
        if requests <= self.requests and n_bytes <= self.n_bytes:
            return True
        for file, one in ranges.items():
            self._ranges[file].remove(one)
            cost = before[file]
            if cost is None:
                del self._costs[file], self._ranges[file]
            else:
                self._costs[file] = cost
        return False

    def requests_of(self, file: str) -> list[tuple[int, int]]:
        """(start, end) of each request for a file, sorted."""
        return merged(self._ranges.get(file, ()))


def span_of(
    piece: Piece, tensor: Tensor, base: SafeTensor, rules: Rules, config: Mapping[str, object], draw: Draw
) -> Span | str:
    """Which values of a piece to compare, or why they can't be, in words."""
    if tensor.type_name not in FLOATS or base.dtype not in FLOATS:
        return f"{tensor.name} is kept in {tensor.type_name}, {base.name[:100]} in {base.dtype}"
    shape = tensor.shape[::-1]
    expert = piece.counterpart.expert
    inner = shape if expert is None else shape[1:]
    # Rows of tokens that the tokenizer does not know are cut off by some converters.
    cut = rules.cuts_tokens and tensor.name in (EMBEDDINGS, HEAD) and len(inner) == len(base.shape) == 2
    fits = inner == base.shape or (
        cut and inner[1] == base.shape[1] and base.shape[0] > inner[0] >= base.shape[0] * 9 // 10
    )
    if not fits or 0 in inner or (expert is not None and expert >= shape[0]):
        return f"{tensor.name} has the shape {_shape(inner)}, {base.name[:100]} has {_shape(base.shape)}"
    total = _product(inner)
    row, stride, phase = 1, 1, 0
    if rules.permuted and role_of(tensor.name).startswith(("blk.*.attn_q.", "blk.*.attn_k.")):
        # The two halves of each head's rows stand there by turns: some rows of one half, wherever they went to.
        heads = heads_of(tensor.name, config)
        if heads is None or not 1 <= len(inner) <= 2 or inner[0] % (2 * heads):
            return f"the heads of {tensor.name} can't be told apart"
        row, stride, phase = (inner[1] if len(inner) == 2 else 1), 2, draw.below(2)
        wide = row * FLOATS[tensor.type_name]
        if wide > MAX_ROW:
            return f"a row of {tensor.name} would be too large"
        half = inner[0] // heads // 2
        n = min(half, max(1, PIECE // 2 // wide))
        head, first = draw.below(heads), draw.start(half, n)
        ours, theirs = head * 2 * half + 2 * first, (head * 2 + phase) * half + first
    else:
        n = min(total, PIECE // FLOATS[tensor.type_name])
        ours = theirs = draw.start(total, n)
    ours += (expert or 0) * total // row
    wide, narrow = row * FLOATS[tensor.type_name], row * FLOATS[base.dtype]
    return Span(
        piece,
        gguf_offset=tensor.offset + ours * wide,
        gguf_bytes=n * stride * wide,
        gguf_type=tensor.type_name,
        base_offset=base.offset + theirs * narrow,
        base_bytes=n * narrow,
        base_type=base.dtype,
        row=row,
        stride=stride,
        phase=phase,
        shift=rules.norm_shift if tensor.name.endswith("norm.weight") else 0.0,
    )


def _product(shape: Sequence[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "one value"


def n_different(span: Span, gguf: bytes | memoryview, base: bytes | memoryview) -> int:
    """How many values of a piece are not what converting the checkpoint's gives."""
    values = as_floats(base, span.base_type)
    if span.shift:
        values = values + np.float32(span.shift)
    found = as_floats(gguf, span.gguf_type)
    if span.stride > 1:
        found = found.reshape(-1, span.row)[span.phase :: span.stride].reshape(-1)
    return differing(found, converted(values, span.gguf_type))


def differing(found: NDArray[np.float32], expected: NDArray[np.float32]) -> int:
    """How many values are not the same. All NaNs are one, and so is all that is too small to be normal: some
    converters write zero for it."""
    a, b = found.reshape(-1), expected.reshape(-1)
    tiny = np.float32(np.finfo(np.float32).tiny)
    same = (a == b) | (np.isnan(a) & np.isnan(b)) | ((np.abs(a) < tiny) & (np.abs(b) < tiny))
    return int(np.count_nonzero(~same))


@dataclass(frozen=True, slots=True)
class Compared:
    """A piece that was compared: its values, and how many of them differed."""

    piece: Piece
    n_values: int
    n_different: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict with its reason, a sentence. ``by_values``: because sampled values differ."""

    verdict: Verdict
    detail: str
    by_values: bool = False


def judge(
    compared: Sequence[Compared], *, rules: Rules, uncovered: Sequence[str], seen: Seen, n_tensors: int, n_files: int
) -> Judgement:
    """What the comparison says.

    A difference is held against a file only where its class's conversion is known: other converters may do more than
    rename. Equal values prove all the same, since nothing makes them equal by chance.

    Args:
        compared: in this turn.
        uncovered: tensors that could not be compared, in words.
        seen: with this turn.
        n_tensors: of the GGUF, without generated ones.
        n_files: of the checkpoint, that hold some of the text model.
    """
    for one in compared:
        if one.n_different:
            said = (
                f"{one.n_different:,} of {one.n_values:,} sampled values of {one.piece.tensor} are not those of "
                f"{one.piece.counterpart.name[:100]}"
            )
            if rules.known:
                return Judgement("differs", sentence(said), by_values=True)
            return Judgement("unprovable", f"How this class is converted is not known here, and {said}.")
    if uncovered:
        more = f" (and {len(uncovered) - 1} more)" if len(uncovered) > 1 else ""
        return Judgement("unprovable", f"Not every tensor can be compared: {uncovered[0]}{more}.")
    if n_tensors < MIN_TENSORS:
        return Judgement("unprovable", f"Only {n_tensors} tensors could be compared.")
    done = len(seen.tensors)
    if done < n_tensors or len(seen.files) < n_files:
        return Judgement("partly", f"{done:,} of {n_tensors:,} tensors were compared so far, and are the same.")
    return Judgement("proven", f"{seen.values:,} sampled values of all {n_tensors:,} tensors are the same.")


def sentence(text: str) -> str:
    """Words as a sentence."""
    return f"{text[:1].upper()}{text[1:]}."
