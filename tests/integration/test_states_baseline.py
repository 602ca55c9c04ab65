"""States baselines on real llama.cpp graphs: what they rebuild is what the reference said, whatever its head does."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter
from numpy.typing import NDArray

from bot.queue.runners.local import run_job
from core.contract import (
    BaselineCheck,
    BaselineResult,
    BaselineSpec,
    BaselineToolSpec,
    Machine,
    QualityFailure,
    QualityManySpec,
    QualityResult,
    QualitySpec,
)
from core.errors import MeasurementDiedError, NonFiniteLogitsError, QuantcardError, SettingsError
from core.gguf_header import read_file_header
from jobs.baseline.kld_file import KldReader
from jobs.baseline.record import record
from jobs.baseline.states_file import StatesReader
from jobs.baseline.tools import run_tool
from jobs.context import Context
from jobs.decode import BatchShape, batch_shape, steps
from jobs.llama import Model
from jobs.quality import measure, measure_many
from tests import reference_rows as reference
from tests import tiny_models
from tests.figures import differences
from tests.tiny_models import HEAD_TYPES, KINDS, UNSUPPORTED, tiny_model

#: One thread: llama.cpp's threads wait for each other spinning, and tests share the machine.
MACHINE = Machine(n_threads=1, n_gpu_layers=0)
TWO_THREADS = Machine(n_threads=2, n_gpu_layers=0)
SUPPORTED = tuple(kind for kind in KINDS if kind not in UNSUPPORTED)
#: Four chunks at a time, then two: the last group is a smaller one.
SIZES: dict[str, Any] = {"n_batch": 256, "n_ubatch": 64, "machine": MACHINE}
N_CTX, CHUNKS = 64, 6
#: Mean KLD (nats) of rebuilt from true logits.
LIMITS = {"f16": 1e-7, "bf16": 1e-7, "f32": 1e-7, "q8_0": 1e-6}
TEXT = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an they which "
    "one you were all her she there would their we him been has when who will no more if out so up said"
)


def quiet(stage: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


@dataclass
class Bench:
    """A folder with a corpus, and what was made in it."""

    folder: Path

    @property
    def corpus(self) -> Path:
        return self.folder / "corpus.txt"

    def model(self, kind: str, **options: Any) -> Path:
        """A tiny model; the same one where the same is asked for."""
        name = "-".join([kind, *(f"{key}={value}" for key, value in sorted(options.items()))])
        path = self.folder / f"{name}.gguf"
        if not path.exists():
            tiny_model(path, kind, **options)
        return path

    def record(self, model: Path, out: str, **options: Any) -> BaselineResult:
        """Record a baseline in a folder of the model's own."""
        path = self.folder / model.stem / out
        given: dict[str, Any] = {"n_ctx": N_CTX, "chunks": CHUNKS, **SIZES, **options}
        return record(BaselineSpec(reference=str(model), corpus=str(self.corpus), out=str(path), **given), quiet)

    def both(self, model: Path, **options: Any) -> tuple[BaselineResult, BaselineResult]:
        """(states, full logits) of one reference."""
        states = self.record(model, "base.gguf", format="states", **options)
        return states, self.record(model, "direct.kld", **options)

    def measure(self, model: Path, baseline: str, **options: Any) -> QualityResult:
        return measure(QualitySpec(model=str(model), baseline=baseline, **(SIZES | options)), quiet)


def tool(action: Any, path: str, out: Path | None = None) -> BaselineCheck:
    spec = BaselineToolSpec(action=action, path=path, out=None if out is None else str(out), machine=MACHINE)
    return run_tool(spec, quiet)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("states")
    random = np.random.default_rng(1)
    (folder / "corpus.txt").write_text(" ".join(random.choice(TEXT.split(" "), 1500)))
    return Bench(folder)


@pytest.fixture(scope="module")
def recorded(bench: Bench) -> Callable[[str, str], tuple[Path, BaselineResult, BaselineResult]]:
    """(reference, states, full logits) of a kind and a head type, recorded once."""

    @cache
    def of(kind: str, head_type: str) -> tuple[Path, BaselineResult, BaselineResult]:
        model = bench.model(kind, head_type=head_type)
        return model, *bench.both(model)

    return of


