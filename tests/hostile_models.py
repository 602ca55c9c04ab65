"""GGUF files that mean harm: small, honest-looking models with one thing changed in their bytes."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path

from core.gguf_header import read_file_header
from tests.tiny_models import tiny_model

_UINT32, _STRING, _ARRAY, _UINT64 = 4, 8, 9, 10
_FIXED = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def text(value: bytes) -> bytes:
    """A GGUF string."""
    return struct.pack("<Q", len(value)) + value


def uint32(value: int) -> bytes:
    """A typed uint32 value."""
    return struct.pack("<II", _UINT32, value)


def string(value: bytes) -> bytes:
    """A typed string value."""
    return struct.pack("<I", _STRING) + text(value)


def header(n_tensors: int, n_kv: int, rest: bytes = b"") -> bytes:
    """The first bytes of a GGUF file that claims that much."""
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_kv) + rest


def _value_end(data: bytes, at: int) -> int:
    (kind,) = struct.unpack_from("<I", data, at)
    at += 4
    if kind == _STRING:
        return at + 8 + int(struct.unpack_from("<Q", data, at)[0])
    if kind != _ARRAY:
        return at + _FIXED[kind]
    inner, n = struct.unpack_from("<IQ", data, at)
    at += 12
    if inner != _STRING:
        return at + int(n) * _FIXED[inner]
    for _ in range(n):
        at += 8 + int(struct.unpack_from("<Q", data, at)[0])
    return at


def with_values(data: bytes, changes: Mapping[str, bytes]) -> bytes:
    """A GGUF file with typed values put in or replaced, and its tensors' data where it then has to be."""
    n_tensors, n_kv = struct.unpack_from("<QQ", data, 8)
    at, kept = 24, []
    for _ in range(n_kv):
        (length,) = struct.unpack_from("<Q", data, at)
        key = data[at + 8 : at + 8 + length].decode()
        end = _value_end(data, at + 8 + length)
        if key not in changes:
            kept.append(data[at:end])
        at = end
    infos = at
    for _ in range(n_tensors):
        at += 8 + int(struct.unpack_from("<Q", data, at)[0])
        at += 4 + 8 * int(struct.unpack_from("<I", data, at)[0]) + 4 + 8
    kept += [text(key.encode()) + value for key, value in changes.items()]
    body = header(n_tensors, len(kept), b"".join(kept)) + data[infos:at]
    return body + bytes(-len(body) % 32) + data[at + -at % 32 :]


def changed(path: Path, changes: Mapping[str, bytes], *, kind: str = "llama-tied") -> Path:
    """A tiny model with some of its values changed."""
    tiny_model(path, kind)
    data = with_values(path.read_bytes(), changes)
    path.write_bytes(data)
    return path


#: Files that the reader of headers refuses before llama.cpp sees them.
REFUSED: dict[str, bytes] = {
    "a million million tensors": header(10**12, 0),
    "a million million values": header(0, 10**12),
    "as much as 64 bits can say": header(2**64 - 1, 2**64 - 1),
    "a key of an exabyte": header(0, 1, struct.pack("<Q", 2**60)),
    "a string of an exabyte": header(0, 1, text(b"a") + struct.pack("<IQ", _STRING, 2**60)),
    "an array of a million million": header(0, 1, text(b"a") + struct.pack("<IIQ", _ARRAY, _UINT64, 10**12)),
    "arrays in arrays": header(0, 1, text(b"a") + struct.pack("<I", _ARRAY) + struct.pack("<IQ", _ARRAY, 1) * 100_000),
    "a tensor of 2^200 elements": header(1, 0, text(b"t") + struct.pack("<I4QIQ", 4, *[2**50] * 4, 0, 0)),
    "a tensor of 10^6 dimensions": header(1, 0, text(b"t") + struct.pack("<I", 10**6) + bytes(8 * 10**6 + 12)),
    "no GGUF": b"GGML" + bytes(100),
    "nothing": b"",
}


def truncated(path: Path) -> None:
    """A model whose tensors end in the middle."""
    tiny_model(path, "llama-tied")
    path.write_bytes(path.read_bytes()[:-5000])


def templated(path: Path) -> None:
    """A model with a chat template that never ends, eats memory and reads files, for whoever renders it."""
    template = (
        b"{% for i in range(10**12) %}{{ 'x' * 10**9 }}{% endfor %}"
        b"{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.popen('id').read() }}"
    )
    changed(path, {"tokenizer.chat_template": string(template * 200)})


def hungry(path: Path, *, n_heads: int = 12_000) -> None:
    """A model whose attention heads alone make a cache of gigabytes; on disk it is next to nothing (a sparse file)."""
    changed(path, {f"llama.attention.{name}": uint32(32) for name in ("key_length", "value_length")})
    width = 32 * n_heads
    data = with_values(
        path.read_bytes(),
        {"llama.attention.head_count": uint32(n_heads), "llama.attention.head_count_kv": uint32(n_heads)},
    )
    path.write_bytes(data)
    tensors = read_file_header(path).tensors
    (n_tensors,) = struct.unpack_from("<Q", data, 8)
    infos = data.index(text(tensors[0].name.encode()), 24)
    offset, made = 0, []
    for tensor in tensors:
        shape = list(tensor.shape)
        if ".attn_" in tensor.name and len(shape) == 2:
            # Rows of the output projection are heads, of the others columns.
            shape[0 if "attn_output" in tensor.name else 1] = width
        n_bytes = tensor.n_bytes // math.prod(tensor.shape) * math.prod(shape)
        kind = _type_of(data, infos, tensor.name)
        made.append(text(tensor.name.encode()) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset))
        offset += n_bytes + -n_bytes % 32
    assert n_tensors == len(made)
    body = data[:infos] + b"".join(made)
    path.write_bytes(body)
    with path.open("r+b") as file:
        file.truncate(len(body) + -len(body) % 32 + offset)


def _type_of(data: bytes, infos: int, name: str) -> int:
    at = data.index(text(name.encode()), infos) + 8 + len(name.encode())
    (n,) = struct.unpack_from("<I", data, at)
    return int(struct.unpack_from("<I", data, at + 4 + 8 * n)[0])
