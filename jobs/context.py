"""llama.cpp contexts: decode tokens for their logits (and the states that enter the head), or states for theirs."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.closes import Closes
from core.errors import JobError, SettingsError
from jobs.llama import FLASH_ATTN, TYPES, Model, ggml, last_log

#: llama.cpp's name for what enters the output head.
STATE_TENSOR = b"result_norm"


class _Context(Closes):
    """What both kinds share: the C context and its batch. Use as a context manager."""

    def __init__(self, model: Model, params: Any, *, n_embd: int, n_tokens: int) -> None:
        self.model, self.lib, self.n_vocab = model, model.lib, model.n_vocab
        self._params = params  # it holds the callback that the context calls
        self._context = self.lib.llama_init_from_model(model.handle, params)
        if not self._context:
            raise JobError(
                f"llama.cpp could not make a context of {n_tokens} tokens for {model.path.name}: "
                f"{last_log(2) or 'probably too little memory'}."
            )
        self.n_batch: int = params.n_batch
        self._batch = self.lib.llama_batch_init(self.n_batch, n_embd, 1)
        fields: dict[str, Any] = {"pos": ctypes.c_int32, "n_seq_id": ctypes.c_int32, "logits": ctypes.c_int8}
        fields |= {"embd": ctypes.c_float} if n_embd else {"token": ctypes.c_int32}
        self._fields: dict[str, NDArray[Any]] = {
            name: np.ctypeslib.as_array(
                ctypes.cast(getattr(self._batch, name), ctypes.POINTER(kind)),
                shape=(self.n_batch, n_embd) if name == "embd" else (self.n_batch,),
            )
            for name, kind in fields.items()
        }
        self._fields["n_seq_id"][:] = 1

    def close(self) -> None:
        """Free the context and its batch; safe to call twice."""
        if self._context:
            self.lib.llama_batch_free(self._batch)
            self.lib.llama_free(self._context)
            self._context = None

    def clear(self, *, data: bool = True) -> None:
        """Forget all sequences."""
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self._context), data)

    def _run(self, n: int) -> None:
        self._batch.n_tokens = n
        code = self.lib.llama_decode(self._context, self._batch)
        if code:
            raise JobError(f"llama.cpp failed to decode (code {code}): {last_log(2) or 'no reason given'}.")

    def logits(self, n_rows: int) -> NDArray[np.float32]:
        """The logits of the last decode's outputs in batch order: a view of shape (n_rows, n_vocab), valid until
        the next decode that has outputs."""
        pointer = self.lib.llama_get_logits(self._context)
        if not pointer:
            raise JobError(f"llama.cpp gave no logits for {self.model.path.name}: is it a language model?")
        return np.ctypeslib.as_array(pointer, shape=(n_rows, self.n_vocab))

    def synchronize(self) -> None:
        """Wait until the device has finished."""
        self.lib.llama_synchronize(self._context)


class Context(_Context):
    """A context for ``n_seq`` sequences of ``n_ctx`` tokens each.

    Args:
        capture: whether :attr:`states` is filled: what entered the head, for each output of the last decode.

    Raises:
        SettingsError: the model was not made for contexts that long, or a KV type is unknown.
        JobError: llama.cpp can't make the context.
    """

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
        capture: bool = False,
    ) -> None:
        if flash_attn not in FLASH_ATTN:
            raise SettingsError(f"Flash attention {flash_attn!r} is not one of {', '.join(FLASH_ATTN)}.")
        for kind in (type_k, type_v):
            if kind not in TYPES:
                raise SettingsError(f"KV cache type {kind!r} is not one of {', '.join(TYPES)}.")
        params = model.lib.llama_context_default_params()
        params.n_ctx = n_ctx * n_seq
        params.n_seq_max = n_seq
        params.n_batch, params.n_ubatch = n_batch, min(n_ubatch, n_batch)
        params.n_threads = params.n_threads_batch = n_threads
        params.flash_attn_type = FLASH_ATTN[flash_attn]
        params.type_k, params.type_v = TYPES[type_k], TYPES[type_v]
        # llama-perplexity's and llama-bench's settings; the library's own defaults differ.
        params.swa_full, params.kv_unified = False, False
        self._capture_error: Exception | None = None
        self._captured: list[NDArray[np.float32]] = []
        if capture:
            self._ggml = ggml()
            params.cb_eval = type(params.cb_eval)(self._on_tensor)
        super().__init__(model, params, n_embd=0, n_tokens=n_ctx * n_seq)
        # What stands in the batch's seq_id pointers: they are only rewritten where they change.
        self._sequences = np.full(self.n_batch, -1, dtype=np.int32)

    def _on_tensor(self, tensor: int, ask: bool, _data: Any) -> bool:
        """llama.cpp's eval callback: says which tensor we want to see, then sees it."""
        if ask:
            return bool(self._ggml.ggml_get_name(tensor) == STATE_TENSOR)
        try:
            n_bytes, n_rows = self._ggml.ggml_nbytes(tensor), self._ggml.ggml_nrows(tensor)
            if n_rows and n_bytes:
                states = np.empty((n_rows, n_bytes // 4 // n_rows), dtype=np.float32)
                self._ggml.ggml_backend_tensor_get(tensor, states.ctypes.data, 0, n_bytes)
                self._captured.append(states)
        except Exception as error:  # it must not cross the C frames between us and decode()
            self._capture_error = error
        return True

    def states(self, outputs: NDArray[np.bool_]) -> NDArray[np.float32] | None:
        """What entered the head for the last decode's outputs, shape (n_rows, width); None where llama.cpp's graph
        of this model names no such tensor, or not for these rows.

        Where llama.cpp cut the batch into several micro-batches, rows come in their order; that it is the batch's own
        the recording's check against true logits has to show.

        Raises:
            JobError: the device did not give them.
        """
        if self._capture_error:
            raise JobError(f"The states could not be read from the device: {self._capture_error}.")
        if sum(map(len, self._captured)) != int(outputs.sum()) or len({part.shape[1] for part in self._captured}) != 1:
            return None
        return self._captured[0] if len(self._captured) == 1 else np.concatenate(self._captured)

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
        self._captured = []
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

    def next_position(self) -> int:
        """The position that follows the last token of sequence 0."""
        return int(self.lib.llama_memory_seq_pos_max(self.lib.llama_get_memory(self._context), 0)) + 1

    def save(self) -> ctypes.Array[ctypes.c_uint8]:
        """The memory of sequence 0, for :meth:`restore`."""
        size = self.lib.llama_state_seq_get_size(self._context, 0)
        buffer = (ctypes.c_uint8 * size)()
        self.lib.llama_state_seq_get_data(self._context, buffer, size, 0)
        return buffer

    def restore(self, saved: ctypes.Array[ctypes.c_uint8]) -> bool:
        """Put back what :meth:`save` gave; whether llama.cpp could."""
        return bool(self.lib.llama_state_seq_set_data(self._context, saved, len(saved), 0) != 0)

    def forget(self, sequences: range) -> None:
        """Forget these sequences."""
        memory = self.lib.llama_get_memory(self._context)
        for sequence in sequences:
            self.lib.llama_memory_seq_rm(memory, sequence, -1, -1)


class StatesContext(_Context):
    """A context that is fed states instead of tokens, up to ``n_rows`` at a time: for the head's own GGUF.

    Raises:
        JobError: llama.cpp can't make the context.
    """

    def __init__(self, model: Model, *, n_rows: int, n_threads: int) -> None:
        params = model.lib.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = n_rows
        params.n_threads = params.n_threads_batch = n_threads
        super().__init__(model, params, n_embd=model.n_embd, n_tokens=n_rows)
        self._fields["pos"][:] = np.arange(self.n_batch)
        self._fields["logits"][:] = 1
        for index in range(self.n_batch):
            self._batch.seq_id[index][0] = 0

    def run(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of states, shape (n, n_embd) -> (n, n_vocab): a view, valid until the next call.

        Raises:
            JobError: llama.cpp refused the batch.
        """
        n = len(states)
        if n > self.n_batch:
            raise JobError(f"A batch of {n} rows does not fit the context's {self.n_batch}.")
        self.clear(data=False)
        self._fields["embd"][:n] = states
        self._run(n)
        return self.logits(n)
