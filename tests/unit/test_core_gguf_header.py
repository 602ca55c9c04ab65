"""GGUF headers: read as gguf's own writer wrote them, from any bytes, in any state of damage."""

from __future__ import annotations

import hashlib
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFEndian, GGUFReader, GGUFValueType, GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import GGUFError
from core.gguf_header import (
    GGUFHeader,
    NeedMoreBytes,
    SkippedArray,
    SkippedString,
    check_whole,
    parse_header,
    read_file_header,
    read_header,
    read_ranges,
)
from core.gguf_walk import Walker

MODELS = Path(__file__).parents[3] / "shared" / "data" / "models"
SCALARS = {
    "u8": (GGUFValueType.UINT8, 200),
    "i8": (GGUFValueType.INT8, -3),
    "u16": (GGUFValueType.UINT16, 60_000),
    "i16": (GGUFValueType.INT16, -30_000),
    "u32": (GGUFValueType.UINT32, 4_000_000_000),
    "i32": (GGUFValueType.INT32, -2_000_000_000),
    "u64": (GGUFValueType.UINT64, 1 << 63),
    "i64": (GGUFValueType.INT64, -(1 << 62)),
    "f32": (GGUFValueType.FLOAT32, 0.5),
    "f64": (GGUFValueType.FLOAT64, 1e-300),
    "bool": (GGUFValueType.BOOL, True),
    "string": (GGUFValueType.STRING, "späť \u2028 🦙"),
}


def write(path: Path, *, endian: GGUFEndian = GGUFEndian.LITTLE, tensors: bool = True, **arrays: Any) -> Path:
    writer = GGUFWriter(path, "llama", endianess=endian)
    for key, (kind, value) in SCALARS.items():
        writer.add_key_value(f"test.{key}", value, kind)
    for key, value in arrays.items():
        writer.add_array(f"test.{key}", value)
    writer.add_token_list([f"token {i}" for i in range(300)])
    writer.add_token_scores([float(i) for i in range(300)])
    writer.add_custom_alignment(64)
    if tensors:
        writer.add_tensor("output.weight", np.ones((4, 96), dtype=np.float32))
        writer.add_tensor("blk.0.attn_q.weight", np.zeros((8, 34), np.uint8), raw_dtype=GGMLQuantizationType.Q8_0)
        writer.add_tensor("blk.0.ffn_up.weight", np.zeros((2, 3, 144), np.uint8), raw_dtype=GGMLQuantizationType.Q4_K)
        writer.add_tensor("blk.0.norm.weight", np.ones(7, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    if tensors:
        writer.write_tensors_to_file()
    else:
        writer.write_ti_data_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(
        tmp_path_factory.mktemp("gguf") / "model.gguf", tags=["a", "b"], numbers=[1, 2, 3], floats=[0.5, 1.5], empty=[]
    )


def info_end(data: bytes) -> int:
    """The shortest beginning that holds the whole header, found by asking for one byte more until it does."""
    low, high = 1, len(data)
    while low < high:
        middle = (low + high) // 2
        try:
            parse_header(data[:middle], whole=False)
            high = middle
        except NeedMoreBytes:
            low = middle + 1
    return low


def shown(header: GGUFHeader) -> list[tuple[Any, ...]]:
    return [(t.name, t.shape, t.type_name, t.n_bytes, header.data_start + t.offset) for t in header.tensors]


def read_by_gguf(path: Path) -> list[tuple[Any, ...]]:
    return [
        (t.name, tuple(int(n) for n in t.shape), t.tensor_type.name, int(t.n_bytes), int(t.data_offset))
        for t in GGUFReader(path).tensors
    ]


def test_every_value_comes_back(written: Path) -> None:
    kv = read_file_header(written).kv
    assert {key: kv[f"test.{key}"] for key in SCALARS} == {key: value for key, (_, value) in SCALARS.items()}
    assert kv["test.tags"] == ["a", "b"]
    assert kv["test.numbers"] == [1, 2, 3]
    assert kv["test.floats"] == [0.5, 1.5]
    tokens = b"".join(struct.pack("<Q", len(one)) + one for one in (f"token {i}".encode() for i in range(300)))
    fingerprint = hashlib.sha256(struct.pack("<Q", 300) + tokens).hexdigest()
    assert kv["tokenizer.ggml.tokens"] == SkippedArray(int(GGUFValueType.STRING), 300, fingerprint)
    assert kv["tokenizer.ggml.scores"] == SkippedArray(int(GGUFValueType.FLOAT32), 300)
    assert read_file_header(written).architecture == "llama"


def test_tensors_are_ggufs_own(written: Path) -> None:
    assert shown(read_file_header(written)) == read_by_gguf(written)


@pytest.mark.parametrize("name", ["stories260K-Q4_K_M", "stories260K-wide256-IQ4_XS", "stories260K-wide256-Q2_K"])
def test_tensors_of_real_files_are_ggufs_own(name: str) -> None:
    path = MODELS / f"{name}.gguf"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    header = read_file_header(path)
    assert shown(header) == read_by_gguf(path)
    assert len(header.tensors) > 40 and header.data_end <= path.stat().st_size


def test_splits(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "model.gguf", "llama", split_max_tensors=2)
    for i in range(5):
        writer.add_tensor(f"blk.{i}.attn_q.weight", np.full((2, 32), i, dtype=np.float32))
    writer.write_header_to_file(tmp_path / "model.gguf")
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    headers = [read_file_header(path) for path in sorted(tmp_path.glob("*.gguf"))]
    assert [h.kv["split.no"] for h in headers] == [0, 1, 2]
    assert {h.kv["split.count"] for h in headers} == {3}
    assert [t.name for h in headers for t in h.tensors] == [f"blk.{i}.attn_q.weight" for i in range(5)]


def test_a_shard_without_tensors_is_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "first.gguf", tensors=False)
    path.write_bytes(path.read_bytes()[: info_end(path.read_bytes())])
    assert read_file_header(path).tensors == ()


def test_big_endian_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "big.gguf", endian=GGUFEndian.BIG)
    with pytest.raises(GGUFError, match="big-endian"):
        read_file_header(path)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_no_beginning_is_taken_for_the_header(written: Path, data: st.DataObject) -> None:
    content = written.read_bytes()
    end = info_end(content)
    cut = data.draw(st.one_of(st.integers(0, end - 1), st.integers(max(0, end - 40), end - 1)))
    with pytest.raises(NeedMoreBytes) as more:
        parse_header(content[:cut], whole=False)
    assert cut < more.value.at_least <= end
    with pytest.raises(GGUFError):
        parse_header(content[:cut], whole=True)


