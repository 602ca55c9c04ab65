"""Headers by strangers: whatever the bytes, a header comes out or an error with a sentence; soon, in little memory."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter

from core.audit import Inspection, chat_template, flags_under, inspect
from core.chat_template import compare
from core.errors import GGUFError
from core.gguf_header import GGUFHeader, NeedMoreBytes, parse_header, read_header
from core.gguf_walk import MAX_HEADER, Walker
from core.protocol import WIKITEXT2_TEST

FILES = 10_200
#: Seconds that one file may take on any machine; it takes less than a thousandth of that.
GENEROUS_S = 10.0
#: Bytes of Python's memory at the worst; the files themselves have up to 120 kB.
PEAK = 16 << 20
HUGE = (0, 1, 7, 0xFF, 0xFFFF, 50_000_000, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


def small(folder: Path, arch: str, fill: Callable[[GGUFWriter], None]) -> bytes:
    """A small file of gguf's own writer."""
    path = folder / f"{arch}.gguf"
    writer = GGUFWriter(path, arch)
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def dense(writer: GGUFWriter) -> None:
    writer.add_file_type(15)
    writer.add_custom_alignment(64)
    writer.add_token_list([f"token {i}" for i in range(90)])
    writer.add_token_scores([0.5] * 90)
    writer.add_array("general.tags", ["a", "späť"])
    writer.add_chat_template("{{ bos }}\n{% for m in messages %}{{ m }}{% endfor %}")
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, "A")
    writer.add_base_model_repo_url(0, "https://huggingface.co/Org/A")
    writer.add_string("quantize.imatrix.file", "i.gguf")
    writer.add_uint32("quantize.imatrix.entries_count", 2)
    for part in ("attn_q", "ffn_up"):
        writer.add_tensor(f"blk.0.{part}.weight", np.zeros((2, 144), np.uint8), raw_dtype=GGMLQuantizationType.Q4_K)
    writer.add_tensor("output_norm.weight", np.ones(8, dtype=np.float32))


def mixture(writer: GGUFWriter) -> None:
    writer.add_string("general.source.url", "https://huggingface.co/Org/B")
    writer.add_uint16("split.no", 0)
    writer.add_uint16("split.count", 2)
    writer.add_int32("split.tensors.count", 9)
    writer.add_array("nested", [[1, 2], [3]])
    for i in range(2):
        for part, kind, n in (("up", "Q4_K", 144), ("down", "Q2_K", 84)):
            data = np.zeros((2, 2, n), np.uint8)
            writer.add_tensor(f"blk.{i}.ffn_{part}_exps.weight", data, raw_dtype=GGMLQuantizationType[kind])
        writer.add_tensor(f"blk.{i}.ssm_out.weight", np.zeros((2, 84), np.uint8), raw_dtype=GGMLQuantizationType.Q2_K)
        writer.add_tensor(f"blk.{i}.attn_q.weight", np.zeros((2, 17), np.uint8), raw_dtype=GGMLQuantizationType.MXFP4)


@cache
def _seeds(folder: Path, demo: Path) -> tuple[bytes, ...]:
    with demo.open("rb") as file:
        shipped = file.read(64_000)
    return small(folder, "llama", dense), small(folder, "jamba", mixture), shipped


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory, demo_model: Path) -> tuple[bytes, ...]:
    return _seeds(tmp_path_factory.mktemp("fuzz"), demo_model)


def mutated(source: bytes, other: bytes, dice: random.Random) -> bytes:
    """One file made wrong in one to four ways, most of them in the first bytes, where the structure is."""
    data = bytearray(source)
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        if not data:
            break
        at = dice.randrange(min(len(data), dice.choice((40, 400, 4000, len(data)))))
        match dice.randrange(9):
            case 0:
                data[at] ^= 1 << dice.randrange(8)
            case 1:
                data[at] = dice.choice((0, 8, 9, 0xFF, dice.randrange(256)))
            case 2:
                del data[at:]
            case 3:
                data[at : at + 8] = struct.pack("<Q", dice.choice(HUGE))
            case 4:
                data[at : at + 4] = struct.pack("<I", dice.choice(HUGE) & 0xFFFFFFFF)
            case 5:
                start = dice.randrange(len(other))
                data[at : at + dice.randrange(64)] = other[start : start + dice.randrange(400)]
            case 6:
                data[at:at] = data[at : at + dice.randrange(300)]
            case 7:
                data[at:at] = struct.pack("<IQ", 9, dice.choice((1, 2, 3, 1000))) * dice.randrange(1, 30)
            case _:
                del data[at : at + dice.randrange(1, 40)]
    return bytes(data[:120_000])


