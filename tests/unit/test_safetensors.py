"""Safetensors headers and indexes: what is read of good ones, and that hostile ones only ever raise our error."""

from __future__ import annotations

import contextlib
import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.safetensors import (
    FIRST_RANGE,
    MAX_HEADER,
    MAX_INDEX,
    MAX_INDEXED,
    MAX_NAME,
    MAX_TENSORS,
    SafeTensor,
    SafetensorsError,
    parse_header,
    parse_index,
    read_header,
)
from tests.checkpoints import Checkpoint, safetensors

GOOD = safetensors({"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float32)}, dtype="F16")


def raw(header: Any, data: bytes = bytes(64)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def read(data: bytes) -> dict[str, SafeTensor]:
    return parse_header(data, size=len(data), name="m.safetensors")


def entry(**changed: Any) -> dict[str, Any]:
    return {"x": {"dtype": "F32", "shape": [2, 8], "data_offsets": [0, 64], **changed}}


def test_a_header() -> None:
    found = read(GOOD)
    start = 8 + int.from_bytes(GOOD[:8], "little")
    assert found["a"] == SafeTensor("a", "F16", (2, 3), start, 12)
    assert found["b"] == SafeTensor("b", "F16", (4,), start + 12, 8)
    assert found["a"].n_elements == 6


def test_a_long_header_takes_two_ranges_and_a_short_one_takes_one() -> None:
    for n in (3, 6000):
        data = safetensors({f"model.layers.{i}.mlp.up_proj.weight": np.ones(1, np.float32) for i in range(n)})
        asked: list[int] = []

        def ranged(offset: int, length: int, data: bytes = data, asked: list[int] = asked) -> bytes:
            asked.append(length)
            return data[offset : offset + length]

        assert len(read_header(ranged, size=len(data), name="m")) == n
        assert len(asked) == (2 if len(data) > FIRST_RANGE else 1)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"short", bytes(8), bytes(100), (1 << 62).to_bytes(8, "little") + bytes(64),
        (MAX_HEADER + 1).to_bytes(8, "little") + bytes(64), GOOD[:40], raw(b"[]"), raw(b"{"), raw(b"\xff\xfe{}"),
        raw(b'{"a":' * 50_000), raw(b"[" * 900_000), raw({"x": 1}), raw({"x": {}}), raw(entry(dtype=5)),
        raw(entry(shape="22")), raw(entry(shape=[2, -8])), raw(entry(shape=[2, 8.0])), raw(entry(shape=[True, 16])),
        raw(entry(shape=[1] * 9)), raw(entry(shape=[2, 7])), raw(entry(shape=[1 << 40, 1 << 40])),
        raw(entry(data_offsets=[0, 65])), raw(entry(data_offsets=[64, 0])), raw(entry(data_offsets=[0])),
        raw(entry(data_offsets=[0, 1 << 70])), raw(entry(data_offsets=None)),
        raw(b'{"x":{"dtype":"F32","shape":[16],"data_offsets":[0,64]},"x":{"dtype":"F32","shape":[1],'
            b'"data_offsets":[0,4]}}'),
        raw(b'{"x":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,64]}}'),
    ],
)  # fmt: skip
def test_what_can_not_be_true_is_refused(data: bytes) -> None:
    with pytest.raises(SafetensorsError, match=r"m\.safetensors"):
        read(data)


def test_types_that_are_not_known_are_left_out() -> None:
    assert read(raw(entry(dtype="F4") | {"y": entry()["x"]})).keys() == {"y"}


@given(st.data())
def test_no_changed_header_does_more_than_raise(data: st.DataObject) -> None:
    bytes_ = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 8))):
        bytes_[data.draw(st.integers(0, len(bytes_) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(bytes_[: data.draw(st.integers(0, len(bytes_)))])
    try:
        for tensor in read(cut).values():
            assert tensor.offset >= 0 and tensor.offset + tensor.n_bytes <= len(cut)
    except SafetensorsError:
        pass


def test_an_index() -> None:
    files = Checkpoint(layers=1).files(shards=3)
    found = parse_index(files["model.safetensors.index.json"], name="index")
    assert set(found.values()) == set(files) - {"config.json", "model.safetensors.index.json"}
    assert found["model.embed_tokens.weight"] in files


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"{}", b'{"weight_map": []}', b'{"weight_map": {"a": 1}}',
        b'{"weight_map": {"a": "../other/model.safetensors"}}', b'{"weight_map": {"a": "model.bin"}}',
        b'{"weight_map": {"a": "https://x/y.safetensors"}}', b'{"weight_map": {"a": "a/b.safetensors"}}',
    ],
)  # fmt: skip
def test_an_index_that_leads_elsewhere_is_refused(data: bytes) -> None:
    with pytest.raises(SafetensorsError):
        parse_index(data, name="index")


def peak(read_it: Any) -> int:
    """Bytes that reading takes at most, beside what was there before."""
    tracemalloc.start()
    try:
        with contextlib.suppress(SafetensorsError):
            read_it()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("item", ["1.5", '""', "[]", "{}", '"\\u0101x"', "[[[1]]]", '{"a":1}', "9" * 30])
def test_a_hostile_header_takes_little_memory_however_it_is_filled(item: str) -> None:
    body = '{"a":[' + ",".join([item] * ((MAX_HEADER - 10) // (len(item) + 1))) + "]}"
    data = raw(body.encode(), b"")
    assert len(data) > MAX_HEADER - 100
    assert peak(lambda: parse_header(data, size=1 << 40, name="m")) < 64 << 20


def test_the_largest_header_and_index_that_are_read_take_little_memory() -> None:
    one = {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}
    tensors = {f"model.layers.{i}.mlp.experts.{i}.x": one for i in range(MAX_TENSORS)}
    data = raw(json.dumps(tensors, separators=(",", ":")).encode(), bytes(4))
    assert len(parse_header(data, size=len(data), name="m")) == MAX_TENSORS
    assert peak(lambda: parse_header(data, size=len(data), name="m")) < 64 << 20
    index = {f"model.layers.{i}.mlp.experts.{i}.x": f"m{i}.safetensors" for i in range(MAX_INDEXED - 1)}
    text = json.dumps({"weight_map": index}, separators=(",", ":")).encode()
    assert len(parse_index(text, name="i")) == MAX_INDEXED - 1
    assert peak(lambda: parse_index(text, name="i")) < 64 << 20


def test_what_is_larger_than_any_model_is_refused() -> None:
    entries = ",".join(f'"{i:x}":1' for i in range(MAX_INDEXED * 2)).encode()
    for text in (b'{"weight_map":{' + entries + b"}}", b'{"weight_map":{}}' + b" " * MAX_INDEX):
        with pytest.raises(SafetensorsError):
            parse_index(text, name="i")
        assert peak(lambda text=text: parse_index(text, name="i")) < 1 << 20
    for text in (raw({"x" * (MAX_NAME + 1): entry()["x"]}), json.dumps({"weight_map": {"x" * 600: "a.safetensors"}})):
        with pytest.raises(SafetensorsError):
            read(text) if isinstance(text, bytes) else parse_index(text.encode(), name="i")
