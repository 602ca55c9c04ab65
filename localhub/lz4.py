"""Unpacking LZ4 frames, which the Xet client packs chunks into. Pure; packing is not needed here."""

from __future__ import annotations

from .errors import BadRequest

_MAGIC = b"\x04\x22\x4d\x18"
_CUT = "An LZ4 frame is cut or damaged"


def unpack_frame(data: bytes, size: int) -> bytes:
    """The content of a frame that holds exactly `size` bytes; checksums are passed over (the caller's hash holds).

    `BadRequest` where it is no frame, or of another size.
    """
    out = bytearray()
    try:
        if data[:4] != _MAGIC or data[4] >> 6 != 1:
            raise BadRequest("Not an LZ4 frame")
        flags = data[4]
        at = 4 + 2 + (8 if flags & 8 else 0) + (4 if flags & 1 else 0) + 1
        while True:
            word = int.from_bytes(data[at : at + 4], "little")
            if at + 4 > len(data):
                raise BadRequest(_CUT)
            at += 4
            if word == 0:
                break
            length = word & 0x7FFFFFFF
            block = data[at : at + length]
            if len(block) != length:
                raise BadRequest(_CUT)
            if word & 0x80000000:
                out += block
            else:
                _block(block, out, size)
            at += length + (4 if flags & 16 else 0)
            if len(out) > size:
                break
    except IndexError:
        raise BadRequest(_CUT) from None
    if len(out) != size:
        raise BadRequest("An LZ4 frame holds another number of bytes than was said")
    return bytes(out)


def _block(data: bytes, out: bytearray, limit: int) -> None:
    """One block; matches may reach back into the blocks before it."""
    at, end = 0, len(data)
    while at < end:
        token = data[at]
        at += 1
        literals, at = _length(data, at, token >> 4)
        if at + literals > end:
            raise BadRequest(_CUT)
        out += data[at : at + literals]
        at += literals
        if at == end:
            return
        offset = data[at] | data[at + 1] << 8
        match, at = _length(data, at + 2, token & 15)
        match += 4
        if not 0 < offset <= len(out) or len(out) + match > limit:
            raise BadRequest(_CUT)
        start = len(out) - offset
        if offset >= match:
            out += out[start : start + match]
        else:  # the match overlaps what it makes: its first bytes repeat
            piece = bytes(out[start:])
            out += (piece * (match // offset + 1))[:match]


def _length(data: bytes, at: int, value: int) -> tuple[int, int]:
    if value == 15:
        while True:
            more = data[at]
            at += 1
            value += more
            if more != 255:
                break
    return value, at