def figures(result: QualityResult) -> dict[str, Any]:
    """All figures of a result, as numbers by name."""
    fields = {"ppl", "ppl_base", "ppl_ratio", "ln_ppl_ratio", "ppl_cor", "kld", "delta_p", "same_top", "n_tokens"}
    return result.model_dump(include=fields | {"n_chunks", "exact", "intervals", "buckets"})


def assert_alike(ours: QualityResult, theirs: QualityResult, *, identical: bool) -> None:
    """Equal; or, where rebuilt logits differ in their last digit, as alike as 16 bits of them can be.

    A base file's levels are 1.2e-4 to 2.4e-4 nats apart: a value on the edge between two falls on either side, which
    single rows see and their mean does not.
    """
    if identical:
        assert figures(ours) == figures(theirs)
        return
    for name, got, wanted, _ in differences(
        figures(ours), theirs.model_dump(include={"ppl", "ppl_base", "ppl_cor", "kld", "delta_p", "same_top"})
    ):
        within = 1e-6 if name.endswith(("mean", "stderr", "rms", "ppl_cor")) else 1e-4
        within = 1e-5 if name.startswith("ppl") else within  # tiny models have perplexities of thousands
        assert abs(got - wanted) <= within * max(1, abs(wanted)), (name, got, wanted)


def true_logits(
    model: Path,
    tokens: NDArray[np.int32],
    *,
    first: int,
    shape: BatchShape | None = None,
    kv: str = "f16",
    flash_attn: str = "auto",
) -> NDArray[np.float32]:
    """Logits of every scored position, in corpus order, shape (n_chunks, rows, n_vocab).

    Chunk by chunk, each in one decode; or in the micro-batches of ``shape``, because what llama.cpp computes in f16
    (attention) depends on them.
    """
    n_chunks, n_ctx = tokens.shape
    shape = shape or BatchShape(n_ctx, 1, n_ctx, n_ctx)
    with Model(model, MACHINE) as loaded:
        out = np.empty((n_chunks, n_ctx - 1 - first, loaded.n_vocab), np.float32)
        size = min(shape.n_seq, n_chunks)
        context = Context(
            loaded, n_ctx=n_ctx, n_seq=size, n_batch=size * n_ctx, n_ubatch=shape.n_ubatch,
            type_k=kv, type_v=kv, flash_attn=flash_attn, n_threads=1,
        )  # fmt: skip
        with context:
            for start in range(0, n_chunks, size):
                fed = tokens[start : start + size].copy()
                fed[:, 0] = loaded.bos
                context.clear()
                for step in steps(shape, len(fed)):
                    tokens_of_step = fed[step.sequences, step.positions]
                    context.decode(tokens_of_step, step.positions, step.sequences, step.outputs)
                    if step.outputs.any():
                        out[start + step.chunks, step.rows] = context.logits(int(step.outputs.sum()))
    return out


def tokens_of(baseline: str) -> tuple[NDArray[np.int32], int, NDArray[np.float64]]:
    """(tokens, first scored position, exact NLL) of a states baseline."""
    reader = StatesReader(Path(baseline))
    reader.close()
    return reader.tokens, reader.shape.first, reader.nll


def true_scores(variant: NDArray[np.float32], base: NDArray[np.float32], tokens: Any, first: int) -> reference.Scores:
    """Figures by their definitions, from true logits."""
    n_vocab = base.shape[-1]
    targets = tokens[:, first + 1 :].ravel().astype(np.int64)
    return reference.score_unclipped(variant.reshape(-1, n_vocab), base.reshape(-1, n_vocab), targets)


COMBINATIONS = pytest.mark.parametrize(
    ("kind", "head_type"), [(kind, head_type) for kind in SUPPORTED for head_type in HEAD_TYPES]
)


# --- every supported kind and head


@COMBINATIONS
def test_a_recording_checks_itself_and_is_verified(recorded: Any, kind: str, head_type: str) -> None:
    _, states, direct = recorded(kind, head_type)
    assert (states.format, states.fallback) == ("states", None)
    assert states.self_check is not None and 0 <= states.self_check <= LIMITS[head_type]
    assert states.ppl == direct.ppl, "the reference's own perplexity, from the recording itself"
    assert states.head_path is not None and states.head_bytes == Path(states.head_path).stat().st_size
    assert (states.n_ctx, states.n_chunks, states.n_tokens) == (N_CTX, CHUNKS, CHUNKS * 31)
    check = tool("verify", states.path)
    assert check.format == "states" and check.ppl == states.ppl and check.companion
    assert check.self_check is not None and 0 <= check.self_check <= LIMITS[head_type]
    assert check.reference_sha256 == states.reference_sha256 == direct.reference_sha256


