"""What llama.cpp's tools printed elsewhere: real logs read to the digit, and no damaged text read as a figure."""

from __future__ import annotations

import json
import math
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.canonical import canonical_json
from core.contract import QualityResult, SpeedResult, result_adapter
from core.errors import ForeignFormatError
from core.foreign import parse_llama_perplexity, tool_of
from core.foreign_bench import parse_llama_bench

FOREIGN = Path(__file__).parents[1] / "golden" / "foreign"
LOG = (FOREIGN / "perplexity-Q6_K.log").read_text(encoding="utf-8")
VERBOSE = (FOREIGN / "perplexity-verbose-Q4_K_M.log").read_text(encoding="utf-8")
PLAIN = (FOREIGN / "perplexity-plain.log").read_text(encoding="utf-8")
BENCH = (FOREIGN / "bench-Q6_K.json").read_text(encoding="utf-8")
BENCH_LINES = (FOREIGN / "bench-Q6_K.jsonl").read_text(encoding="utf-8")

#: As llama-bench printed it in 2023.
OLD_BENCH = """[
  {
    "build_commit": "3469684",
    "build_number": 1275,
    "cuda": true,
    "metal": false,
    "gpu_blas": true,
    "blas": true,
    "cpu_info": "13th Gen Intel(R) Core(TM) i9-13900K",
    "gpu_info": "NVIDIA GeForce RTX 3090 Ti",
    "model_filename": "models/7B/ggml-model-q4_0.gguf",
    "model_type": "llama 7B mostly Q4_0",
    "model_size": 3825065984,
    "model_n_params": 6738415616,
    "n_batch": 512,
    "n_threads": 16,
    "f16_kv": true,
    "n_gpu_layers": 99,
    "main_gpu": 0,
    "mul_mat_q": true,
    "tensor_split": "0.00",
    "n_prompt": 512,
    "n_gen": 0,
    "test_time": "2023-09-23T12:09:57Z",
    "avg_ns": 212365953,
    "stddev_ns": 985423,
    "avg_ts": 2410.974041,
    "stddev_ts": 11.163766,
    "samples_ns": [ 213837238, 211635853, 212328053, 211329715, 212698907 ],
    "samples_ts": [ 2394.34, 2419.25, 2411.36, 2422.75, 2407.16 ]
  }
]
"""


def test_every_figure_of_a_log_is_the_printed_one() -> None:
    found = parse_llama_perplexity(LOG)
    assert (found.ppl.value, found.ppl.stderr) == (30.607992, 2.929508)
    assert (found.ppl_base.value, found.ppl_base.stderr) == (30.637050, 2.934681)
    assert (found.ln_ppl_ratio.value, found.ln_ppl_ratio.stderr) == (-0.000949, 0.001666)
    assert (found.ppl_ratio.value, found.ppl_ratio.stderr) == (0.999052, 0.001664)
    assert found.ppl_cor == 0.9998
    assert (found.same_top.value, found.same_top.stderr) == (0.97255, 0.00512)
    assert found.kld.model_dump() == {
        "mean": 0.001283, "stderr": 0.000034, "max": 0.012351, "p99_9": 0.009515, "p99": 0.004977, "p95": 0.003105,
        "p90": 0.002614, "median": 0.001079, "p10": 0.000171, "p5": 0.000069, "p1": 0.000012, "p0_1": 0.000001,
        "min": 0.000001,
    }  # fmt: skip
    assert found.delta_p.model_dump() == {
        "mean": -0.00039, "stderr": 0.00026, "rms": 0.00836, "rms_stderr": 0.00039, "max": 0.04071, "p99_9": 0.03479,
        "p99": 0.02518, "p95": 0.01166, "p90": 0.00573, "p75": 0.00092, "median": 0.0, "p25": -0.00107,
        "p10": -0.00765, "p5": -0.01569, "p1": -0.03039, "p0_1": -0.04233, "min": -0.04387,
    }  # fmt: skip
    assert (found.n_chunks, found.n_tokens, found.scoring, found.imported) == (4, 4 * 255, "llama-cpp", None)
    assert found.protocol == {"n_ctx": 512, "n_batch": 2048}


