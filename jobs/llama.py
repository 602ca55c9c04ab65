"""The one door to llama.cpp: llama-cpp-python's low-level API with checked arguments and our errors.

llama.cpp aborts the process on arguments it does not like, so they are checked here first. Nothing of the
high-level ``Llama`` class is used: it keeps a copy of all logits.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.closes import Closes
from core.contract import Environment, Machine
from core.errors import GGUFError, JobError
from core.gguf_files import shard_names, shard_of
from core.gguf_header import read_file_header

TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30}
FLASH_ATTN = {"auto": -1, "off": 0, "on": 1}
_FULL_LOG = 200

_log_lines: deque[str] = deque(maxlen=_FULL_LOG)
#: Whether warnings and errors go to stderr too: in a process whose parent wants its last words.
echo_log = False
_keep: list[Any] = []


def _lib() -> Any:
    """The bindings' module, loaded and initialised once; its log goes to a ring buffer, not to the screen."""
    import llama_cpp.llama_cpp as lib

    if not _keep:

        @lib.llama_log_callback
        def on_log(level: int, text: bytes, _data: Any) -> None:
            if level >= 3 or level == 0:  # warnings, errors, and lines without a level
                line = text.decode("utf-8", errors="replace").rstrip()
                _log_lines.append(line)
                if echo_log and line:
                    print(line, file=sys.stderr, flush=True)

        lib.llama_log_set(on_log, ctypes.c_void_p(0))
        _keep.append(on_log)
        lib.llama_backend_init()
        params = lib.llama_context_default_params()
        # The bindings mirror C structs by hand: defaults in the wrong places mean a library of another version.
        if (params.n_batch, params.n_ubatch, params.n_seq_max) != (2048, 512, 1):
            raise JobError("libllama and llama-cpp-python disagree; reinstall llama-cpp-python (see docs/install.md).")
    return lib


def ggml() -> Any:
    """libggml's functions that the bindings do not bind, typed: found in the library that libllama itself uses."""
    base = _lib()._lib
    base.ggml_get_name.argtypes, base.ggml_get_name.restype = [ctypes.c_void_p], ctypes.c_char_p
    base.ggml_nrows.argtypes, base.ggml_nrows.restype = [ctypes.c_void_p], ctypes.c_int64
    base.ggml_nbytes.argtypes, base.ggml_nbytes.restype = [ctypes.c_void_p], ctypes.c_size_t
    base.ggml_backend_tensor_get.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    base.ggml_backend_tensor_get.restype = None
    return base


def last_log(n: int = 1) -> str:
    """The last warnings or errors that llama.cpp logged, for error messages."""
    return " | ".join([line for line in _log_lines if line][-n:])


def physical_cores() -> int:
    """Physical cores this process may use: llama.cpp's own default for threads."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    siblings = set()
    for cpu in allowed:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings")
        try:
            siblings.add(path.read_text())
        except OSError:
            return len(allowed)
    return len(siblings)


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _gpu() -> tuple[str | None, str | None]:
    """(name, driver) of the first NVIDIA GPU, if NVML is there."""
    try:
        import pynvml

        pynvml.nvmlInit()
        name = pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0))
        return str(name), str(pynvml.nvmlSystemGetDriverVersion())
    except Exception:
        # NVML raises its own family of errors, and none of them means more than 'no NVIDIA GPU to name'.
        return None, None


def environment(machine: Machine) -> Environment:
    """What we find here: llama.cpp's build and devices, CPU, GPU, threads."""
    lib = _lib()
    from importlib.metadata import version

    gpu, driver = _gpu() if lib.llama_supports_gpu_offload() else (None, None)
    return Environment(
        llama_cpp=f"llama-cpp-python {version('llama-cpp-python')}, llama.cpp {lib.llama_version().decode()}",
        backend=f"CUDA: {gpu}" if gpu else ("GPU" if lib.llama_supports_gpu_offload() else "CPU"),
        system_info=" ".join(lib.llama_print_system_info().decode().split()),
        cpu=_cpu_name(),
        gpu=gpu,
        driver=driver,
        n_threads=machine.n_threads or physical_cores(),
        n_gpu_layers=machine.n_gpu_layers if lib.llama_supports_gpu_offload() else 0,
    )