def outcome(data: bytes, *, whole: bool) -> GGUFHeader | type[Exception]:
    """What comes out; any exception but these two fails the test."""
    try:
        return parse_header(data, whole=whole)
    except (GGUFError, NeedMoreBytes) as error:
        assert not (whole and isinstance(error, NeedMoreBytes))
        assert isinstance(error, NeedMoreBytes) or 0 < len(str(error)) < 1000
        return type(error)


def piecewise(data: bytes, dice: random.Random) -> dict[str, object] | type[Exception]:
    """The key-values, the bytes given in pieces."""
    walker, at = Walker("x"), 0
    try:
        while at < len(data):
            end = at + dice.choice((1, 17, 900, 1 << 20))
            if walker.feed(data[at:end]):
                return walker.kv
            at = end
    except GGUFError:
        return GGUFError
    return NeedMoreBytes


def audited(header: GGUFHeader, size: int, *, shards: int) -> None:
    """Everything that is made of a header alone or beside a second shard, and that it can be stored."""
    headers = [header, GGUFHeader(3, {}, header.tensors[:1], 64)][:shards]
    found = inspect(headers, size_bytes=size, name="M-Q4_K_M.gguf", shards_expected=shards)
    stored = found.model_dump_json()
    assert Inspection.model_validate_json(stored) == found and len(stored) < 100_000
    assert all(len(flag.detail) < 2500 for flag in flags_under(found, WIKITEXT2_TEST))
    if template := chat_template(headers):
        assert compare(template, "{{ bos }}\n").diff_lines