def test_a_log_tells_of_its_machine_what_it_tells_and_no_more() -> None:
    quiet, verbose = parse_llama_perplexity(LOG), parse_llama_perplexity(VERBOSE)
    for found in (quiet.environment, verbose.environment):
        assert (found.llama_cpp, found.cpu, found.gpu, found.backend) == ("unknown", "unknown", None, "CPU")
        assert (found.n_threads, found.n_gpu_layers, found.repack) == (2, 0, True)
        assert found.system_info.startswith("CPU : SSE3 = 1 |") and found.system_info.endswith("REPACK = 1")
    assert verbose.protocol == {
        "n_ctx": 512, "n_batch": 2048, "type_k": "f16", "type_v": "f16", "model_filename": "demo-Q4_K_M.gguf",
    }  # fmt: skip
    assert "demo" not in str(quiet.protocol)
    lines = [line for line in LOG.splitlines() if "system_info" not in line]
    bare = parse_llama_perplexity("\n".join(lines)).environment
    assert (bare.backend, bare.system_info, bare.n_threads, bare.n_gpu_layers) == ("unknown", "unknown", 0, -1)


def test_a_gpus_log_of_another_version() -> None:
    text = (
        "build: 6500 (1a2b3c4d) with cc (GCC) 13.2.0 for x86_64-linux-gnu\n"
        "llama_model_load: using device CUDA0 (NVIDIA GeForce RTX 4090) (0000:01:00.0) - 23000 MiB free\n"
        "llama_model_loader: loaded meta data with 30 key-value pairs and 291 tensors from /home/me/m (1)/X-Q6_K.gguf "
        "(version GGUF V3 (latest))\nload_tensors: offloaded 29/29 layers to GPU\n"
    ) + LOG.replace("| CPU : SSE3", "| CUDA : ARCHS = 890 | F16 = 1 | CPU : SSE3").replace(
        "over 4 chunks, n_ctx=512, batch_size=2048, n_seq=4", "over 4 chunks with n_ctx=512"
    )
    found = parse_llama_perplexity(text)
    assert found.environment.llama_cpp == "llama.cpp 1a2b3c4d (build 6500)"
    assert (found.environment.backend, found.environment.gpu) == ("CUDA, CPU", "NVIDIA GeForce RTX 4090")
    assert found.environment.n_gpu_layers == 29
    assert found.protocol == {"n_ctx": 512, "model_filename": "X-Q6_K.gguf"}
    assert "home" not in found.model_dump_json()


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("±", "+/-").replace("Δ", ""),
        lambda text: text.encode().decode("cp1252", "replace"),
        lambda text: text.encode().decode("ascii", "replace"),
        lambda text: "".join(f"2026-01-01T00:00:00 stdout {line}\n" for line in text.splitlines()),
        lambda text: text + text,
    ],
    ids=["windows", "ascii", "cp1252", "undecoded", "a prefix", "printed twice"],
)
def test_what_terminals_and_collectors_do_to_a_log(change: Any) -> None:
    assert parse_llama_perplexity(change(LOG)).kld == parse_llama_perplexity(LOG).kld


def test_a_reference_against_itself_has_no_numbers_for_some_errors() -> None:
    text = LOG
    for label in ("Mean ln(PPL(Q)/PPL(base))     :", "Mean PPL(Q)/PPL(base)         :"):
        text = re.sub(rf"({re.escape(label)}\s+\S+ ±).*", r"\1       -nan", text)
    assert parse_llama_perplexity(text).ln_ppl_ratio.stderr == 0.0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (PLAIN, "without --kl-divergence"),
        ("", "no statistics"),
        ("".join(LOG.splitlines(keepends=True)[:9]), "ends before its statistics"),
        (LOG.split("====== Token")[0], "no line 'Mean Δp'"),
        (LOG.replace("95.0%   KLD", "99.0%   KLD"), "'99.0% KLD' twice"),
        (re.sub(r"95\.0%   KLD.*\n", "", LOG), "too old"),
        (re.sub(r".*kl_divergence:.*\n", "", LOG), "2>&1"),
        (LOG + VERBOSE, "twice"),
        (re.sub(r"(Mean    KLD:).*", r"\1        nan ±        nan", LOG), "INVALID"),
        (re.sub(r"(Mean    KLD:).*", r"\1 0.001283", LOG), "no ±"),
        (LOG.replace("Maximum KLD:   0.012351", "Maximum KLD:   0.002351"), "out of order"),
        (LOG.replace("RMS Δp    :  0.836 ± 0.039", "RMS Δp    :  0.836 ± -0.039"), "damaged"),
        (LOG.replace("n_ctx=512", "n_ctx=2048"), "is not that of"),
        (LOG.replace("over 4 chunks", "over 5 chunks"), "ends at chunk 4 of 5"),
        (LOG.replace("97.255 ± 0.512 %\n\n", "197.255 ± 0.512 %\n\n"), "can't be true"),
        ("kl_divergence: inconsistent vocabulary (32000 vs 32001)\n" + LOG, "worth nothing"),
    ],
)
def test_a_log_that_is_no_figure_says_why(text: str, says: str) -> None:
    with pytest.raises(ForeignFormatError, match=re.escape(says)):
        parse_llama_perplexity(text)