class Model(Closes):
    """A loaded model. Use as a context manager.

    Args:
        is_head: whether it is a baseline's output head, which has no vocabulary and takes states only.

    Raises:
        GGUFError: missing, truncated, not GGUF, or refused by llama.cpp.
    """

    def __init__(self, path: Path, machine: Machine, *, is_head: bool = False) -> None:
        self.path, self.machine = path, machine
        for shard in shard_paths(path):
            kv = read_file_header(shard).kv
            if not is_head and any(key.startswith("quantcard.") for key in kv):
                raise GGUFError(f"{path.name} belongs to a baseline; it is no model. Give the variant's own file.")
        self.lib = _lib()
        params = self.lib.llama_model_default_params()
        params.n_gpu_layers = machine.n_gpu_layers
        self._model = self.lib.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise GGUFError(f"llama.cpp could not load {path.name}: {last_log(2) or 'no reason given'}.")
        self.vocab = self.lib.llama_model_get_vocab(self._model)
        self.n_vocab: int = self.lib.llama_vocab_n_tokens(self.vocab)
        self.add_bos: bool = bool(self.lib.llama_vocab_get_add_bos(self.vocab))
        self.add_eos: bool = bool(self.lib.llama_vocab_get_add_eos(self.vocab))
        self.bos: int = self.lib.llama_vocab_bos(self.vocab)
        self.n_embd: int = self.lib.llama_model_n_embd(self._model)
        self.n_ctx_train: int = self.lib.llama_model_n_ctx_train(self._model)

    def close(self) -> None:
        """Free the model; safe to call twice."""
        if self._model:
            self.lib.llama_model_free(self._model)
            self._model = None

    @property
    def handle(self) -> Any:
        """The C pointer, for contexts."""
        return self._model

    @property
    def description(self) -> str:
        """llama.cpp's own words for it, e.g. ``llama ?B Q4_K - Medium`` (llama-bench's ``model_type``)."""
        buffer = ctypes.create_string_buffer(256)
        self.lib.llama_model_desc(self._model, buffer, 256)
        return buffer.value.decode("utf-8", errors="replace")

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return int(self.lib.llama_model_size(self._model))

    @property
    def n_params(self) -> int:
        """Number of parameters."""
        return int(self.lib.llama_model_n_params(self._model))

    def tokenize(self, text: bytes) -> NDArray[np.int32]:
        """Token ids of ``text`` with the special tokens the vocabulary adds, as llama-perplexity tokenizes."""
        capacity = len(text) + 16
        tokens = (ctypes.c_int32 * capacity)()
        n = self.lib.llama_tokenize(self.vocab, text, len(text), tokens, capacity, True, False)
        if n < 0:
            raise JobError(f"llama.cpp could not tokenize the corpus with {self.path.name} (code {n}).")
        return np.ctypeslib.as_array(tokens)[:n].copy()

    def vocab_texts(self) -> list[bytes]:
        """The text of every token, by id: what two vocabularies must share to be comparable."""
        get = self.lib.llama_vocab_get_text
        return [get(self.vocab, token) or b"" for token in range(self.n_vocab)]


def shard_paths(path: Path) -> list[Path]:
    """All files of a split set whose first shard is ``path`` (just ``path`` for a single file).

    Raises:
        GGUFError: ``path`` is not the first shard, or another shard is missing.
    """
    number, count = shard_of(path.name)
    if count == 1:
        return [path]
    if number != 1:
        raise GGUFError(f"{path.name} is shard {number} of {count}; give the first shard.")
    paths = [path.with_name(name) for name in shard_names(path.name)]
    for shard in paths:
        if not shard.exists():
            raise GGUFError(f"{shard.name} is missing beside {path.name}; fetch all {count} shards.")
    return paths