@COMBINATIONS
def test_an_export_is_the_direct_recording(
    bench: Bench, recorded: Any, tmp_path: Path, kind: str, head_type: str
) -> None:
    _, states, direct = recorded(kind, head_type)
    out = tmp_path / "exported.kld"
    check = tool("export", states.path, out)
    assert (check.format, check.companion, check.size_bytes) == ("logits", False, Path(direct.path).stat().st_size)
    exported = KldReader(out)
    exported.close()
    if states.self_check == 0:
        assert out.read_bytes() == Path(direct.path).read_bytes()
        return
    variant = bench.model(kind, head_type="bf16" if head_type == "q8_0" else "q8_0")
    mine, theirs = bench.measure(variant, str(out)), bench.measure(variant, direct.path)
    assert mine.kld.mean == pytest.approx(theirs.kld.mean, abs=1e-6)
    assert mine.ppl == theirs.ppl
    assert mine.ppl_base.value == pytest.approx(theirs.ppl_base.value, rel=1e-5)
    assert mine.same_top == theirs.same_top


@COMBINATIONS
def test_llama_cpps_figures_are_those_of_the_kld(bench: Bench, recorded: Any, kind: str, head_type: str) -> None:
    _, states, direct = recorded(kind, head_type)
    variants = [bench.model(kind, head_type="bf16" if head_type == "q8_0" else "q8_0")]
    if head_type == "f16":
        variants.append(bench.model(kind, head_type="f16", seed=3))
    for variant in variants:
        ours = bench.measure(variant, states.path, as_llama_cpp=True)
        theirs = bench.measure(variant, direct.path)
        assert (ours.baseline_format, ours.scoring) == ("states", "llama-cpp")
        assert (theirs.baseline_format, theirs.scoring, theirs.unclipped) == ("logits", "llama-cpp", None)
        assert theirs.kld.mean > 1e-9
        assert_alike(ours, theirs, identical=states.self_check == 0)
        plain = bench.measure(variant, states.path)
        assert plain.scoring == "unclipped" and plain.unclipped is None and ours.unclipped == plain.kld
        # The tool rounds each NLL's parts to f32; unclipped they are f64 to the end.
        assert plain.ppl.value == pytest.approx(ours.ppl.value, rel=1e-6)
        assert plain.exact is not None and theirs.exact is not None
        assert plain.exact.ppl_base == theirs.exact.ppl_base
        # Its base perplexity is the recording's own, not one read back.
        assert plain.ppl_base.value == pytest.approx(states.ppl.value, rel=1e-6)


@COMBINATIONS
def test_the_unclipped_kld_is_that_of_true_logits(bench: Bench, recorded: Any, kind: str, head_type: str) -> None:
    model, states, _ = recorded(kind, head_type)
    variant = bench.model(kind, head_type="bf16" if head_type == "q8_0" else "q8_0")
    tokens, first, nll = tokens_of(states.path)
    shape = batch_shape(n_ctx=N_CTX, n_batch=SIZES["n_batch"], n_ubatch=SIZES["n_ubatch"])
    base, logits = (true_logits(path, tokens, first=first, shape=shape) for path in (model, variant))
    true = true_scores(logits, base, tokens, first)
    np.testing.assert_allclose(nll.ravel(), true.nll_base, rtol=0, atol=1e-6)
    result = bench.measure(variant, states.path)
    assert result.kld.mean == pytest.approx(float(true.kld.mean()), abs=1e-6)
    assert result.kld.max == pytest.approx(float(true.kld.max()), abs=1e-5)
    assert result.same_top.value == pytest.approx(true.same.mean(), abs=1e-9)
    assert result.ppl.value == pytest.approx(float(np.exp(true.nll.mean())), rel=1e-6)


@pytest.mark.parametrize("kind", SUPPORTED)
def test_the_noise_floor_is_nothing(bench: Bench, recorded: Any, kind: str) -> None:
    """The reference against its own baseline: only what a soft cap's last digit leaves."""
    model, states, _ = recorded(kind, "f16")
    result = bench.measure(model, states.path)
    assert abs(result.kld.mean) <= 1e-9 and result.kld.min >= -1e-9 and result.kld.max <= 1e-9
    assert result.same_top.value == 1
    assert result.ln_ppl_ratio.value == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("head_type", HEAD_TYPES)