def test_only_the_whole_log_is_a_figure() -> None:
    lines = LOG.splitlines(keepends=True)
    last = next(i for i, line in enumerate(lines) if line.startswith("Same top p"))
    for n in range(last + 1):
        with pytest.raises(ForeignFormatError):
            parse_llama_perplexity("".join(lines[:n]))
    assert parse_llama_perplexity("".join(lines[: last + 1])) == parse_llama_perplexity(LOG)


def test_bench_output_as_array_and_as_lines() -> None:
    [found] = parse_llama_bench(BENCH)
    prompt, gen = found.tests
    assert (prompt.n_prompt, prompt.n_gen, gen.n_prompt, gen.n_gen) == (512, 0, 0, 128)
    assert (prompt.avg_ts, prompt.stddev_ts) == (23364.621547, 230.956733)
    assert prompt.samples_ns == [22067719, 21761368] and prompt.avg_ns == 21914544
    assert (prompt.model_size, prompt.model_n_params, prompt.model_filename) == (3019776, 3672320, "demo-Q6_K.gguf")
    assert (prompt.flash_attn, prompt.type_k, prompt.n_depth) == ("auto", "f16", 0)
    assert prompt.peak_memory_bytes is None and prompt.peak_vram_bytes is None
    assert (found.environment.cpu, found.environment.backend, found.environment.gpu) == ("AMD EPYC", "CPU", None)
    assert found.environment.llama_cpp == "llama.cpp 0c1e570 (build 1)"
    [lines] = parse_llama_bench(BENCH_LINES)
    assert [(test.n_prompt, test.n_gen) for test in lines.tests] == [(512, 0), (0, 128)]
    assert lines.environment == found.environment


def test_bench_output_of_2023() -> None:
    [found] = parse_llama_bench(OLD_BENCH)
    [test] = found.tests
    assert (test.model_filename, test.type_k, test.type_v) == ("ggml-model-q4_0.gguf", "f16", "f16")
    assert (test.n_ubatch, test.n_depth, test.flash_attn) == (512, 0, "off")
    assert found.environment.backend == "cuda, gpu_blas, blas"
    assert found.environment.gpu == "NVIDIA GeForce RTX 3090 Ti"


def test_bench_output_between_what_else_was_printed() -> None:
    noisy = f"ggml_cuda_init: found 1 CUDA devices:\n[1]4.2,\n{BENCH}\nbuild: 0c1e570 (1)\n"
    assert parse_llama_bench(noisy) == parse_llama_bench(BENCH)
    assert parse_llama_bench(json.dumps(json.loads(BENCH))) == parse_llama_bench(BENCH)


def bench(**changes: Any) -> str:
    tests = json.loads(BENCH)
    for name, value in changes.items():
        if value is None:
            del tests[0][name]
        else:
            tests[0][name] = value
    return json.dumps(tests)


def test_models_and_environments_are_told_apart() -> None:
    assert len(parse_llama_bench(bench(n_threads=8))) == 2
    assert len(parse_llama_bench(bench(model_filename="C:\\models\\other.gguf"))) == 2
    [test] = parse_llama_bench(bench(model_filename="C:\\models\\other.gguf"))[0].tests
    assert test.model_filename == "other.gguf"


