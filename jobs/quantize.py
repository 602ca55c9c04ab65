"""Makes a quantized GGUF with llama.cpp's own quantizer."""

from __future__ import annotations

import os
from pathlib import Path

from gguf import LlamaFileType

from core.contract import QuantizeResult, QuantizeSpec
from core.errors import GGUFError, SettingsError
from core.gguf_header import read_file_header
from jobs.llama import _lib, last_log, physical_cores


def file_type_id(label: str) -> int:
    """llama.cpp's file type id for a label such as ``Q4_K_M``.

    Raises:
        SettingsError: no such type.
    """
    names = {kind.name.removeprefix("MOSTLY_").removeprefix("ALL_"): int(kind) for kind in LlamaFileType}
    if label.upper() not in names:
        raise SettingsError(f"{label!r} is no quantization type of llama.cpp. Try Q4_K_M.")
    return names[label.upper()]


def quantize(spec: QuantizeSpec) -> QuantizeResult:
    """Quantize ``spec.model`` into ``spec.out``, which appears whole or not at all.

    Raises:
        GGUFError: the source can't be used, or llama.cpp refused it.
    """
    import ctypes

    source, out = Path(spec.model), Path(spec.out)
    read_file_header(source)
    lib = _lib()
    params = lib.llama_model_quantize_default_params()
    params.ftype = file_type_id(spec.file_type)
    params.nthread = spec.machine.n_threads or physical_cores()
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.part")
    code = lib.llama_model_quantize(str(source).encode(), str(part).encode(), ctypes.byref(params))
    if code:
        part.unlink(missing_ok=True)
        raise GGUFError(f"llama.cpp could not make {spec.file_type} of {source.name}: {last_log(2) or code}.")
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(out)
    return QuantizeResult(path=str(out), file_type=spec.file_type, size_bytes=out.stat().st_size)
