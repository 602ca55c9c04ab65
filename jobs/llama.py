"""The one door to llama.cpp: llama-cpp-python's low-level API with checked arguments and our errors.

llama.cpp aborts the process on arguments it does not like, so they are checked here first. Nothing of the
high-level ``Llama`` class is used: it keeps a copy of all logits.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from core.contract import Environment, Machine
from core.errors import GGUFError, JobError, SettingsError
from core.gguf_files import shard_names, shard_of
from core.gguf_header import read_file_header

TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30}
_FLASH_ATTN = {"auto": -1, "off": 0, "on": 1}
_FULL_LOG = 200

_log_lines: deque[str] = deque(maxlen=_FULL_LOG)
_keep: list[Any] = []


def _lib() -> Any:
    """The bindings' module, loaded and initialised once; its log goes to a ring buffer, not to the screen."""
    import llama_cpp.llama_cpp as lib

    if not _keep:

        @lib.llama_log_callback
        def on_log(level: int, text: bytes, _data: Any) -> None:
            if level >= 3 or level == 0:  # warnings, errors, and lines without a level
                _log_lines.append(text.decode("utf-8", errors="replace").rstrip())

        lib.llama_log_set(on_log, ctypes.c_void_p(0))
        _keep.append(on_log)
        lib.llama_backend_init()
        params = lib.llama_context_default_params()
        # The bindings mirror C structs by hand: defaults in the wrong places mean a library of another version.
        if (params.n_batch, params.n_ubatch, params.n_seq_max) != (2048, 512, 1):
            raise JobError("libllama and llama-cpp-python disagree; reinstall llama-cpp-python (see docs/install.md).")
    return lib


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


class Model:
    """A loaded model. Use as a context manager.

    Raises:
        GGUFError: missing, truncated, not GGUF, or refused by llama.cpp.
    """

    def __init__(self, path: Path, machine: Machine) -> None:
        self.path, self.machine = path, machine
        for shard in shard_paths(path):
            read_file_header(shard)
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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


class Context:
    """A context for ``n_seq`` sequences of ``n_ctx`` tokens each. Use as a context manager."""

    def __init__(
        self,
        model: Model,
        *,
        n_ctx: int,
        n_seq: int,
        n_batch: int,
        n_ubatch: int,
        type_k: str,
        type_v: str,
        flash_attn: str,
        n_threads: int,
        swa_full: bool = False,
    ) -> None:
        for kind in (type_k, type_v):
            if kind not in TYPES:
                raise SettingsError(f"KV cache type {kind!r} is not one of {', '.join(TYPES)}.")
        self.model, self.lib, self.n_vocab = model, model.lib, model.n_vocab
        params = self.lib.llama_context_default_params()
        params.n_ctx = n_ctx * n_seq
        params.n_seq_max = n_seq
        params.n_batch, params.n_ubatch = n_batch, min(n_ubatch, n_batch)
        params.n_threads = params.n_threads_batch = n_threads
        params.flash_attn_type = _FLASH_ATTN[flash_attn]
        params.type_k, params.type_v = TYPES[type_k], TYPES[type_v]
        # llama-perplexity's and llama-bench's settings; the library's own defaults differ.
        params.swa_full, params.kv_unified = swa_full, False
        self._context = self.lib.llama_init_from_model(model.handle, params)
        if not self._context:
            raise JobError(
                f"llama.cpp could not make a context of {n_ctx * n_seq} tokens for {model.path.name}: "
                f"{last_log(2) or 'probably too little memory'}."
            )
        self.n_batch = n_batch
        self._batch = self.lib.llama_batch_init(n_batch, 0, 1)
        fields = {"token": ctypes.c_int32, "pos": ctypes.c_int32, "n_seq_id": ctypes.c_int32, "logits": ctypes.c_int8}
        self._fields: dict[str, NDArray[Any]] = {
            name: np.ctypeslib.as_array(ctypes.cast(getattr(self._batch, name), ctypes.POINTER(kind)), shape=(n_batch,))
            for name, kind in fields.items()
        }
        self._fields["n_seq_id"][:] = 1
        # What stands in the batch's seq_id pointers: they are only rewritten where they change.
        self._sequences = np.full(n_batch, -1, dtype=np.int32)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the context and its batch; safe to call twice."""
        if self._context:
            self.lib.llama_batch_free(self._batch)
            self.lib.llama_free(self._context)
            self._context = None

    def clear(self, *, data: bool = True) -> None:
        """Forget all sequences."""
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self._context), data)

    def decode(
        self,
        tokens: NDArray[np.int32],
        positions: NDArray[np.int32],
        sequences: NDArray[np.int32],
        outputs: NDArray[np.bool_],
    ) -> None:
        """Decode one batch; all arrays of shape (n,), n <= n_batch.

        Raises:
            JobError: llama.cpp refused the batch (no room in the KV cache, out of memory).
        """
        n = len(tokens)
        if n > self.n_batch:
            raise JobError(f"A batch of {n} tokens does not fit the context's {self.n_batch}.")
        if n and not (int(tokens.min()) >= 0 and int(tokens.max()) < self.n_vocab):
            raise JobError(f"A token id lies outside the vocabulary of {self.n_vocab}.")
        self._fields["token"][:n] = tokens
        self._fields["pos"][:n] = positions
        self._fields["logits"][:n] = outputs
        if not np.array_equal(self._sequences[:n], sequences):
            for index, sequence in enumerate(sequences.tolist()):
                self._batch.seq_id[index][0] = sequence
            self._sequences[:n] = sequences
        self._run(n)

    def decode_one(self, token: int, position: int) -> None:
        """Decode one token of sequence 0 and ask for its logits, with as little around it as can be.

        Raises:
            JobError: as :meth:`decode`.
        """
        fields = self._fields
        fields["token"][0], fields["pos"][0], fields["logits"][0] = token, position, 1
        if self._sequences[0] != 0:
            self._batch.seq_id[0][0] = self._sequences[0] = 0
        self._run(1)

    def _run(self, n: int) -> None:
        self._batch.n_tokens = n
        code = self.lib.llama_decode(self._context, self._batch)
        if code:
            raise JobError(f"llama.cpp failed to decode (code {code}): {last_log(2) or 'no reason given'}.")

    def logits(self, n_rows: int) -> NDArray[np.float32]:
        """The logits of the last decode's outputs in batch order: a view of shape (n_rows, n_vocab), valid until
        the next decode."""
        pointer = self.lib.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, shape=(n_rows, self.n_vocab))

    def next_position(self) -> int:
        """The position that follows the last token of sequence 0."""
        return int(self.lib.llama_memory_seq_pos_max(self.lib.llama_get_memory(self._context), 0)) + 1

    def synchronize(self) -> None:
        """Wait until the device has finished."""
        self.lib.llama_synchronize(self._context)
