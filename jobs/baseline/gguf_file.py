"""Lays out a GGUF whose tensors are filled in later, place by place: for files that grow while a model runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor to be: ``shape`` as NumPy has it (rows first), ``kind`` a name of ``GGMLQuantizationType``."""

    name: str
    shape: tuple[int, ...]
    kind: str

    @property
    def row_bytes(self) -> int:
        """Bytes of the last dimension."""
        block, n_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[self.kind]]
        return self.shape[-1] // block * n_bytes

    @property
    def n_bytes(self) -> int:
        """Bytes of the whole tensor."""
        return int(np.prod(self.shape[:-1], dtype=np.int64)) * self.row_bytes


def block_size(kind: str) -> int:
    """Elements that a type packs together (1 for plain floats)."""
    return int(GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0])


def lay_out(path: Path, architecture: str, metadata: Mapping[str, Any], tensors: Sequence[Planned]) -> dict[str, int]:
    """Write a GGUF's header at ``path`` and make the file as long as it will be; where each tensor begins.

    Equal arguments make equal bytes. Values may be str, bool, int (as uint32) and float.

    Raises:
        OSError: no room, or the folder can't be written.
    """
    writer = GGUFWriter(path, architecture)
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_string(key, value)
    for tensor in tensors:
        kind = GGMLQuantizationType[tensor.kind]
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.n_bytes, raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()
    offset = writer.ggml_pad(path.stat().st_size, writer.data_alignment)
    places = {}
    for tensor in tensors:
        places[tensor.name] = offset
        offset += writer.ggml_pad(tensor.n_bytes, writer.data_alignment)
    with path.open("r+b") as file:
        file.truncate(offset)
    return places
