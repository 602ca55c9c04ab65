"""The Xet formats as far as buckets need them: shards and xorbs that come in, and a file laid out as xorbs to go out.

The client uploads chunks packed into xorbs, and shards that say which chunks of which xorbs make a file. Files lie here
as plain files, so they go out as made-up xorbs whose chunks are not packed. Pure.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .errors import BadRequest
from .lz4 import unpack_frame

_MAGIC = b"HFRepoMetaData\x00"
_RECORD = 48
_BOOKEND = b"\xff" * 32
_VERIFIED, _WITH_METADATA = 0x80000000, 0x40000000
_MAX_CHUNK = 128 * 1024
MAX_XORB = 80 * 1024 * 1024

#: How a file goes out: chunks of 64 KiB, 512 of them a xorb.
CHUNK = 64 * 1024
PER_XORB = 512
_HEAD = 8


def hash_text(raw: bytes) -> str:
    """A hash as Xet writes it: four little-endian words, each in hex."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))


@dataclass(frozen=True)
class Segment:
    """Chunks `first` to `end` (excluded) of a xorb, `size` bytes once unpacked."""

    xorb: str
    size: int
    first: int
    end: int


def parse_shard(data: bytes) -> dict[str, list[Segment]]:
    """The files that an uploaded shard describes, by their hashes; `BadRequest` where it is no shard."""
    if not data.startswith(_MAGIC):
        raise BadRequest("Not a shard")
    files: dict[str, list[Segment]] = {}
    at = _RECORD
    try:
        while True:
            raw, flags, count = data[at : at + 32], *struct.unpack_from("<II", data, at + 32)
            at += _RECORD
            if raw == _BOOKEND:
                return files
            segments = []
            for _ in range(count):
                _flags, size, first, end = struct.unpack_from("<4I", data, at + 32)
                segments.append(Segment(hash_text(data[at : at + 32]), size, first, end))
                at += _RECORD
            at += _RECORD * (count if flags & _VERIFIED else 0) + (_RECORD if flags & _WITH_METADATA else 0)
            files[hash_text(raw)] = segments
    except struct.error:
        raise BadRequest("The shard is cut") from None


def unpacked_chunks(xorb: bytes, first: int, end: int) -> Iterator[bytes]:
    """Chunks `first` to `end` (excluded) of a xorb, unpacked; `BadRequest` where it holds fewer, or is damaged."""
    at = 0
    for number in range(end):
        head = xorb[at : at + _HEAD]
        packed, scheme, size = int.from_bytes(head[1:4], "little"), head[4:5], int.from_bytes(head[5:8], "little")
        body = xorb[at + _HEAD : at + _HEAD + packed]
        if len(head) != _HEAD or head[0] != 0 or len(body) != packed or size > _MAX_CHUNK:
            raise BadRequest("The xorb is cut, or holds fewer chunks than the shard says")
        at += _HEAD + packed
        if number >= first:
            yield _unpacked(body, scheme[0], size)


def _unpacked(body: bytes, scheme: int, size: int) -> bytes:
    if scheme == 0 and len(body) == size:
        return body
    if scheme == 1:
        return unpack_frame(body, size)
    if scheme == 2:
        grouped, out, at = unpack_frame(body, size), bytearray(size), 0
        for place in range(4):  # every fourth byte first, then those after them, ...
            part = out[place::4]
            out[place::4] = grouped[at : at + len(part)]
            at += len(part)
        return bytes(out)
    raise BadRequest("A chunk is packed in a way that is not known here")


# going out


def xorb_name(file_id: str, number: int) -> str:
    """The made-up name of the `number`-th xorb of a file."""
    return hashlib.sha256(f"{file_id}:{number}".encode()).hexdigest()


def n_xorbs(size: int) -> int:
    """How many xorbs a file of `size` bytes goes out as."""
    return -(-size // (CHUNK * PER_XORB))


def reconstruction(file_id: str, size: int, start: int, end: int, url: str) -> dict[str, Any]:
    """What the client asks first: which chunks of which xorbs hold bytes `start` to `end` (excluded) of a file.

    `url` is where the xorbs are; their number is put behind it.
    """
    terms, fetch = [], {}
    whole = CHUNK * PER_XORB
    for number in range(start // whole, -(-end // whole)):
        base, inside = number * whole, min(whole, size - number * whole)
        first = (max(start, base) - base) // CHUNK
        last = -(-(min(end, base + inside) - base) // CHUNK)
        name = xorb_name(file_id, number)
        length = min(last * CHUNK, inside) - first * CHUNK
        terms.append({"hash": name, "unpacked_length": length, "range": {"start": first, "end": last}})
        stop = first * (CHUNK + _HEAD) + length + (last - first) * _HEAD
        part = {"start": first * (CHUNK + _HEAD), "end": stop - 1}
        fetch[name] = [{"range": {"start": first, "end": last}, "url": f"{url}/{number}", "url_range": part}]
    return {"offset_into_first_range": start % CHUNK, "terms": terms, "fetch_info": fetch}


def xorb_size(size: int, number: int) -> int:
    """Bytes of the `number`-th xorb of a file of `size` bytes."""
    inside = min(CHUNK * PER_XORB, size - number * CHUNK * PER_XORB)
    return inside + -(-inside // CHUNK) * _HEAD


@dataclass(frozen=True)
class Piece:
    """A chunk of an outgoing xorb: its head, and where in the file its bytes lie."""

    head: bytes
    offset: int
    length: int


def pieces(size: int, number: int) -> Iterator[Piece]:
    """The chunks of the `number`-th xorb of a file of `size` bytes."""
    start = number * CHUNK * PER_XORB
    for offset in range(start, min(start + CHUNK * PER_XORB, size), CHUNK):
        length = min(CHUNK, size - offset)
        packed = length.to_bytes(3, "little")
        yield Piece(b"\x00" + packed + b"\x00" + packed, offset, length)