@pytest.mark.parametrize(("n_embd", "n_vocab"), [(32, 97), (96, 401), (160, 1001)])
def test_widths_and_vocabularies_that_no_vector_fits(bench: Bench, head_type: str, n_embd: int, n_vocab: int) -> None:
    model = bench.model("llama-untied", head_type=head_type, n_embd=n_embd, n_vocab=n_vocab)
    states, direct = bench.both(model)
    assert states.fallback is None and states.self_check is not None and states.self_check <= LIMITS[head_type]
    variant = bench.model("llama-untied", head_type="q8_0", n_embd=n_embd, n_vocab=n_vocab, seed=8)
    ours, theirs = bench.measure(variant, states.path, as_llama_cpp=True), bench.measure(variant, direct.path)
    assert_alike(ours, theirs, identical=states.self_check == 0)


# --- what can't be rebuilt


def names(folder: Path) -> set[str]:
    """What stands in a folder, but for the empty locks that writers of a head take."""
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}


@pytest.mark.parametrize(
    ("kind", "says", "sizes"),
    [
        ("plamo3", "names no tensor result_norm", {}),
        # Its mask needs a row to be put into: no micro-batch may be without one.
        ("chameleon", "image tokens", {"n_batch": N_CTX, "n_ubatch": N_CTX}),
    ],
)
def test_unsupported_kinds_keep_full_logits_and_say_why(
    bench: Bench, kind: str, says: str, sizes: dict[str, int]
) -> None:
    model = bench.model(kind)
    result = bench.record(model, "base.gguf", format="states", **sizes)
    assert result.format == "logits" and result.fallback is not None and says in result.fallback
    assert (result.head_path, result.self_check) == (None, None)
    assert Path(result.path).name == "base.kld"
    assert names(bench.folder / model.stem) == {"base.kld", "base.kld.json"}
    assert tool("verify", result.path).ppl == result.ppl
    assert bench.measure(model, result.path, **sizes).same_top.value > 0.99


@contextmanager
def altered(kind: str, change: Callable[[tiny_models.Tiny], None]) -> Iterator[None]:
    """While this lasts, models of a kind are made with a change."""
    arch, make = tiny_models.MAKERS[kind]

    def with_change(model: tiny_models.Tiny) -> None:
        make(model)
        change(model)

    tiny_models.MAKERS[kind] = (arch, with_change)
    try:
        yield
    finally:
        tiny_models.MAKERS[kind] = (arch, make)


def larger_states(model: tiny_models.Tiny, factor: float) -> None:
    """The same logits from larger states."""
    model.tensors["output_norm.weight"] *= np.float32(factor)
    model.tensors["output.weight"] /= np.float32(factor)


def test_large_states_are_rebuilt(bench: Bench) -> None:
    with altered("llama-untied", partial(larger_states, factor=300)):
        model = bench.model("llama-untied", n_vocab=300)
    states = bench.record(model, "base.gguf", format="states")
    assert states.fallback is None and states.self_check is not None and states.self_check <= 1e-7


@pytest.mark.parametrize("head_type", ["f16", "f32"])
def test_states_too_large_for_the_padding_keep_full_logits(bench: Bench, head_type: str) -> None:
    with altered("llama-untied", partial(larger_states, factor=5000)):
        model = bench.model("llama-untied", n_vocab=310, head_type=head_type)
    result = bench.record(model, "base.gguf", format="states")
    assert result.format == "logits" and result.fallback is not None and "differ from the true ones" in result.fallback
    assert names(bench.folder / model.stem) == {"base.kld", "base.kld.json"}, "nothing is left of the attempt"
    direct = bench.record(model, "direct.kld")
    assert Path(result.path).read_bytes() == Path(direct.path).read_bytes()


def test_states_may_be_called_anything(bench: Bench) -> None:
    """A format is asked for by name, not by suffix."""
    result = bench.record(bench.model("llama-tied", seed=11), "base.kld", format="states")
    assert result.fallback is None and result.format == "states"