def test_what_is_behind_the_header_does_not_matter(written: Path) -> None:
    content = written.read_bytes()
    end = info_end(content)
    assert parse_header(content[:end], whole=False) == parse_header(content, whole=True)


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_flipped_bytes_are_an_error_or_a_header(written: Path, data: st.DataObject) -> None:
    content = bytearray(written.read_bytes())
    end = info_end(bytes(content))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, end - 1))] ^= data.draw(st.integers(1, 255))
    for whole in (False, True):
        try:
            parse_header(bytes(content), whole=whole)
        except GGUFError:
            pass
        except NeedMoreBytes as more:
            assert not whole and more.at_least > len(content)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_behind_the_magic(tail: bytes) -> None:
    content = b"GGUF" + struct.pack("<IQQ", 3, 2, 2) + tail
    with pytest.raises((GGUFError, NeedMoreBytes)):
        header = parse_header(content, whole=False)
        check_whole(header, size=len(content), name="x")
        raise GGUFError("a header by chance")


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header(*, n_tensors: int = 0, n_kv: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_kv) + rest


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


HUGE = (1 << 63) + 5
LIES = {
    "tensors": header(n_tensors=HUGE),
    "keys": header(n_kv=HUGE),
    "key length": header(n_kv=1, rest=struct.pack("<Q", HUGE)),
    "string length": header(n_kv=1, rest=text("k") + struct.pack("<IQ", 8, HUGE)),
    "array length": header(n_kv=1, rest=text("k") + struct.pack("<IIQ", 9, 4, HUGE)),
    "string array length": header(n_kv=1, rest=text("k") + struct.pack("<IIQ", 9, 8, 40_000_000)),
    "a string in an array": header(n_kv=1, rest=text("k") + struct.pack("<IIQ", 9, 8, 65) + b"\xff" * 600),
    "arrays in arrays": header(n_kv=1, rest=text("k") + struct.pack("<IIQ", 9, 9, 1) * 8),
    "array type": header(n_kv=1, rest=text("k") + struct.pack("<IIQ", 9, 77, 1)),
    "value type": header(n_kv=1, rest=text("k") + struct.pack("<I", 13)),
    "dimensions": header(n_tensors=1, rest=text("t") + struct.pack("<I", 5) + b"\1" * 60),
    "elements": header(n_tensors=1, rest=tensor("t", (HUGE, HUGE))),
    "elements of all": header(n_tensors=2, rest=tensor("t", (1 << 46,), 99) + tensor("u", (1,), 99)),
    "offset": header(n_tensors=1, rest=tensor("t", (1,), 0, HUGE)),
    "a row that is no block": header(n_tensors=1, rest=tensor("t", (31, 2), 8)),
    "a key twice": header(n_kv=2, rest=(text("k") + struct.pack("<IB", 0, 1)) * 2),
    "a tensor twice": header(n_tensors=2, rest=tensor("t", (1,)) * 2),
    "alignment 0": header(n_kv=1, rest=text("general.alignment") + struct.pack("<II", 4, 0)),
    "alignment 48": header(n_kv=1, rest=text("general.alignment") + struct.pack("<II", 4, 48)),
    "alignment true": header(n_kv=1, rest=text("general.alignment") + struct.pack("<IB", 7, 1)),
    "version": b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
    "magic": b"GGML" + bytes(64),
    "nothing": b"",
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_refused_whole_or_not(lie: str) -> None:
    with pytest.raises(GGUFError):
        parse_header(LIES[lie], whole=True)
    if lie != "nothing":
        with pytest.raises(GGUFError):
            parse_header(LIES[lie] + bytes(2000), whole=False)


def test_lies_take_no_memory() -> None:
    nested = struct.pack("<IQ", 9, 64) + (struct.pack("<IQ", 0, 60) + bytes(60)) * 64
    content = header(n_kv=1, rest=text("k") + struct.pack("<IIQ", 9, 9, 250) + nested * 250)
    tracemalloc.start()
    found = parse_header(content, whole=True)
    for lie in LIES.values():
        with pytest.raises((GGUFError, NeedMoreBytes)):
            parse_header(lie + bytes(500), whole=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.kv["k"] == SkippedArray(9, 250)
    assert peak < 4 * len(content)


def test_unknown_tensor_types_are_sized_by_what_follows() -> None:
    rest = (
        tensor("a", (32,), 0, 0)
        + tensor("b", (64,), 250, 128)
        + tensor("c", (8,), 0, 224)
        + tensor("d", (9,), 251, 256)
    )
    found = parse_header(header(n_tensors=4, rest=rest), whole=True)
    assert [(t.type_name, t.n_bytes) for t in found.tensors] == [
        ("F32", 128), ("TYPE_250", 96), ("F32", 32), ("TYPE_251", 0),
    ]  # fmt: skip
    assert found.unknown_types == (250, 251)


def test_a_type_that_gguf_removed_is_unknown_too() -> None:
    found = parse_header(header(n_tensors=1, rest=tensor("a", (32,), 4)), whole=True)
    assert found.tensors[0].type_name == "TYPE_4"


class Ranges:
    """A file behind ranged reads that counts them."""

    def __init__(self, content: bytes) -> None:
        self.content, self.asked = content, []

    def __call__(self, offset: int, length: int) -> bytes:
        self.asked.append((offset, length))
        return self.content[offset : offset + length]


def large(n_tokens: int) -> bytes:
    """A header with a vocabulary, tensor data behind it."""
    tokens = (text("t") + text("t" * 11)) * (n_tokens // 2)
    kv = text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, n_tokens) + tokens
    return header(n_kv=1, n_tensors=1, rest=kv + tensor("t", (1024,)))


@pytest.mark.parametrize(("n_tokens", "ranges"), [(1000, 1), (150_000, 2), (480_000, 3), (1_500_000, 5)])
def test_few_ranges_are_asked_for(n_tokens: int, ranges: int) -> None:
    head = large(n_tokens)
    content = head + bytes(-len(head) % 32 + 4096 + (20 << 20))
    reader = Ranges(content)
    found = read_ranges(reader, size=len(content), name="x")
    assert found.header.kv["tokenizer.ggml.tokens"].length == n_tokens
    assert found.ranges == len(reader.asked) <= ranges
    ends = [offset + length for offset, length in reader.asked]
    assert [offset for offset, _ in reader.asked] == [0, *ends[:-1]], "no byte is asked for twice"
    assert found.bytes_read == ends[-1]


@pytest.mark.parametrize("merges", [100, 50_000, 151_000, 300_000, 400_000])
def test_a_large_vocabulary_with_merges_takes_three_ranges_and_sixteen_megabytes(merges: int) -> None:
    """Tokens, types and merges of up to 12.5 MiB, whatever the guess makes of them."""
    n = 151_936
    arrays = [
        (b"tokenizer.ggml.tokens", struct.pack("<IIQ", 9, 8, n) + b"".join(text("t" * (3 + i % 9)) for i in range(n))),
        (b"tokenizer.ggml.token_type", struct.pack("<IIQ", 9, 5, n) + bytes(4 * n)),
        (b"tokenizer.ggml.merges", struct.pack("<IIQ", 9, 8, merges) + text("ab cdefghijk") * merges),
    ]
    kv = b"".join(struct.pack("<Q", len(key)) + key + value for key, value in arrays)
    head = header(n_kv=3, n_tensors=1, rest=kv + tensor("t", (1024,)))
    content = head + bytes(-len(head) % 32 + 4096 + (20 << 20))
    found = read_ranges(Ranges(content), size=len(content), name="x")
    assert len(head) <= 25 << 19 and found.ranges <= 3 and found.bytes_read <= 16_000_000
    assert found.header.kv["tokenizer.ggml.merges"].length == merges


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=40))
def test_pieces_of_any_size_give_the_same_header(written: Path, cuts: list[float]) -> None:
    content = written.read_bytes()
    whole = parse_header(content, whole=True)
    ends = sorted({int(cut * whole.data_start) for cut in cuts} | {whole.data_start})
    walker, at = Walker("x"), 0
    for end in ends:
        done = walker.feed(content[at:end])
        at = end
        assert done or at < walker.needed <= whole.data_start
        if done:
            break
    assert done and whole.data_start - 64 < walker.position <= whole.data_start
    assert walker.kv == whole.kv
    assert [info[0] for info in walker.infos] == [t.name for t in whole.tensors]


