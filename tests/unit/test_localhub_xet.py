"""LZ4 frames, shards and made-up xorbs: what localhub reads of Xet, and how it lays a file out."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localhub.errors import BadRequest
from localhub.lz4 import unpack_frame
from localhub.xet import (
    CHUNK,
    PER_XORB,
    Segment,
    hash_text,
    n_xorbs,
    parse_shard,
    pieces,
    reconstruction,
    unpacked_chunks,
    xorb_size,
)

HEAD = b"\x04\x22\x4d\x18\x40\x40\xc0"
END = bytes(4)


def lengths(value: int) -> bytes:
    """What follows a nibble of 15."""
    return b"" if value < 15 else b"\xff" * ((value - 15) // 255) + bytes([(value - 15) % 255])


def sequence(literals: bytes, match: tuple[int, int] | None = None) -> bytes:
    """One sequence of a block: literals, then (offset, length) of a match."""
    length = match[1] - 4 if match else 0
    token = min(len(literals), 15) << 4 | min(length, 15)
    tail = struct.pack("<H", match[0]) + lengths(length) if match else b""
    return bytes([token]) + lengths(len(literals)) + literals + tail


def frame(*blocks: bytes) -> bytes:
    return HEAD + b"".join(struct.pack("<I", len(block)) + block for block in blocks) + END


@given(
    st.lists(
        st.tuples(st.binary(min_size=1, max_size=300), st.integers(1, 400), st.integers(4, 700)), min_size=1, max_size=6
    )
)
def test_matches_repeat_what_stands_before_them(parts: list[tuple[bytes, int, int]]) -> None:
    expected, block = bytearray(), b""
    for literals, offset, length in parts:
        expected += literals
        offset = min(offset, len(expected))
        block += sequence(literals, (offset, length))
        for _ in range(length):
            expected.append(expected[-offset])
    block += sequence(b"end")
    expected += b"end"
    assert unpack_frame(frame(block), len(expected)) == bytes(expected)


def test_a_match_reaches_into_the_block_before_and_a_block_may_be_stored() -> None:
    stored = struct.pack("<I", 6 | 0x80000000) + b"abcdef"
    block = sequence(b"", (6, 6)) + sequence(b"!")
    data = HEAD + stored + struct.pack("<I", len(block)) + block + END
    assert unpack_frame(data, 13) == b"abcdefabcdef!"


@given(st.binary(max_size=200), st.integers(0, 300))
def test_what_is_no_frame_is_refused_and_nothing_else(data: bytes, size: int) -> None:
    for one in (data, HEAD + data):
        with suppress(BadRequest):
            assert len(unpack_frame(one, size)) == size


def test_a_small_frame_does_not_become_a_large_one() -> None:
    bomb = frame(sequence(b"a", (1, 1 << 20)))
    with pytest.raises(BadRequest):
        unpack_frame(bomb, 1000)


def chunk(packed: bytes, scheme: int, size: int) -> bytes:
    return b"\0" + len(packed).to_bytes(3, "little") + bytes([scheme]) + size.to_bytes(3, "little") + packed


def test_chunks_of_every_kind_are_unpacked() -> None:
    plain, text = b"0123456789", b"a" * 50 + b"!"
    lz4 = frame(sequence(b"a", (1, 49)) + sequence(b"!"))
    grouped = bytes(plain[place] for start in range(4) for place in range(start, 10, 4))
    xorb = chunk(plain, 0, 10) + chunk(lz4, 1, 51) + chunk(frame(sequence(grouped)), 2, 10) + b"XETBLOB footer"
    assert list(unpacked_chunks(xorb, 0, 3)) == [plain, text, plain]
    assert list(unpacked_chunks(xorb, 1, 2)) == [text]
    for bad in (xorb[:30], chunk(plain, 7, 10), chunk(plain, 0, 11)):
        with pytest.raises(BadRequest):
            list(unpacked_chunks(bad, 0, 3))


def test_a_shard_names_files_and_their_segments() -> None:
    assert hash_text(bytes(range(32))).startswith("0706050403020100")
    file, xorb = bytes([1]) * 32, bytes([2]) * 32
    parts = [b"HFRepoMetaData\0".ljust(48, b"x"), file + struct.pack("<II8x", 0xC0000000, 2)]
    parts += [xorb + struct.pack("<4I", 0, 10, 0, 1), xorb + struct.pack("<4I", 0, 30, 4, 6)]
    parts += [bytes(48)] * 3 + [b"\xff" * 32 + bytes(16)]
    shard = b"".join(parts)
    name = hash_text(xorb)
    assert parse_shard(shard) == {hash_text(file): [Segment(name, 10, 0, 1), Segment(name, 30, 4, 6)]}
    for bad in (b"", shard[:100], b"x" + shard):
        with pytest.raises(BadRequest):
            parse_shard(bad)


WHOLE = CHUNK * PER_XORB


@given(st.integers(1, 3 * WHOLE), st.data())
def test_any_part_of_a_file_can_be_put_together_again(size: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, size - 1))
    end = data.draw(st.integers(start + 1, size))
    told = reconstruction("f" * 64, size, start, end, "http://x/k")
    covered = told["offset_into_first_range"]
    position = start - covered
    for term in told["terms"]:
        (part,) = told["fetch_info"][term["hash"]]
        number = int(part["url"].rpartition("/")[2])
        first, last = term["range"]["start"], term["range"]["end"]
        chosen = list(pieces(size, number))[first:last]
        assert chosen[0].offset == position and sum(one.length for one in chosen) == term["unpacked_length"]
        assert part["url_range"]["start"] == first * (CHUNK + 8)
        length = sum(one.length + 8 for one in chosen)
        assert part["url_range"]["end"] + 1 - part["url_range"]["start"] == length
        assert part["url_range"]["end"] < xorb_size(size, number) and number < n_xorbs(size)
        position += term["unpacked_length"]
    assert position >= end and position - end < CHUNK
