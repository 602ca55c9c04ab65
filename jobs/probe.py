"""What ``quantcard doctor`` asks of llama.cpp, in a process of its own, since a build that does not fit its machine
dies of it: ``python -m jobs.probe build`` or ``... decode MODEL FOLDER GPU_LAYERS TYPE...``. Prints JSON lines.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.contract import Machine, QuantizeSpec
from core.errors import QuantcardError

#: Tokens decoded at once: enough for the matrix code that long prompts take, as a measurement's do.
N_TOKENS = 128
#: ``enum ggml_backend_dev_type``.
_DEVICE_TYPES = {0: "CPU", 1: "GPU", 2: "integrated GPU", 3: "accelerator"}
_TEXT = b"The probe decodes a few plain words, over and over, to see whether this build of llama.cpp works here. " * 16


def build() -> dict[str, Any]:
    """llama.cpp's build, features and devices, and the GPUs that NVML sees; nothing is loaded or run on them."""
    from importlib.metadata import version

    from jobs.llama import _lib

    lib = _lib()
    return {
        "bindings": version("llama-cpp-python"),
        "version": lib.llama_version().decode(),
        "system_info": " ".join(lib.llama_print_system_info().decode().split()),
        "offload": bool(lib.llama_supports_gpu_offload()),
        "devices": _devices(),
        "gpus": _gpus(),
    }


def _devices() -> list[dict[str, Any]]:
    """llama.cpp's devices, the CPU among them; memory in bytes."""
    from jobs.llama import ggml

    base = ggml()
    base.ggml_backend_dev_count.restype = ctypes.c_size_t
    base.ggml_backend_dev_get.argtypes, base.ggml_backend_dev_get.restype = [ctypes.c_size_t], ctypes.c_void_p
    for name in ("name", "description"):
        function = getattr(base, f"ggml_backend_dev_{name}")
        function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_char_p
    base.ggml_backend_dev_type.argtypes, base.ggml_backend_dev_type.restype = [ctypes.c_void_p], ctypes.c_int
    sizes = ctypes.POINTER(ctypes.c_size_t)
    base.ggml_backend_dev_memory.argtypes, base.ggml_backend_dev_memory.restype = [ctypes.c_void_p, sizes, sizes], None
    found = []
    for index in range(base.ggml_backend_dev_count()):
        device = base.ggml_backend_dev_get(index)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        base.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
        kind = base.ggml_backend_dev_type(device)
        found.append(
            {
                "name": base.ggml_backend_dev_name(device).decode(errors="replace"),
                "description": base.ggml_backend_dev_description(device).decode(errors="replace"),
                "type": _DEVICE_TYPES.get(kind, str(kind)),
                "memory": total.value,
            }
        )
    return found


def _gpus() -> list[dict[str, Any]]:
    """NVIDIA's GPUs by NVML: name, memory (bytes), compute capability, driver."""
    try:
        import pynvml as nvml

        nvml.nvmlInit()
        driver = str(nvml.nvmlSystemGetDriverVersion())
        found = []
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
            name, memory = str(nvml.nvmlDeviceGetName(handle)), int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
            found.append({"name": name, "memory": memory, "capability": f"{major}{minor}", "driver": driver})
        return found
    except Exception:
        # NVML raises its own family of errors, and none of them means more than 'no NVIDIA GPU to name'.
        return []


def decode(model: Path, folder: Path, gpu_layers: int, types: list[str], tell: Callable[[Any], None]) -> None:
    """Decode the demo model, then each quantization of it, and tell how far its distributions are from the first's.

    What is about to be tried is told before, so that whoever reads knows what a crash came of.
    """
    from jobs.quantize import quantize

    machine = Machine(n_gpu_layers=gpu_layers)
    tell({"try": "F16"})
    first = _log_softmax(_logits(model, machine))
    tell({"done": "F16", "kld": 0.0 if np.isfinite(first).all() else None})
    for label in types:
        tell({"try": label})
        out = folder / f"probe-{label}.gguf"
        quantize(QuantizeSpec(model=str(model), out=str(out), file_type=label))
        other = _log_softmax(_logits(out, machine))
        out.unlink()
        kld = float(np.mean(np.sum(np.exp(first) * (first - other), axis=1)))
        tell({"done": label, "kld": kld if np.isfinite(kld) else None})


def _logits(path: Path, machine: Machine) -> NDArray[np.float64]:
    """Logits of every token of a short text, shape (N_TOKENS, n_vocab)."""
    from jobs.context import Context
    from jobs.llama import Model, physical_cores

    with (
        Model(path, machine) as model,
        Context(
            model, n_ctx=N_TOKENS, n_seq=1, n_batch=N_TOKENS, n_ubatch=N_TOKENS, type_k="f16", type_v="f16",
            flash_attn="auto", n_threads=physical_cores(),
        ) as context,
    ):  # fmt: skip
        tokens = model.tokenize(_TEXT)[:N_TOKENS]
        n = len(tokens)
        context.decode(tokens, np.arange(n, dtype=np.int32), np.zeros(n, dtype=np.int32), np.ones(n, dtype=np.bool_))
        return context.logits(n).astype(np.float64)


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    found: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found


def main() -> int:
    """Entry point of the probing process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG: no probe outlives its doctor
    # Libraries (C ones too) that print get stderr.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(value: Any) -> None:
        out.write(json.dumps(value) + "\n")
        out.flush()

    try:
        match sys.argv[1:]:
            case ["build"]:
                tell(build())
            case ["decode", model, folder, gpu_layers, *types]:
                decode(Path(model), Path(folder), int(gpu_layers), types, tell)
            case _:
                print("usage: python -m jobs.probe build | decode MODEL FOLDER GPU_LAYERS TYPE...", file=sys.stderr)
                return 2
    except QuantcardError as error:
        tell({"error": str(error)})
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
