"""The head rules are llama.cpp's: logits computed in NumPy from ``result_norm`` are the logits of llama_decode.

Nothing of our recording is used here (only the model loader and the header reader), so that this is evidence of its
own: the states come through a callback made in this module.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

from core.contract import Machine
from core.errors import GGUFError
from core.gguf_header import read_file_header
from jobs.baseline.head_rules import HeadNotSupported, HeadRule, head_rule, head_tensor
from jobs.llama import Model
from tests import tiny_models
from tests.tiny_models import CHAMELEON_IMAGES, HEAD_TYPES, KINDS, UNSUPPORTED, tiny_model

TEXT = b"The quick brown fox, 12 times?\nYes: it did."
MACHINE = Machine(n_threads=2, n_gpu_layers=0)
SUPPORTED = tuple(kind for kind in KINDS if kind not in UNSUPPORTED)
#: llama.cpp rounds the state to the head's type; what remains is the order of single-precision sums.
TOLERANCE = 1e-3


@dataclass
class Decoded:
    """What one decode gave: logits in batch order, and ``result_norm`` as the callback saw it, by micro-batch."""

    logits: NDArray[np.float64]
    states: list[NDArray[np.float32]]

    @property
    def rows(self) -> NDArray[np.float64]:
        return np.concatenate(self.states).astype(np.float64)


def ggml_base(lib: Any) -> Any:
    """The library that knows tensors; the bindings load it without binding it."""
    folder = Path(os.environ.get("LLAMA_CPP_LIB_PATH") or Path(lib.__file__).parent / "lib")
    names = ("libggml-base.so.0", "libggml-base.so", "libggml-base.dylib", "ggml-base.dll")
    base = ctypes.CDLL(str(next(folder / name for name in names if (folder / name).exists())))
    base.ggml_get_name.argtypes, base.ggml_get_name.restype = [ctypes.c_void_p], ctypes.c_char_p
    base.ggml_nrows.argtypes, base.ggml_nrows.restype = [ctypes.c_void_p], ctypes.c_int64
    base.ggml_nbytes.argtypes, base.ggml_nbytes.restype = [ctypes.c_void_p], ctypes.c_size_t
    base.ggml_backend_tensor_get.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    base.ggml_backend_tensor_get.restype = None
    return base


def decode(model: Model, sequences: Sequence[NDArray[np.int32]], outputs: Sequence[int], *, n_ubatch: int) -> Decoded:
    """Decode the sequences in one batch, one after the other, asking for logits at these indices of the batch."""
    lib, base = model.lib, ggml_base(model.lib)
    states: list[NDArray[np.float32]] = []

    @lib.ggml_backend_sched_eval_callback
    def on_tensor(tensor: int, ask: bool, _data: int) -> bool:
        if base.ggml_get_name(tensor) != b"result_norm":
            return not ask
        if not ask:
            n_bytes, n_rows = base.ggml_nbytes(tensor), base.ggml_nrows(tensor)
            found = np.empty(n_bytes // 4, dtype=np.float32)
            base.ggml_backend_tensor_get(tensor, found.ctypes.data, 0, n_bytes)
            states.append(found.reshape(n_rows, -1 if n_rows else 1))
        return True

    params = lib.llama_context_default_params()
    params.n_ctx, params.n_seq_max = 256 * len(sequences), len(sequences)
    params.n_batch, params.n_ubatch = 128, n_ubatch
    params.n_threads = params.n_threads_batch = 2
    params.kv_unified, params.cb_eval = False, on_tensor
    context = lib.llama_init_from_model(model.handle, params)
    assert context
    batch = lib.llama_batch_init(128, 0, 1)
    try:
        batch.n_tokens = sum(len(sequence) for sequence in sequences)
        at = 0
        for number, sequence in enumerate(sequences):
            for position, token in enumerate(sequence.tolist()):
                batch.token[at], batch.pos[at], batch.n_seq_id[at], batch.seq_id[at][0] = token, position, 1, number
                batch.logits[at] = at in outputs
                at += 1
        assert lib.llama_decode(context, batch) == 0
        logits = np.ctypeslib.as_array(lib.llama_get_logits(context), shape=(len(outputs), model.n_vocab))
        return Decoded(logits.astype(np.float64), [rows for rows in states if len(rows)])
    finally:
        lib.llama_batch_free(batch)
        lib.llama_free(context)


def rule_of(path: Path) -> HeadRule:
    header = read_file_header(path)
    return head_rule(header.kv, {tensor.name for tensor in header.tensors})


def rebuilt(path: Path, rule: HeadRule, states: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logits by the rule in double precision, with the states rounded to what the head's type multiplies with."""
    tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    head = tensors[head_tensor(tensors)]
    entering = (states * rule.pre_scale).astype(np.float32)
    if head.tensor_type is not GGMLQuantizationType.F32:
        entering = dequantize(quantize(entering, head.tensor_type), head.tensor_type)
    weights = dequantize(head.data, head.tensor_type).astype(np.float64)
    logits = rule.scale * (entering.astype(np.float64) @ weights.T)
    if rule.bias:
        logits = logits + tensors[rule.bias].data.astype(np.float64)
    if rule.softcap:
        logits = rule.softcap * np.tanh(logits / rule.softcap)
    return np.asarray(logits)