def test_memory_stays_at_a_piece() -> None:
    """Neither a long vocabulary nor a long string is kept, and no piece is kept behind the next."""
    long = text("k") + struct.pack("<IQ", 8, 20 << 20) + b"x" * (20 << 20)
    content = header(n_kv=2, rest=large(700_000)[24:-33] + long)
    tracemalloc.start()
    found = read_ranges(lambda at, n: content[at : at + n], size=len(content), name="x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.header.kv["k"] == SkippedString(20 << 20, hashlib.sha256(b"x" * (20 << 20)).hexdigest())
    assert peak < 40 << 20


def test_the_vocabulary_is_known_by_its_bytes() -> None:
    def vocabulary(*tokens: str, key: str = "tokenizer.ggml.tokens") -> Any:
        rest = text(key) + struct.pack("<IIQ", 9, 8, len(tokens)) + b"".join(text(one) for one in tokens)
        return parse_header(header(n_kv=1, rest=rest), whole=True).kv[key]

    found = vocabulary("a", "bc")
    assert found.sha256 == hashlib.sha256(struct.pack("<Q", 2) + text("a") + text("bc")).hexdigest()
    assert len({vocabulary(*tokens).sha256 for tokens in (("a", "bc"), ("ab", "c"), ("bc", "a"), ("a", "bc", ""))}) == 4
    assert vocabulary("a", "bc", key="tokenizer.ggml.merges") == ["a", "bc"]


def test_a_lying_length_is_not_fetched() -> None:
    content = LIES["string array length"][:-8] + struct.pack("<Q", 5_000_000) + bytes(30 << 20)
    reader = Ranges(content)
    with pytest.raises(GGUFError, match="truncated"):
        read_header(reader, size=len(content), name="x")
    assert sum(length for _, length in reader.asked) <= 2 << 20


def test_truncation_is_seen_behind_the_header_and_in_it(written: Path) -> None:
    content = written.read_bytes()
    for size in (len(content) - 1000, info_end(content) - 1, 10, 0):
        with pytest.raises(GGUFError):
            read_header(Ranges(content[:size]), size=size, name="x")


def test_a_source_that_gives_less_than_promised(written: Path) -> None:
    content = written.read_bytes()
    with pytest.raises(GGUFError, match="promised"):
        read_header(Ranges(content[:100]), size=len(content), name="x")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match="does not exist"):
        read_file_header(tmp_path / "none.gguf")
    with pytest.raises(GGUFError, match="can't be read"):
        read_file_header(tmp_path)
