"""Whether a GGUF holds a checkpoint's own weights: which pieces to compare, and what comparing them says. Pure.

The sample follows from a seed that is drawn after the file was uploaded, so that nobody can know beforehand which
pieces to leave as they are; whoever knows the seed can repeat it. Every kind of tensor is compared at least once, in
a random block; the rest of the budget goes to random tensors, larger ones more often.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from core.conversion import FLOATS, Rules, as_floats, converted, heads_of, permuted, role_of
from core.gguf_header import Tensor
from core.safetensors import SafeTensor

Verdict = Literal["proven", "differs", "unprovable"]

#: Bytes of the GGUF that one piece has, where its tensor is that large.
PIECE: Final = 384 << 10
#: Whole heads are compared where rows were reordered; larger pieces than this are not read.
MAX_PIECE: Final = 4 << 20
#: Bytes of both files that are read and compared in all.
MAX_BYTES: Final = 32 << 20
#: What a proof needs at least: tensors, and bytes of the GGUF (or an eighth of it, for tiny models).
MIN_TENSORS: Final = 8
MIN_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Counterpart:
    """A checkpoint's tensor that a GGUF tensor was made from: all of it, or its expert number ``expert``."""

    name: str
    expert: int | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """What is compared: a GGUF tensor, and whose rows they were."""

    tensor: str
    counterpart: Counterpart


@dataclass(frozen=True, slots=True)
class Span:
    """Where a piece lies in both files (bytes; of the GGUF from its tensor data's start), and how it was converted."""

    piece: Piece
    gguf_offset: int
    gguf_bytes: int
    gguf_type: str
    base_offset: int
    base_bytes: int
    base_type: str
    row_length: int
    n_heads: int | None
    shift: float

    @property
    def n_values(self) -> int:
        """Values that are compared."""
        return self.gguf_bytes // FLOATS[self.gguf_type]


class Draw:
    """Random numbers that follow from a seed, the same in every version of everything."""

    def __init__(self, *seed: str) -> None:
        self._seed = hashlib.sha256("\0".join(seed).encode()).digest()
        self._n = 0

    def below(self, n: int) -> int:
        """A number from 0 to n - 1."""
        self._n += 1
        return int.from_bytes(hashlib.sha256(self._seed + self._n.to_bytes(8, "little")).digest(), "little") % n

    def some(self, values: Sequence[str], n: int) -> list[str]:
        """``n`` of the values (all, where there are no more), each once."""
        left = list(values)
        return [left.pop(self.below(len(left))) for _ in range(min(n, len(left)))]


def choose_pieces(
    tensors: Sequence[Tensor],
    counterparts: Mapping[str, Sequence[Counterpart]],
    file_of: Mapping[str, str],
    draw: Draw,
    *,
    n_pieces: int,
    n_files: int,
) -> tuple[list[Piece], list[str]]:
    """The pieces to compare, and the kinds of tensors (roles) for which there is none.

    Args:
        tensors: the GGUF's, without those that a converter generates.
        counterparts: by GGUF tensor, what it was made from.
        file_of: the file of each tensor of the checkpoint.
        n_files: files of the checkpoint whose headers may be read.
    """
    roles: dict[str, list[Tensor]] = defaultdict(list)
    for tensor in sorted(tensors, key=lambda one: one.name):
        roles[role_of(tensor.name)].append(tensor)
    everywhere = sorted(set(file_of.values()))
    # Some files at random first, so that not only those are looked into that rare tensors happen to lie in.
    files = set(everywhere if len(everywhere) <= n_files else draw.some(everywhere, max(1, n_files - 2)))

    def options(of: Sequence[Tensor]) -> list[Tensor]:
        return [t for t in of if any(file_of.get(c.name) in files for c in counterparts.get(t.name, ()))]

    def piece(tensor: Tensor) -> Piece:
        here = [c for c in counterparts[tensor.name] if file_of.get(c.name) in files]
        return Piece(tensor.name, here[draw.below(len(here))])

    pieces: list[Piece] = []
    missing: list[str] = []
    for role, members in sorted(roles.items(), key=lambda item: (len(item[1]), item[0])):
        found = options(members)
        if not found and len(files) < n_files:
            known = [c for t in members for c in counterparts.get(t.name, ()) if c.name in file_of]
            if known:
                files.add(file_of[known[draw.below(len(known))].name])
                found = options(members)
        if found and len(pieces) < n_pieces:
            pieces.append(piece(found[draw.below(len(found))]))
        else:
            missing.append(role)
    taken = {one.tensor for one in pieces}
    left = sorted((t for t in options(tensors) if t.name not in taken), key=lambda one: one.name)
    while left and len(pieces) < n_pieces:
        at = draw.below(sum(t.n_elements for t in left) or 1)
        index = next((i for i, end in enumerate(np.cumsum([t.n_elements for t in left])) if at < end), 0)
        pieces.append(piece(left.pop(index)))
    return pieces, missing