@pytest.mark.parametrize(("given_", "means"), [(True, "on"), (False, "off"), (1, "on"), (0, "off"), (-1, "auto")])
def test_flash_attention_by_any_name(given_: object, means: str) -> None:
    assert parse_llama_bench(bench(flash_attn=given_))[0].tests[0].flash_attn == means


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no test"),
        ("[]", "no test"),
        ("null", "no test"),
        ("[1]", "no usable 'test'"),
        (BENCH[: len(BENCH) // 2 - 40], "cut or damaged in the test that begins at line"),
        (bench(samples_ns=None), "no usable 'samples_ns' (Field required)"),
        (bench(samples_ns=[0, 1]), "samples_ns"),
        (bench(avg_ts=float("nan")), "avg_ts"),
        (bench(avg_ts=1.0), "not the mean of its samples"),
        (bench(flash_attn="perhaps"), "flash_attn"),
        (bench(n_prompt=0), "neither prompt nor generated"),
        (bench(model_size=2**70), "model_size"),
    ],
)
def test_bench_output_that_is_no_figure_says_why(text: str, says: str) -> None:
    with pytest.raises(ForeignFormatError, match=re.escape(says)):
        parse_llama_bench(text)


def test_the_tool_is_known_by_what_it_printed() -> None:
    assert tool_of(BENCH) == tool_of(BENCH_LINES) == tool_of(OLD_BENCH) == "llama-bench"
    assert tool_of(LOG) == tool_of(VERBOSE) == tool_of(PLAIN) == "llama-perplexity"
    with pytest.raises(ForeignFormatError, match="-o json"):
        tool_of("| model                          |       size |            test |                  t/s |\n")
    with pytest.raises(ForeignFormatError, match="neither"):
        tool_of("# A README\n")


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for one in value.values() for number in numbers(one)]
    if isinstance(value, list):
        return [number for one in value for number in numbers(one)]
    return [value] if isinstance(value, float) else []


def check(text: str) -> None:
    """Whatever the text: a named error, or a result that can be stored, published and read again."""
    for parse in (lambda t: [parse_llama_perplexity(t)], parse_llama_bench):
        try:
            found: list[QualityResult | SpeedResult] = parse(text)  # type: ignore[assignment]
        except ForeignFormatError as error:
            assert str(error).endswith((".", ")."))
            assert "\n" not in str(error) and str(error).isprintable()
            continue
        assert found
        for one in found:
            assert result_adapter.validate_json(one.model_dump_json()) == one
            assert all(math.isfinite(number) for number in numbers(one.model_dump()))
            canonical_json(one.model_dump(mode="json")).encode("utf-8")
            assert one.environment.fingerprint
    with suppress(ForeignFormatError):
        tool_of(text)


SEEDS = (LOG, VERBOSE, PLAIN, BENCH, BENCH_LINES, OLD_BENCH)
BITS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["nan", "-nan", "inf", "±", "%", "\n", "{", "}", "[", '"', "-", "9" * 60, "1e999", "\\ud800", "\x00", "KLD:"]
    ),
)


@settings(max_examples=400, deadline=None)
@given(seed=st.sampled_from(SEEDS), data=st.data())
def test_a_garbled_text_is_an_error_or_a_result(seed: str, data: st.DataObject) -> None:
    text = seed
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        to = min(len(text), at + data.draw(st.integers(0, 40)))
        text = text[:at] + data.draw(BITS) + text[to:]
    check(text)


@settings(max_examples=200, deadline=None)
@given(seed=st.sampled_from(SEEDS), data=st.data())
def test_a_truncated_text_is_an_error_or_a_result(seed: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(seed)))
    check(seed[start : data.draw(st.integers(start, len(seed)))])


@settings(max_examples=150, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from([*json.loads(BENCH)[0], "x"]), inner, max_size=6)
        ),
        max_leaves=12,
    )
)
def test_any_json_is_an_error_or_a_result(value: Any) -> None:
    check(json.dumps(value))
    tests = json.loads(BENCH)
    if isinstance(value, dict):
        check(json.dumps([tests[0] | value]))


def test_a_hostile_text_takes_no_time() -> None:
    for text in (
        "1 " + "9" * 100_000,
        "Mean    KLD: " + " " * 100_000,
        "[" * 100_000,
        '{"a":' * 50_000,
        "Mean" * 50_000,
    ):
        check(text)
        check(LOG + text)