def test_more_chunks_than_a_micro_batch_has_tokens(bench: Bench) -> None:
    model = bench.model("llama-tied", seed=12)
    sizes = {"n_ctx": 16, "n_batch": 512, "n_ubatch": 16, "chunks": 40}
    states, direct = bench.both(model, **sizes)
    assert states.ppl == direct.ppl
    assert states.fallback is None or "result_norm" not in states.fallback, "it has that tensor"


def test_a_model_that_asserts_inside_llama_cpp_is_told_with_its_last_words(bench: Bench) -> None:
    """llama.cpp's graph of Chameleon needs outputs in every micro-batch; llama-perplexity dies of it too."""
    spec = BaselineSpec(
        reference=str(bench.model("chameleon")), corpus=str(bench.corpus), out=str(bench.folder / "dies.kld"),
        n_ctx=N_CTX, chunks=2, **SIZES,
    )  # fmt: skip
    with pytest.raises(MeasurementDiedError, match=r"SIGABRT.*GGML_ASSERT"):
        run_job(spec, timeout=60)


# --- masks


def mask(model: tiny_models.Tiny, *, tokens: list[int], value: float) -> None:
    model.tensors["output.bias"][tokens] = value


@pytest.mark.parametrize("value", [-np.inf, float(np.finfo(np.float32).min)])
def test_tokens_that_a_model_masks_itself_are_no_fault(bench: Bench, value: float) -> None:
    with altered("qwen2-bias", partial(mask, tokens=[2, 60, 95], value=value)):
        model = bench.model("qwen2-bias", n_vocab=97 if np.isinf(value) else 98)
        variant = bench.model("qwen2-bias", n_vocab=97 if np.isinf(value) else 98, head_type="q8_0")
    states, direct = bench.both(model)
    assert states.fallback is None and states.self_check is not None and states.self_check <= 1e-7
    assert tool("verify", states.path).self_check == states.self_check
    ours, theirs = bench.measure(variant, states.path, as_llama_cpp=True), bench.measure(variant, direct.path)
    assert_alike(ours, theirs, identical=states.self_check == 0)
    plain = bench.measure(variant, states.path)
    assert 0 < plain.kld.mean < 0.1
    out = bench.folder / "masked.kld"
    tool("export", states.path, out)
    assert out.read_bytes() == Path(direct.path).read_bytes()


@pytest.mark.parametrize("format_", ["states", "logits"])
def test_a_reference_that_masks_a_token_of_the_corpus_is_refused(bench: Bench, format_: str) -> None:
    """Its perplexity is infinite, which is no figure (and no JSON)."""
    with altered("qwen2-bias", partial(mask, tokens=[10], value=-np.inf)):
        model = bench.model("qwen2-bias", n_vocab=99)
    with pytest.raises(NonFiniteLogitsError, match="INVALID"):
        bench.record(model, "base.gguf" if format_ == "states" else "base.kld", format=format_)
    assert not [name for name in names(bench.folder / model.stem) if "base" in name]


# --- sizes and settings