def span_of(
    piece: Piece, tensor: Tensor, base: SafeTensor, rules: Rules, config: Mapping[str, object], draw: Draw
) -> Span | str:
    """Which rows of a piece to compare, or why they can't be, in words."""
    if tensor.type_name not in FLOATS or base.dtype not in FLOATS:
        return f"{tensor.name} is kept in {tensor.type_name}, {base.name[:100]} in {base.dtype}"
    shape = tensor.shape[::-1]
    expert = piece.counterpart.expert
    inner = shape if expert is None else shape[1:]
    # Rows of tokens that the tokenizer does not know are cut off, or added, by some converters.
    tokens = tensor.name in ("token_embd.weight", "output.weight")
    cut = tokens and len(inner) == len(base.shape) == 2 and inner[1] == base.shape[1]
    fits = inner == base.shape or (cut and 10 * min(inner[0], base.shape[0]) >= 9 * max(inner[0], base.shape[0]))
    if not fits or 0 in inner or (expert is not None and expert >= shape[0]):
        return f"{tensor.name} has the shape {_shape(inner)}, {base.name[:100]} has {_shape(base.shape)}"
    length = inner[-1] if inner else 1
    rows = min(_product(inner), _product(base.shape)) // length
    wide = length * FLOATS[tensor.type_name]
    heads, block = None, 1
    if rules.permuted and role_of(tensor.name).startswith(("blk.*.attn_q.", "blk.*.attn_k.")):
        heads = heads_of(tensor.name, config)
        if heads is None or len(inner) != 2 or rows % (2 * heads):
            return f"the heads of {tensor.name} can't be told apart"
        block = rows // heads
    n = min(rows, max(block, -(-PIECE // wide) // block * block))
    if n * wide > MAX_PIECE:
        return f"a piece of {tensor.name} would be too large"
    start = draw.below((rows - n) // block + 1) * block
    first = start + (expert or 0) * _product(inner) // length
    narrow = length * FLOATS[base.dtype]
    shift = rules.norm_shift if tensor.name.endswith("norm.weight") else 0.0
    return Span(
        piece,
        gguf_offset=tensor.offset + first * wide,
        gguf_bytes=n * wide,
        gguf_type=tensor.type_name,
        base_offset=base.offset + start * narrow,
        base_bytes=n * narrow,
        base_type=base.dtype,
        row_length=length,
        n_heads=None if heads is None else n // block,
        shift=shift,
    )


def _product(shape: Sequence[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "one value"


def n_different(span: Span, gguf: bytes, base: bytes) -> int:
    """How many values of a piece are not what converting the checkpoint's gives."""
    values = as_floats(base, span.base_type).reshape(-1, span.row_length)
    if span.n_heads is not None:
        values = permuted(values, span.n_heads)
    if span.shift:
        values = values + np.float32(span.shift)
    return differing(as_floats(gguf, span.gguf_type), converted(values, span.gguf_type).reshape(-1))


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
    n_bytes: int
    n_values: int
    n_different: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict with its reason, a sentence."""

    verdict: Verdict
    detail: str


def judge(compared: Sequence[Compared], *, rules: Rules, uncovered: Sequence[str], n_bytes: int) -> Judgement:
    """What the comparison says.

    A difference is held against a file only where its class's conversion is known: other converters may do more than
    rename. Equal values prove all the same, since nothing makes them equal by chance.

    Args:
        uncovered: kinds of tensors that could not be compared, in words.
        n_bytes: of all tensors of the GGUF.
    """
    for one in compared:
        if one.n_different:
            said = (
                f"{one.n_different:,} of {one.n_values:,} sampled values of {one.piece.tensor} are not those of "
                f"{one.piece.counterpart.name[:100]}"
            )
            if rules.known:
                return Judgement("differs", f"{_capital(said)}.")
            return Judgement("unprovable", f"How this class is converted is not known here, and {said}.")
    if uncovered:
        more = f" (and {len(uncovered) - 1} more)" if len(uncovered) > 1 else ""
        return Judgement("unprovable", f"Not every kind of tensor can be compared: {uncovered[0]}{more}.")
    names = {one.piece.tensor for one in compared}
    total = sum(one.n_bytes for one in compared)
    if len(names) < MIN_TENSORS or total < min(MIN_BYTES, n_bytes // 8):
        return Judgement("unprovable", f"Only {len(names)} tensors and {total:,} bytes could be compared.")
    return Judgement(
        "proven", f"{sum(one.n_values for one in compared):,} sampled values of {len(names)} tensors are the same."
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
