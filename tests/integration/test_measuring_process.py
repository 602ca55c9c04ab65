"""What becomes of a measuring process that llama.cpp ends, and of a baseline that is not the protocol's."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import pytest

from bot.queue.runners.local import last_words, run_job
from core.contract import BaselineResult, BaselineSpec, QualitySpec
from core.errors import BaselineError, MeasurementDiedError
from core.protocol import Corpus, Protocol
from tests.tiny_models import tiny_model

TEXT = "the quick brown fox jumps over the lazy dog, and then it rests for a while. " * 60


def test_a_model_that_ends_the_process_is_reported_with_signal_and_last_words(tmp_path: Path) -> None:
    # Its vocabulary lacks a token that llama.cpp takes for granted: an exception crosses the C API.
    tiny_model(tmp_path / "m.gguf", "llama-tied")
    (tmp_path / "corpus.txt").write_text(TEXT + "^~`" * 20)
    spec = BaselineSpec(
        reference=str(tmp_path / "m.gguf"), corpus=str(tmp_path / "corpus.txt"), out=str(tmp_path / "b.gguf")
    )
    with pytest.raises(MeasurementDiedError, match=r"died: SIGABRT.*terminate called") as caught:
        run_job(spec, timeout=100)
    assert caught.value.retryable and not (tmp_path / "b.gguf").exists()


def test_last_words_are_the_assertion_not_the_backtrace() -> None:
    tail = deque(["load: warning", "ggml.c:42: GGML_ASSERT(n > 0) failed", "#0 0x123 in ??", "#1 0x456 in main", ""])
    assert last_words(tail) == "ggml.c:42: GGML_ASSERT(n > 0) failed"
    assert last_words(["a", "b", "c"]) == "b | c" and last_words([]) == ""


def test_a_baseline_of_another_protocol_is_refused(tmp_path: Path) -> None:
    model, corpus = tmp_path / "m.gguf", tmp_path / "corpus.txt"
    tiny_model(model, "llama-tied")
    corpus.write_text(TEXT)
    out = tmp_path / "b.gguf"
    recorded = run_job(
        BaselineSpec(reference=str(model), corpus=str(corpus), out=str(out), format="states", n_ctx=64, chunks=4),
        timeout=100,
    )
    assert isinstance(recorded, BaselineResult) and recorded.format == "states"
    other = Protocol(name="other", corpus=Corpus(name="x", sha256="0" * 64), n_ctx=128, chunks=2)
    with pytest.raises(BaselineError, match=r"another protocol than other: n_ctx 64 .*corpus .*chunks 4"):
        run_job(QualitySpec(model=str(model), baseline=str(out), protocol=other, as_llama_cpp=True), timeout=100)