def test_a_split_reference(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("qwen2-bias", "gemma2"):
        whole = bench.model(kind)
        states, direct = bench.both(whole)
        monkeypatch.setattr(tiny_models, "GGUFWriter", partial(GGUFWriter, split_max_tensors=5))
        tiny_model(tmp_path / f"{kind}.gguf", kind)
        monkeypatch.undo()
        shards = sorted(tmp_path.glob(f"{kind}-00*.gguf"))
        assert len(shards) > 3
        headers = [read_file_header(shard) for shard in shards]
        assert "general.architecture" in headers[0].kv
        split = bench.record(shards[0], "split.gguf", format="states")
        assert split.fallback is None and split.self_check is not None and split.self_check <= 1e-7
        assert split.reference_sha256 != states.reference_sha256 and split.ppl == states.ppl
        variant = bench.model(kind, head_type="q8_0")
        mine, theirs = bench.measure(variant, split.path), bench.measure(variant, states.path)
        assert figures(mine) == figures(theirs)
        # And a split variant is measured as a whole one.
        assert figures(bench.measure(shards[0], direct.path)) == figures(bench.measure(whole, direct.path))


@pytest.mark.parametrize(
    ("n_ctx", "n_batch", "n_ubatch", "chunks"),
    [
        (128, 48, 20, 3),  # several batches to a chunk, the last cut short
        (128, 128, 512, 3),
        (37, 111, 64, 7),  # odd, with a last group of one
        (37, 36, 36, 5),
        (4, 64, 64, 50),
        (9, 9, 4, 40),
        (300, 600, 128, 3),
        (64, 640, 512, 11),  # ten at a time, then one
    ],
)
def test_any_sizes(bench: Bench, n_ctx: int, n_batch: int, n_ubatch: int, chunks: int) -> None:
    """And whatever they are, figures are those of chunks decoded whole (with nothing computed in f16)."""
    model = bench.model("llama-untied", n_vocab=120)
    variant = bench.model("llama-untied", n_vocab=120, head_type="q8_0")
    sizes: dict[str, Any] = {"n_batch": n_batch, "n_ubatch": n_ubatch}
    sizes |= {"type_k": "f32", "type_v": "f32", "flash_attn": "off"}
    states, direct = bench.both(model, n_ctx=n_ctx, chunks=chunks, **sizes)
    assert (states.fallback, states.n_ctx, states.n_chunks) == (None, n_ctx, chunks)
    assert states.self_check is not None and states.self_check <= 1e-7
    ours = bench.measure(variant, states.path, as_llama_cpp=True, **sizes)
    assert_alike(ours, bench.measure(variant, direct.path, **sizes), identical=states.self_check == 0)
    tokens, first, _ = tokens_of(states.path)
    base, logits = (true_logits(path, tokens, first=first, kv="f32", flash_attn="off") for path in (model, variant))
    true = true_scores(logits, base, tokens, first)
    assert states.ppl.value == pytest.approx(float(np.exp(true.nll_base.mean())), rel=1e-5)
    assert bench.measure(variant, states.path, **sizes).kld.mean == pytest.approx(float(true.kld.mean()), abs=1e-6)


@pytest.mark.parametrize("chunks", [1, 3, 5])
def test_some_of_the_chunks(bench: Bench, recorded: Any, chunks: int) -> None:
    _, states, direct = recorded("llama-untied", "f16")
    variant = bench.model("llama-untied", head_type="q8_0")
    ours = bench.measure(variant, states.path, chunks=chunks, as_llama_cpp=True)
    assert figures(ours) == figures(bench.measure(variant, direct.path, chunks=chunks))
    assert ours.n_chunks == chunks


@pytest.mark.parametrize(("type_k", "type_v"), [("q8_0", "q8_0"), ("q8_0", "f16"), ("bf16", "bf16"), ("f32", "f32")])
def test_kv_caches_of_other_types(bench: Bench, type_k: str, type_v: str) -> None:
    model, variant = bench.model("llama-untied", n_embd=128), bench.model("llama-untied", n_embd=128, head_type="q8_0")
    settings = {"type_k": type_k, "type_v": type_v, "flash_attn": "on"}
    states, direct = bench.both(model, **settings)
    assert states.fallback is None and states.self_check is not None and states.self_check <= 1e-7
    ours = bench.measure(variant, states.path, as_llama_cpp=True, **settings)
    assert figures(ours) == figures(bench.measure(variant, direct.path, **settings))
    assert (ours.protocol["type_k"], ours.protocol["flash_attn"]) == (type_k, "on")
    # What the cache alone costs: the reference against its own baseline with the usual cache.
    usual = bench.record(model, "usual.gguf", format="states")
    cost = bench.measure(model, usual.path, **settings).kld.mean
    assert cost < 1e-2 and (type_k != "q8_0" or cost > 1e-6)


def test_a_quantized_v_cache_needs_flash_attention(bench: Bench) -> None:
    with pytest.raises(QuantcardError, match="flash"):
        bench.record(bench.model("llama-untied"), "never.gguf", format="states", type_v="q8_0", flash_attn="off")


@pytest.mark.parametrize(
    "wrong",
    [{"n_ctx": 0}, {"n_ctx": 1}, {"n_ctx": 2}, {"n_ctx": 3}, {"n_batch": 0}, {"flash_attn": "maybe"}, {"type_k": "x"}],
)
@pytest.mark.parametrize("format_", ["states", "logits"])
def test_settings_that_mean_nothing_are_named(bench: Bench, wrong: dict[str, Any], format_: str) -> None:
    with pytest.raises(SettingsError):
        bench.record(bench.model("llama-untied"), f"never.{format_}", format=format_, **wrong)


@pytest.mark.parametrize("kind", ["llama-tied", "gemma3-softcap", "qwen35", "mamba"])
@pytest.mark.parametrize("chunks", [-1, 2, 5])
def test_overlapping_changes_no_figure(bench: Bench, recorded: Any, kind: str, chunks: int) -> None:
    _, states, direct = recorded(kind, "f16")
    variant = bench.model(kind, head_type="q8_0")
    for baseline, options in ((direct.path, {}), (states.path, {}), (states.path, {"as_llama_cpp": True})):
        options = {"chunks": chunks, "machine": TWO_THREADS, **options}
        alone = bench.measure(variant, baseline, overlap=False, **options)
        over = bench.measure(variant, baseline, overlap=True, **options)
        assert figures(alone) == figures(over) and alone.unclipped == over.unclipped


@pytest.mark.parametrize("kind", ["llama-tied", "mamba"])
@pytest.mark.parametrize("format_", ["states", "logits"])
def test_overlapping_a_single_chunk(bench: Bench, recorded: Any, kind: str, format_: str) -> None:
    """In a process of its own: llama.cpp ends the process on a sequence that it has no room for."""
    _, states, direct = recorded(kind, "f16")
    variant = bench.model(kind, head_type="q8_0")
    baseline = states.path if format_ == "states" else direct.path
    spec = QualitySpec(model=str(variant), baseline=baseline, chunks=1, overlap=True, **SIZES)
    over = run_job(spec, timeout=60)
    assert isinstance(over, QualityResult)
    assert figures(over) == figures(bench.measure(variant, baseline, chunks=1))


# --- several at once, and broken ones


def test_several_at_once_are_the_same_as_one_by_one(bench: Bench, recorded: Any, tmp_path: Path) -> None:
    model, states, direct = recorded("llama-untied", "f16")
    variants = [
        bench.model("llama-untied", head_type="q8_0"),
        bench.model("llama-untied", head_type="f16", seed=3),
        model,
    ]
    for baseline, options in ((direct.path, {}), (states.path, {}), (states.path, {"as_llama_cpp": True})):
        sidecars = [str(tmp_path / f"{i}.parquet") for i in range(3)]
        spec = QualityManySpec(
            models=[str(v) for v in variants], baseline=baseline, tokens_out=sidecars, **(SIZES | options)
        )
        found = measure_many(spec, quiet).outcomes
        for variant, outcome, sidecar in zip(variants, found, sidecars, strict=True):
            alone = bench.measure(variant, baseline, tokens_out=str(tmp_path / "alone.parquet"), **options)
            assert isinstance(outcome, QualityResult)
            assert figures(outcome) == figures(alone) and outcome.unclipped == alone.unclipped
            assert outcome.tokens_path == sidecar and outcome.tokens_sha256 == alone.tokens_sha256


def broken(source: Path, out: Path, *, token: int) -> Path:
    """A copy whose embedding of one token is NaN."""
    header = read_file_header(source)
    (tensor,) = [t for t in header.tensors if t.name == "token_embd.weight"]
    data = bytearray(source.read_bytes())
    row = tensor.n_bytes // tensor.shape[1]
    start = header.data_start + tensor.offset + token * row
    data[start : start + row] = b"\xff" * row
    out.write_bytes(data)
    return out


def damage_of(tokens: NDArray[np.int32], token: int, *, first: int) -> tuple[int, int, int, int]:
    """(rows lost, rows, chunk and position of the first): all positions from the token on see it."""
    fed = tokens.copy()
    fed[:, 0] = 1
    seen = np.cumsum(fed == token, axis=1) > 0
    rows = seen[:, first:-1]
    chunk, row = np.argwhere(rows)[0]
    return int(rows.sum()), rows.size, int(chunk), first + int(row)


def rare_token(tokens: NDArray[np.int32], *, first: int) -> int:
    """One that spoils some positions and not all, the first of them not the first scored."""
    for token in np.unique(tokens[:, first + 1 : -1]).tolist():
        lost, total, chunk, position = damage_of(tokens, token, first=first)
        if lost < 0.9 * total and (chunk, position) != (0, first):
            return token
    raise AssertionError("the corpus has no such token")


@pytest.mark.parametrize("format_", ["states", "logits"])
def test_a_broken_model_is_told_by_share_and_first_position_and_sinks_no_other(
    bench: Bench, recorded: Any, tmp_path: Path, format_: str
) -> None:
    model, states, direct = recorded("llama-untied", "f16")
    baseline = states.path if format_ == "states" else direct.path
    tokens, first, _ = tokens_of(states.path)
    token = rare_token(tokens, first=first)
    lost, total, chunk, position = damage_of(tokens, token, first=first)
    bad = broken(model, tmp_path / "bad.gguf", token=token)
    says = rf"INVALID: at {lost} of {total} scored positions .*NaN.*chunk {chunk} at position {position}\. bad\.gguf"
    with pytest.raises(NonFiniteLogitsError, match=says):
        bench.measure(bad, baseline)
    good = bench.model("llama-untied", head_type="q8_0")
    garbage = tmp_path / "garbage.gguf"
    garbage.write_bytes(b"GGUF" + b"\1" * 100)
    other = bench.model("llama-untied", n_vocab=100)
    spec = QualityManySpec(
        models=[str(m) for m in (bad, good, garbage, tmp_path / "missing.gguf", other)], baseline=baseline, **SIZES
    )
    outcomes = measure_many(spec, quiet).outcomes
    failures = [outcome for outcome in outcomes if isinstance(outcome, QualityFailure)]
    assert [failure.type for failure in failures] == [
        "NonFiniteLogitsError",
        "GGUFError",
        "GGUFError",
        "VocabularyMismatchError",
    ]
    assert f"{lost} of {total}" in failures[0].message and failures[0].model == str(bad)
    assert isinstance(outcomes[1], QualityResult)
    assert figures(outcomes[1]) == figures(bench.measure(good, baseline))


def test_a_broken_reference_is_refused(bench: Bench, recorded: Any, tmp_path: Path) -> None:
    model, states, _ = recorded("llama-untied", "f16")
    tokens, first, _ = tokens_of(states.path)
    token = rare_token(tokens, first=first)
    bad = broken(model, tmp_path / "bad-reference.gguf", token=token)
    for out, format_ in (("base.gguf", "states"), ("base.kld", "logits")):
        with pytest.raises(NonFiniteLogitsError, match=r"^INVALID.*bad-reference\.gguf") as caught:
            bench.record(bad, out, format=format_)
        place = re.search(r"at chunk (\d+), position (\d+)\.", str(caught.value))
        assert place, str(caught.value)
        chunk, position = int(place[1]), int(place[2])
        assert position >= first and token in tokens[chunk, 1 : position + 1]
        assert not [name for name in names(bench.folder / bad.stem) if "base" in name]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("format_", ["states", "logits"])
def test_a_model_broken_in_a_long_run_is_given_up(bench: Bench, tmp_path: Path, overlap: bool, format_: str) -> None:
    """After sixteen chunks enough was seen: the rest isn't decoded."""
    model = bench.model("llama-untied")
    baseline = bench.record(model, f"long.{format_}.gguf", format=format_, chunks=30, n_ctx=32)
    bad = broken(model, tmp_path / "bad.gguf", token=4)  # the space: in every chunk
    seen: list[int] = []
    spec = QualitySpec(model=str(bad), baseline=baseline.path, overlap=overlap, **SIZES)
    with pytest.raises(NonFiniteLogitsError, match=r"INVALID: at \d+ of 2[0-9]{2} scored positions"):
        measure(spec, lambda stage, done, total: seen.append(done))
    assert max(seen) < 30, "nobody is left to walk on for"
    good = bench.model("llama-untied", head_type="q8_0")
    outcomes = measure_many(
        QualityManySpec(models=[str(bad), str(good)], baseline=baseline.path, **SIZES), quiet
    ).outcomes
    assert isinstance(outcomes[0], QualityFailure)
    assert isinstance(outcomes[1], QualityResult)
    assert figures(outcomes[1]) == figures(bench.measure(good, baseline.path))


def test_a_model_that_forbids_likely_tokens_is_told(bench: Bench) -> None:
    model = bench.model("qwen2-bias")
    states, direct = bench.both(model)
    with altered("qwen2-bias", partial(mask, tokens=[7, 9], value=-np.inf)):
        variant = bench.model("qwen2-bias", seed=21)
    for baseline in (states.path, direct.path):
        with pytest.raises(NonFiniteLogitsError, match="probability zero"):
            bench.measure(variant, baseline)