def top_probabilities(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(1 / shares.sum(axis=1))


def make(tmp_path: Path, kind: str, **options: Any) -> Path:
    path = tmp_path / f"{kind}.gguf"
    tiny_model(path, kind, **options)
    return path


@pytest.mark.parametrize("kind", SUPPORTED)
def test_the_rule_gives_the_logits(kind: str, tmp_path: Path) -> None:
    path = make(tmp_path, kind)
    with Model(path, MACHINE) as model:
        tokens = model.tokenize(TEXT)
        assert model.n_vocab == (97 if kind == "odd-vocab" else 96)
        assert tokens[0] == model.bos and not (tokens == 0).any()
        outputs = [3, *range(14, len(tokens))]
        found = decode(model, [tokens], outputs, n_ubatch=16)
    rule = rule_of(path)
    assert np.isfinite(found.logits).all()
    assert [len(rows) for rows in found.states] == [3, 16, len(tokens) - 32]
    assert np.abs(rebuilt(path, rule, found.rows) - found.logits).max() < TOLERANCE
    # Peaked, not flat, and not the same token everywhere: what a real model's logits look like.
    peaks = top_probabilities(found.logits)
    assert 0.1 < peaks.mean() < 0.7
    assert len(set(found.logits.argmax(axis=1).tolist())) > 5
    # And every part of the rule matters here, so that a wrong one would have been seen.
    plain = HeadRule()
    for field in ("pre_scale", "scale", "bias", "softcap"):
        if getattr(rule, field) != getattr(plain, field):
            parts = {name: getattr(rule, name) for name in HeadRule.__slots__} | {field: getattr(plain, field)}
            assert np.abs(rebuilt(path, HeadRule(**parts), found.rows) - found.logits).max() > 0.3


@pytest.mark.parametrize("head_type", HEAD_TYPES)
@pytest.mark.parametrize("kind", ["llama-tied", "qwen2-bias", "gemma2", "minicpm3"])
def test_every_type_of_head(kind: str, head_type: str, tmp_path: Path) -> None:
    path = make(tmp_path, kind, head_type=head_type, n_vocab=400, n_embd=96, seed=5)
    with Model(path, MACHINE) as model:
        tokens = model.tokenize(TEXT + "ä€".encode())
        found = decode(model, [tokens], range(len(tokens)), n_ubatch=128)
    assert np.abs(rebuilt(path, rule_of(path), found.rows) - found.logits).max() < TOLERANCE


def test_micro_batches_without_outputs_are_seen_without_rows(tmp_path: Path) -> None:
    path = make(tmp_path, "llama-tied")
    with Model(path, MACHINE) as model:
        tokens = model.tokenize(TEXT)
        found = decode(model, [tokens], [len(tokens) - 1], n_ubatch=8)
    assert [len(rows) for rows in found.states] == [1]
    assert np.abs(rebuilt(path, rule_of(path), found.rows) - found.logits).max() < TOLERANCE


@pytest.mark.parametrize("kind", ["llama-tied", "lfm2", "qwen35", "mamba"])
def test_states_of_several_sequences_come_by_micro_batch(kind: str, tmp_path: Path) -> None:
    """Each micro-batch takes as many tokens of every sequence, so that states aren't in the batch's order, as
    logits are."""
    path, n, piece = make(tmp_path, kind), 16, 4
    with Model(path, MACHINE) as model:
        first = model.tokenize(TEXT)[:n]
        found = decode(model, [first, first[::-1].copy()], range(2 * n), n_ubatch=2 * piece)
    order = np.arange(2 * n).reshape(2, n // piece, piece).transpose(1, 0, 2).ravel()
    logits = rebuilt(path, rule_of(path), found.rows)
    assert np.abs(logits - found.logits[order]).max() < TOLERANCE
    assert np.abs(logits - found.logits).max() > 1


def test_chameleon_masks_the_first_row_of_each_micro_batch(tmp_path: Path) -> None:
    path = make(tmp_path, "chameleon")
    with Model(path, MACHINE) as model:
        tokens = model.tokenize(TEXT)[:24]
        found = decode(model, [tokens], range(24), n_ubatch=8)
    masked = found.logits == -float(np.finfo(np.float32).max)
    assert np.flatnonzero(masked.any(axis=1)).tolist() == [0, 8, 16]
    assert np.flatnonzero(masked[0]).tolist() == list(CHAMELEON_IMAGES)
    with pytest.raises(HeadNotSupported, match="image tokens"):
        rule_of(path)
    # But for the mask it is a plain head.
    plain = rebuilt(path, HeadRule(), found.rows)
    assert np.abs(plain - found.logits)[~masked].max() < TOLERANCE


def test_plamo3_names_no_state(tmp_path: Path) -> None:
    path = make(tmp_path, "plamo3")
    with Model(path, MACHINE) as model:
        found = decode(model, [model.tokenize(TEXT)], [0, 1], n_ubatch=64)
    assert np.isfinite(found.logits).all() and not found.states
    with pytest.raises(HeadNotSupported, match="plamo3"):
        rule_of(path)


def test_a_bias_may_be_loaded_and_ignored(tmp_path: Path) -> None:
    path = make(tmp_path, "qwen2vl-bias")
    assert "output.bias" in {tensor.name for tensor in read_file_header(path).tensors}
    assert rule_of(path) == HeadRule()


@pytest.mark.parametrize(("kind", "tensor"), [("llama-untied", "output.bias"), ("gemma2", "output.weight")])
def test_a_tensor_the_architecture_does_not_use_is_refused_by_llama_cpp(
    kind: str, tensor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a tensor's presence says enough: what is there is used, but for the biases of qwen2vl and dream."""
    arch, maker = tiny_models.MAKERS[kind]

    def with_tensor(model: tiny_models.Tiny) -> None:
        maker(model)
        model.matrix(tensor, *((model.n_embd,) if tensor.endswith("weight") else ()), model.n_vocab)

    monkeypatch.setitem(tiny_models.MAKERS, kind, (arch, with_tensor))
    path = make(tmp_path, kind)
    with pytest.raises(GGUFError, match="wrong number of tensors"):
        Model(path, MACHINE)
