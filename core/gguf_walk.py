"""Walks over a GGUF header's bytes as they come, keeps the little that is asked for and lets go of the rest.

Format: the GGUF specification in ggml's ``docs/gguf.md`` (versions 2 and 3, little-endian). No length in it is trusted:
each is held against the bytes at hand and against a limit before anything is made of it.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from core.errors import GGUFError

MAGIC: Final = b"GGUF"
#: No honest header is larger: 64 MiB (a vocabulary of 262 k tokens with its merges takes some 15).
MAX_HEADER: Final = 64 << 20
MAX_KV: Final = 65_536
MAX_TENSORS: Final = 65_536
MAX_ARRAY: Final = 50_000_000
#: Arrays inside arrays; no writer that we know of makes any, and llama.cpp refuses them.
MAX_NESTED: Final = 65_536
#: ggml's own limit.
MAX_DIMS: Final = 4
#: Bytes of one key (the specification's own limit), of one tensor's name (llama.cpp takes 63), and of all together.
MAX_KEY: Final = 65_535
MAX_TENSOR_NAME: Final = 256
MAX_NAMES: Final = 8 << 20
#: Bytes of one string inside an array; tokens and merges have some dozens.
MAX_ITEM: Final = 1 << 20
#: A longer string value is walked over, and its checksum kept.
KEEP_STRING: Final = 256 << 10
#: Bytes of all string values that are kept.
KEEP_TOTAL: Final = 4 << 20
#: Arrays up to this many elements are kept (tags, languages, datasets); longer ones are skipped.
KEEP_ARRAY: Final = 64
#: The vocabulary is never kept, however small: its checksum says whether two files share it.
TOKENS: Final = "tokenizer.ggml.tokens"

_SCALARS: Final[dict[int, struct.Struct]] = {
    kind: struct.Struct(code)
    for kind, code in {
        0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
    }.items()
}  # fmt: skip
_STRING: Final = 8
_ARRAY: Final = 9
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_START = struct.Struct("<4sIQQ")
_ARRAY_HEAD = struct.Struct("<IQ")


class NeedMoreBytes(Exception):
    """The header goes on beyond the bytes given; ``at_least`` is how many are certainly needed."""

    def __init__(self, at_least: int) -> None:
        super().__init__(at_least)
        self.at_least = at_least


@dataclass(frozen=True, slots=True)
class SkippedArray:
    """An array that was walked over, not kept: its element type id and length.

    ``sha256`` is that of the vocabulary alone: over its length and then its strings, each behind its own length, as
    they stand in the file (64 bits each, little-endian).
    """

    element_type: int
    length: int
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class SkippedString:
    """A string too long to keep: its length in bytes and the sha256 of its bytes."""

    length: int
    sha256: str


@dataclass(slots=True)
class _Open:
    """An array that is being walked over; ``left`` is in elements, for scalars in bytes."""

    kind: int
    left: int


class Walker:
    """Takes a header's bytes in order, piece by piece; memory stays at a piece and what is kept.

    Once :meth:`feed` has returned True, ``version``, ``kv``, ``infos`` (name, shape, type id, offset of each tensor)
    and ``position`` (where the header ends) are whole. Before that, ``needed`` is how many bytes of the file are
    certainly needed.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.version = 0
        self.kv: dict[str, Any] = {}
        self.infos: list[tuple[str, tuple[int, ...], int, int]] = []
        self.needed = 0
        self._data = b""
        self._base = self._at = self._mark = self._end = 0
        self._keys_left = self._tensors_left = -1
        self._tensor_names: set[str] = set()
        self._names = self._kept = self._nested = 0
        # What is being walked over: the key it will stand under, its arrays from the outside in, a string's rest.
        self._key = ""
        self._open: list[_Open] = []
        self._string_left = self._length = self._began = 0
        self._hash: Any = None

    @property
    def position(self) -> int:
        """How far into the file everything was walked over (bytes)."""
        return self._base + self._at

    @property
    def likely_end(self) -> int:
        """Where the header would end if the rest of an array of strings were like its beginning (bytes).

        Behind a vocabulary there follow types (and scores) of its tokens, and merges a little longer than they are.
        A guess from numbers that may lie: for choosing a range within bounds, and for nothing else.
        """
        at = self.position
        if not self._open or self._open[0].kind != _STRING:
            return at
        left = self._open[0].left
        mean = (at - self._began) / max(1, self._length - left)
        end = at + 1.05 * mean * left
        if self._key == TOKENS:
            end += self._length * (1.15 * mean + 8)
        return int(end) + (512 << 10)

    def feed(self, piece: bytes) -> bool:
        """Walk as far as these bytes go, which follow those given before; True once the header is whole.

        Raises:
            GGUFError: not GGUF, or its numbers can't be true.
        """
        rest = self._data[self._at :]
        self._base += self._at
        self._at = 0
        self._data = rest + piece if rest else piece
        self._end = min(len(self._data), MAX_HEADER - self._base)
        try:
            self._walk()
        except NeedMoreBytes as more:
            self._at = self._mark
            self.needed = more.at_least
            return False
        self._data, self._base, self._at = b"", self.position, 0
        return True

    def _walk(self) -> None:
        while True:
            # What a step did not finish is begun anew with the next piece; long steps move the mark themselves.
            self._mark = self._at
            if self._keys_left < 0:
                self._start()
            elif self._string_left:
                self._walk_string()
            elif self._open:
                self._walk_arrays()
            elif self._keys_left:
                self._key_value()
                self._keys_left -= 1
            elif self._tensors_left:
                self._tensor()
                self._tensors_left -= 1
            else:
                return

    def _fail(self, what: str) -> NoReturn:
        raise GGUFError(f"{self.name}: {what}; the file is damaged or not GGUF.")

    def _short(self, end: int) -> NoReturn:
        """Say that bytes up to ``end`` (in the bytes at hand) are needed."""
        if self._base + end > MAX_HEADER:
            raise GGUFError(f"{self.name}: its header claims more than {MAX_HEADER >> 20} MiB; that is not a GGUF.")
        raise NeedMoreBytes(self._base + end)

    def _take(self, n: int) -> int:
        start = self._at
        if start + n > self._end:
            self._short(start + n)
        self._at = start + n
        return start

    def _u32(self) -> int:
        return int(_U32.unpack_from(self._data, self._take(4))[0])

    def _u64(self) -> int:
        return int(_U64.unpack_from(self._data, self._take(8))[0])

    def _text(self, length: int) -> str:
        start = self._take(length)
        return self._data[start : start + length].decode("utf-8", errors="replace")

    def _name(self, limit: int) -> str:
        length = self._u64()
        if length > limit or self._names + length > MAX_NAMES:
            self._fail(f"a name of {length} bytes can't be true")
        found = self._text(length)
        self._names += length
        return found

    def _start(self) -> None:
        magic = self._data[:4]
        if magic != MAGIC[: len(magic)]:
            raise GGUFError(f"{self.name} is not a GGUF file (it does not begin with 'GGUF'). Give a .gguf file.")
        _, version, n_tensors, n_kv = _START.unpack_from(self._data, self._take(_START.size))
        if version not in (2, 3):
            what = "big-endian" if version in (0x02000000, 0x03000000) else f"version {version}"
            raise GGUFError(
                f"{self.name} is a {what} GGUF; versions 2 and 3, little-endian, can be read. Convert it again."
            )
        if n_tensors > MAX_TENSORS or n_kv > MAX_KV:
            self._fail(f"{n_tensors} tensors and {n_kv} keys can't be true")
        self.version, self._keys_left, self._tensors_left = version, n_kv, n_tensors

    def _key_value(self) -> None:
        names, kept = self._names, self._kept
        try:
            key = self._name(MAX_KEY)
            if key in self.kv:
                raise GGUFError(
                    f"{self.name}: the key {key[:80]!r} stands in its header twice; llama.cpp refuses such a file."
                )
            kind = self._u32()
            if kind == _STRING:
                value = self._string(key)
            elif kind == _ARRAY:
                value = self._array(key)
            elif kind in _SCALARS:
                scalar = _SCALARS[kind]
                value = scalar.unpack_from(self._data, self._take(scalar.size))[0]
            else:
                self._fail(f"unknown metadata type {kind}")
        except NeedMoreBytes:
            self._names, self._kept = names, kept
            raise
        self.kv[key] = value

    def _string(self, key: str) -> Any:
        length = self._u64()
        if self._base + self._at + length > MAX_HEADER:
            self._short(self._at + length)
        if length <= KEEP_STRING and self._kept + length <= KEEP_TOTAL:
            found = self._text(length)
            self._kept += length
            return found
        # Only its beginning is known to be there: the rest is walked over in a step of its own.
        self._key, self._length, self._string_left, self._hash = key, length, length, hashlib.sha256()
        return None

    def _walk_string(self) -> None:
        n = min(self._string_left, self._end - self._at)
        self._hash.update(memoryview(self._data)[self._at : self._at + n])
        self._at = self._mark = self._at + n
        self._string_left -= n
        if self._string_left:
            self._short(self._at + self._string_left)
        self.kv[self._key] = SkippedString(self._length, self._hash.hexdigest())
        self._hash = None

    def _array_head(self) -> _Open:
        kind, length = _ARRAY_HEAD.unpack_from(self._data, self._take(_ARRAY_HEAD.size))
        if length > MAX_ARRAY:
            self._fail(f"an array of {length} elements can't be true")
        if kind in _SCALARS:
            length *= _SCALARS[kind].size
        elif kind not in (_STRING, _ARRAY):
            self._fail(f"unknown array type {kind}")
        # A string takes eight bytes at the least, an array twelve: known before the first is read.
        least = self._at + length * {_STRING: 8, _ARRAY: 12}.get(kind, 1)
        if self._base + least > MAX_HEADER:
            self._short(least)
        return _Open(kind, length)

    def _array(self, key: str) -> Any:
        found = self._array_head()
        scalar = _SCALARS.get(found.kind)
        length = found.left // scalar.size if scalar else found.left
        if length <= KEEP_ARRAY and key != TOKENS:
            if scalar:
                start = self._take(found.left)
                return [scalar.unpack_from(self._data, start + i * scalar.size)[0] for i in range(length)]
            if found.kind == _STRING and (strings := self._strings(length)) is not None:
                return strings
        self._key, self._length, self._began, self._open = key, length, self.position, [found]
        if key == TOKENS and found.kind == _STRING:
            self._hash = hashlib.sha256(_U64.pack(length))
        return SkippedArray(found.kind, length)

    def _strings(self, count: int) -> list[str] | None:
        """Few strings as a list, or None (and back where they begin) where one is too long to keep."""
        start, kept, found = self._at, self._kept, []
        for _ in range(count):
            length = self._u64()
            if length > KEEP_STRING // 4 or self._kept + length > KEEP_TOTAL:
                self._at, self._kept = start, kept
                return None
            found.append(self._text(length))
            self._kept += length
        return found

    def _walk_arrays(self) -> None:
        """Go on with the arrays that are open; the innermost is the last."""
        while self._open:
            top = self._open[-1]
            if top.kind == _STRING:
                self._walk_strings(top)
            elif top.kind == _ARRAY and top.left:
                self._mark = self._at
                inner = self._array_head()
                self._nested += 1
                if self._nested > MAX_NESTED or len(self._open) > 3:
                    self._fail("arrays in arrays in arrays, or too many of them")
                top.left -= 1
                self._open.append(inner)
                continue
            elif top.kind != _ARRAY:
                n = min(top.left, self._end - self._at)
                self._at = self._mark = self._at + n
                top.left -= n
                if top.left:
                    self._short(self._at + top.left)
            self._open.pop()
        if self._hash:
            self.kv[self._key] = SkippedArray(_STRING, self._length, self._hash.hexdigest())
            self._hash = None

    def _walk_strings(self, top: _Open) -> None:
        # Vocabularies: hundreds of thousands of strings, so this loop stays tight.
        unpack, data, at, end = _U64.unpack_from, self._data, self._at, self._end
        last, first, walked, after = end - 8, at, top.left, at
        for index in range(top.left):
            if at > last:
                walked, after = index, at + 8
                break
            after = at + 8 + unpack(data, at)[0]
            if after > end:
                walked = index
                break
            at = after
        top.left -= walked
        if self._hash:
            self._hash.update(memoryview(data)[first:at])
        self._at = self._mark = at
        if top.left:
            if after - at - 8 > MAX_ITEM:
                self._fail(f"a string of {after - at - 8} bytes in an array can't be true")
            self._short(after + 8 * (top.left - 1))

    def _tensor(self) -> None:
        names = self._names
        try:
            name = self._name(MAX_TENSOR_NAME)
            n_dims = self._u32()
            if n_dims > MAX_DIMS:
                self._fail(f"tensor {name[:80]!r} has {n_dims} dimensions")
            start = self._take(8 * n_dims + 12)
            *shape, kind, offset = struct.unpack_from(f"<{n_dims}QIQ", self._data, start)
        except NeedMoreBytes:
            self._names = names
            raise
        if name in self._tensor_names:
            raise GGUFError(
                f"{self.name}: tensor {name[:80]!r} stands in its header twice; llama.cpp refuses such a file."
            )
        self._tensor_names.add(name)
        self.infos.append((name, tuple(shape), kind, offset))