def test_ten_thousand_mutated_files(seeds: tuple[bytes, ...]) -> None:
    dice = random.Random(20260227)
    seen: Counter[str] = Counter()
    slowest, peak = 0.0, 0
    for index in range(FILES):
        data = mutated(seeds[2 if index % 10 == 0 else index % 2], seeds[dice.randrange(len(seeds))], dice)
        # Looking at memory makes everything slow, so one in eight is looked at.
        if index % 8 == 0:
            tracemalloc.start()
        started = time.perf_counter()
        whole, part = outcome(data, whole=True), outcome(data, whole=False)
        if isinstance(whole, GGUFHeader):
            assert part == whole
            audited(whole, len(data), shards=1 + index % 2)
        if index % 3 == 0:
            pieces = piecewise(data, dice)
            assert pieces is part or (isinstance(part, GGUFHeader) and pieces == part.kv) or part is GGUFError
            with_ranges(data, dice)
        slowest = max(slowest, time.perf_counter() - started)
        if tracemalloc.is_tracing():
            peak = max(peak, tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        seen[whole.__name__ if isinstance(whole, type) else "header"] += 1
        seen[f"part {part.__name__ if isinstance(part, type) else 'header'}"] += 1
    assert slowest < GENEROUS_S and 0 < peak < PEAK
    # The mutations reach both sides: files that are still read, and every way of refusing them.
    assert all(seen[kind] > FILES // 20 for kind in ("header", "GGUFError", "part NeedMoreBytes")), seen


def with_ranges(data: bytes, dice: random.Random) -> None:
    """The same over ranges, of a file that is as long as it says, longer, or breaks off."""
    size = len(data) + dice.choice((0, 0, 1, 5000, 1 << 40))
    asked: list[int] = []

    def read(offset: int, length: int) -> bytes:
        asked.append(length)
        found = data[offset : offset + length]
        return found + bytes(min(length - len(found), 1 << 16)) if dice.randrange(2) else found

    with suppress(GGUFError):
        audited(read_header(read, size=size, name="x"), size, shards=1)
    assert sum(asked) <= MAX_HEADER and len(asked) < 10


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def head(*, n_tensors: int = 0, n_kv: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_kv)


def nasty() -> Iterator[tuple[str, bytes]]:
    """Headers that are built to be slow, large or misunderstood."""
    keys = b"".join(text(b"k%d" % i) + struct.pack("<IB", 0, 1) for i in range(65_536))
    yield "as many keys as there may be", head(n_kv=65_536) + keys
    yield "one key more", head(n_kv=65_537) + keys
    yield "one key, again and again", head(n_kv=65_536) + (text(b"k") + struct.pack("<IB", 0, 1)) * 65_536
    names = b"".join(text(b"t%d" % i) + struct.pack("<IQIQ", 1, 32, 0, 0) for i in range(65_536))
    yield "as many tensors as there may be", head(n_tensors=65_536) + names
    kinds = b"".join(text(b"t%d" % i) + struct.pack("<IQIQ", 1, 32, i + 1000, 0) for i in range(65_536))
    yield "a type of its own for every tensor", head(n_tensors=65_536) + kinds
    strings = struct.pack("<IIQ", 9, 8, 1 << 20)
    yield "a million empty strings", head(n_kv=1) + text(b"k") + strings + bytes(8 << 20)
    yield "fifty million that are not there", head(n_kv=1) + text(b"k") + struct.pack("<IIQ", 9, 8, 50_000_000)
    nested = struct.pack("<IQ", 9, 1) * 100_000
    yield "arrays a hundred thousand deep", head(n_kv=1) + text(b"k") + struct.pack("<I", 9) + nested
    flat = struct.pack("<IIQ", 9, 9, 1_000_000) + struct.pack("<IQ", 0, 0) * 1_000_000
    yield "a million arrays in an array", head(n_kv=1) + text(b"k") + flat
    long = b"\xff" * (3 << 20)
    yield "a long key", head(n_kv=1) + text(long)
    yield "a long tensor name", head(n_tensors=1) + text(long)
    yield "a long value", head(n_kv=1) + text(b"tokenizer.chat_template") + struct.pack("<I", 8) + text(long)
    items = struct.pack("<IIQ", 9, 8, 2) + text(long) * 2
    yield "long items", head(n_kv=1) + text(b"k") + items
    values = b"".join(text(b"k%d" % i) + struct.pack("<I", 8) + text(b"\xff" * 200_000) for i in range(40))
    yield "many long values", head(n_kv=40) + values
    evil = b"<script>\x00\r\n|`\x1b[2J\xe2\x80\xae.weight"
    kv = text(b"general.architecture") + struct.pack("<I", 8) + text(evil)
    yield (
        "names that are none",
        head(n_tensors=1, n_kv=1) + kv + text(b"blk.0." + evil) + struct.pack("<IQIQ", 1, 8, 0, 0),
    )
    for alignment in (0, 1, 3, 1 << 20, 1 << 31):
        kv = text(b"general.alignment") + struct.pack("<II", 4, alignment)
        yield f"an alignment of {alignment}", head(n_kv=1) + kv
    shape = struct.pack("<IQQQQIQ", 4, 1 << 62, 1 << 62, 0, 0, 12, 1 << 63)
    yield "a tensor of everything and nothing", head(n_tensors=1) + text(b"t") + shape
    counts = b"".join(text(b"general.base_model.%d.name" % i) + struct.pack("<I", 8) + text(evil) for i in range(999))
    kv = text(b"general.base_model.count") + struct.pack("<Iq", 11, -5)
    yield "base models without end", head(n_kv=1000) + kv + counts


@pytest.mark.parametrize(("what", "data"), nasty(), ids=lambda value: value if isinstance(value, str) else "")
def test_nasty_headers(what: str, data: bytes) -> None:
    started = time.perf_counter()
    outcome(data, whole=False)
    with_ranges(data, random.Random(what))
    tracemalloc.start()
    found = outcome(data, whole=True)
    if isinstance(found, GGUFHeader):
        audited(found, len(data), shards=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.perf_counter() - started < 6 * GENEROUS_S and peak < 64 << 20, peak
