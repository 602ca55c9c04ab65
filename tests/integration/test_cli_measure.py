"""The measuring commands as a user runs them: figures on stdout, sentences on stderr, exit codes as documented."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from core.contract import KLD, DeltaP, QualityResult


def quantcard(*arguments: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bot.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def json_of(*arguments: object) -> Any:
    done = quantcard(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory, demo_model: Path, demo_corpus: Path) -> Path:
    out = tmp_path_factory.mktemp("baseline") / "base.kld"
    done = quantcard(
        "baseline", "record", demo_model, "--corpus", demo_corpus, "--ctx", 256, "--chunks", 8, "--out", out
    )
    assert done.returncode == 0, done.stderr
    assert "8 chunks of 256 tokens" in done.stdout
    return out


@pytest.fixture(scope="module")
def quant(tmp_path_factory: pytest.TempPathFactory, demo_model: Path) -> Path:
    from bot.queue.runners.local import run_job
    from core.contract import QuantizeSpec

    out = tmp_path_factory.mktemp("quant") / "demo-Q4_K_M.gguf"
    run_job(QuantizeSpec(model=str(demo_model), out=str(out), file_type="Q4_K_M"), timeout=100)
    return out


def test_quality_prints_the_interface(baseline: Path, quant: Path) -> None:
    found = json_of("measure", "quality", quant, "--baseline", baseline)
    assert set(found["kld"]) == set(KLD.model_fields)
    assert set(found["delta_p"]) == set(DeltaP.model_fields)
    for name in ("ppl", "ppl_base", "ppl_ratio", "ln_ppl_ratio", "same_top"):
        assert set(found[name]) == {"value", "stderr"}
    assert found["n_chunks"] == 8 and found["n_tokens"] == 8 * 127
    assert 0.5 < found["same_top"]["value"] < 1 and 0 < found["kld"]["mean"] < 0.1
    assert found["environment"]["llama_cpp"].startswith("llama-cpp-python")
    assert found["protocol"]["n_ctx"] == 256
    QualityResult.model_validate(found)


def test_the_reference_against_itself_is_the_noise_floor(baseline: Path, demo_model: Path) -> None:
    found = json_of("measure", "quality", demo_model, "--baseline", baseline)
    assert abs(found["kld"]["mean"]) < 1e-5
    assert found["exact"]["ppl_ratio"]["value"] == pytest.approx(1, abs=1e-6)


def test_fewer_chunks_are_the_first_ones(baseline: Path, quant: Path) -> None:
    found = json_of("measure", "quality", quant, "--baseline", baseline, "--chunks", 3)
    assert found["n_chunks"] == 3 and found["n_tokens"] == 3 * 127


def test_batch_shape_hardly_changes_figures(baseline: Path, quant: Path) -> None:
    """One chunk in four decodes, one chunk a decode, many chunks a decode: the same figures but for rounding."""
    found = [
        json_of("measure", "quality", quant, "--baseline", baseline, "-b", batch, "-ub", ubatch)
        for batch, ubatch in ((64, 64), (256, 256), (2048, 512), (512, 128))
    ]
    for other in found[1:]:
        assert other["kld"]["mean"] == pytest.approx(found[0]["kld"]["mean"], rel=2e-3)
        assert other["ppl"]["value"] == pytest.approx(found[0]["ppl"]["value"], rel=1e-4)


def test_speed_has_llama_benchs_fields(quant: Path) -> None:
    tests = json_of("measure", "speed", quant, "-p", "64,32", "-n", 8, "-r", 2)
    assert [(t["n_prompt"], t["n_gen"]) for t in tests] == [(64, 0), (32, 0), (0, 8)]
    for test in tests:
        assert len(test["samples_ns"]) == len(test["samples_ts"]) == 2
        n = test["n_prompt"] + test["n_gen"]
        assert test["samples_ts"] == [pytest.approx(1e9 * n / ns) for ns in test["samples_ns"]]
        assert test["avg_ts"] == pytest.approx(sum(test["samples_ts"]) / 2)
        assert test["stddev_ts"] == pytest.approx(float(np.std(test["samples_ts"], ddof=1)))
        assert quant.stat().st_size < test["peak_memory_bytes"] < 2 << 30
        assert test["model_n_params"] == 3_672_320


def test_speed_as_a_table(quant: Path) -> None:
    done = quantcard("measure", "speed", quant, "-p", 16, "-n", 4, "-r", 1)
    assert done.returncode == 0 and "pp16" in done.stdout and "tg4" in done.stdout


def test_verify_export_import(baseline: Path, quant: Path, demo_model: Path, tmp_path: Path) -> None:
    found = json_of("baseline", "verify", baseline)
    assert found["companion"] and found["n_chunks"] == 8 and found["ppl"]["value"] > 1
    plain = tmp_path / "plain.kld"
    json_of("baseline", "export", baseline, "--out", plain)
    assert plain.read_bytes() == baseline.read_bytes() and not plain.with_name("plain.kld.json").exists()
    bare = json_of("measure", "quality", quant, "--baseline", plain)
    full = json_of("measure", "quality", quant, "--baseline", baseline)
    assert bare["kld"] == full["kld"] and bare["exact"] is None and full["exact"] is not None
    taken = tmp_path / "taken.kld"
    found = json_of("baseline", "import", plain, "--out", taken, "--reference", demo_model)
    assert found["companion"] and found["ppl"] is None
    assert json_of("measure", "quality", quant, "--baseline", taken)["kld"] == full["kld"]


def test_inspect_a_file(quant: Path) -> None:
    found = json_of("inspect", quant)
    keys = "architecture n_params size_bytes bpw file_type n_tensors tensor_types groups imatrix base_models shards "
    assert set((keys + "chat_template_sha256 flags").split()) <= set(found)
    assert found["file_type"] == "Q4_K_M" and found["size_bytes"] == quant.stat().st_size
    assert sum(t["count"] for t in found["tensor_types"].values()) == found["n_tensors"]
    assert "attention" in found["groups"] and found["imatrix"] is None and found["chat_template_sha256"] is None
    assert "Q4_K_M" in quantcard("inspect", quant).stdout


def fails(code: int, says: str, *arguments: object) -> None:
    done = quantcard(*arguments)
    assert done.returncode == code, (done.returncode, done.stderr)
    assert says in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert len([line for line in done.stderr.splitlines() if line.startswith("Error: ")]) == 1


def test_missing_truncated_and_foreign_files(baseline: Path, quant: Path, tmp_path: Path) -> None:
    fails(3, "does not exist", "measure", "quality", tmp_path / "no.gguf", "--baseline", baseline)
    fails(3, "does not exist", "measure", "quality", quant, "--baseline", tmp_path / "no.kld")
    data = quant.read_bytes()
    cut = tmp_path / "cut.gguf"
    for length, says in ((len(data) - 1000, "truncated"), (5000, "truncated"), (3, "truncated"), (0, "is empty")):
        cut.write_bytes(data[:length])
        fails(3, says, "measure", "speed", cut)
    cut.write_bytes(b"PK\x03\x04" + data[4:])
    fails(3, "not a GGUF file", "inspect", cut)


def test_corpus_errors(demo_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "base.kld"
    short = tmp_path / "short.txt"
    short.write_text("Once upon a time. " * 20)
    record = ("baseline", "record", demo_model, "--out", out)
    fails(3, "at least 1024", *record, "--corpus", short)
    fails(3, "can't be read", *record, "--corpus", tmp_path / "no.txt")
    short.write_text("\n")
    fails(3, "is empty", *record, "--corpus", short)
    assert not out.exists() and not list(tmp_path.glob(".base.kld.*"))


def test_corrupt_baselines(baseline: Path, quant: Path, tmp_path: Path) -> None:
    data = bytearray(baseline.read_bytes())
    data[-3000] ^= 0x41
    bad = tmp_path / "bad.kld"
    bad.write_bytes(data)
    companion = baseline.with_name(baseline.name + ".json").read_text()
    (tmp_path / "bad.kld.json").write_text(companion)
    fails(3, "fails its checksum", "measure", "quality", quant, "--baseline", bad)
    fails(3, "fails its checksum", "baseline", "verify", bad)
    (tmp_path / "bad.kld.json").write_text(companion[:100])
    fails(3, "is damaged", "measure", "quality", quant, "--baseline", bad)
    (tmp_path / "bad.kld.json").unlink()
    bad.write_bytes(data[:-1])
    fails(3, "is corrupt", "measure", "quality", quant, "--baseline", bad)


def test_another_models_vocabulary(baseline: Path, quant: Path, shared: Path, tmp_path: Path) -> None:
    other = shared / "data" / "models" / "stories260K-Q8_0.gguf"
    fails(3, "vocabulary of 512 tokens", "measure", "quality", other, "--baseline", baseline)


def test_a_vocabulary_of_the_same_size_with_other_tokens(baseline: Path, quant: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.gguf"
    data = quant.read_bytes()
    # A token's text in the vocabulary: its length stands before it, so only the letters change.
    token = "Ġthe".encode()
    spot = data.index(len(token).to_bytes(8, "little") + token)
    changed.write_bytes(data[: spot + 8] + "Ġthy".encode() + data[spot + 8 + len(token) :])
    fails(3, "but other ones", "measure", "quality", changed, "--baseline", baseline)


def test_nan_weights_are_invalid(baseline: Path, demo_model: Path, demo_corpus: Path, tmp_path: Path) -> None:
    broken = tmp_path / "nan.gguf"
    broken.write_bytes(demo_model.read_bytes())
    reader = GGUFReader(broken, "r+")
    tensor = next(t for t in reader.tensors if t.name == "output_norm.weight")
    tensor.data[:] = np.nan
    reader.data.flush()
    fails(3, "INVALID", "measure", "quality", broken, "--baseline", baseline)
    out = tmp_path / "base.kld"
    fails(3, "INVALID", "baseline", "record", broken, "--corpus", demo_corpus, "--chunks", 2, "--out", out)
    assert not out.exists()


def test_usage_errors_exit_2(quant: Path, baseline: Path) -> None:
    done = quantcard("measure", "speed", quant, "-p", "many")
    assert done.returncode == 2 and "not a number" in done.stderr and "Traceback" not in done.stderr
    fails(2, "Nothing to time", "measure", "speed", quant, "-p", 0, "-n", 0)
    fails(2, "use --format states", "baseline", "record", quant, "--corpus", "x", "--out", "y", "--format", "both")
    fails(2, "is a GGUF", "baseline", "record", quant, "--corpus", "x", "--out", "y.kld", "--format", "states")
    fails(2, "not two numbers", "measure", "speed", quant, "-pg", "512")
    fails(2, "multiple", "measure", "quality", quant, "--baseline", baseline, "-b", 300)
    fails(2, "is not one of", "measure", "speed", quant, "--type-k", "q9_9")


def ok(*arguments: object) -> str:
    done = quantcard(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_states_several_variants_and_their_comparison(
    quant: Path, demo_model: Path, demo_corpus: Path, tmp_path: Path
) -> None:
    states = tmp_path / "base.gguf"
    recorded = ok("baseline", "record", demo_model, "--corpus", demo_corpus, "--chunks", 8, "--out", states, "--json")
    assert json.loads(recorded)["format"] == "states" and json.loads(recorded)["fallback"] is None
    assert "states; rebuilt logits differ" in ok("baseline", "verify", states)
    plain, direct = tmp_path / "plain.kld", tmp_path / "direct.kld"
    ok("baseline", "export", states, "--out", plain)
    ok("baseline", "record", demo_model, "--corpus", demo_corpus, "--chunks", 8, "--out", direct)
    assert plain.read_bytes() == direct.read_bytes()
    other = tmp_path / "demo-copy.gguf"
    other.write_bytes(demo_model.read_bytes())
    both = json.loads(
        ok("measure", "quality", quant, other, "--baseline", states, "--as-llama-cpp", "--tokens", tmp_path, "--json")
    )
    alone = json.loads(ok("measure", "quality", quant, "--baseline", direct, "--json"))
    assert both[0]["kld"] == alone["kld"] and both[0]["ppl"] == alone["ppl"]
    assert both[0]["scoring"] == "llama-cpp" and both[0]["unclipped"]["mean"] == pytest.approx(
        alone["kld"]["mean"], abs=1e-5
    )
    assert both[1]["unclipped"]["max"] == 0.0
    a, b = tmp_path / f"{quant.stem}.parquet", tmp_path / "demo-copy.parquet"
    said = json.loads(ok("compare", a, b, "--json"))
    assert said["kld_mean"]["p_value"] < 0.05 and "demo-copy" in said["sentence"] and "closer" in said["sentence"]


def test_a_broken_variant_does_not_sink_the_others(quant: Path, baseline: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing.gguf"
    done = quantcard("measure", "quality", missing, quant, "--baseline", baseline, "--json")
    failure, result = json.loads(done.stdout)
    assert done.returncode == 3 and failure["type"] == "GGUFError" and result["kld"]["mean"] > 0
    assert "missing.gguf" in done.stderr


def test_speed_of_pairs_at_a_depth(quant: Path) -> None:
    options = ("-p", 0, "-n", 4, "-pg", "16,4", "-d", "0,64", "-r", 1)
    tests = json.loads(ok("measure", "speed", quant, *options, "--json"))
    assert [(t["n_prompt"], t["n_gen"], t["n_depth"]) for t in tests] == [
        (0, 4, 0),
        (16, 4, 0),
        (0, 4, 64),
        (16, 4, 64),
    ]
    assert "pp16+tg4 @ d64" in ok("measure", "speed", quant, *options)
