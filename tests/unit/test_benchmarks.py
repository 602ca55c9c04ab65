"""The benchmark: what it reads from llama.cpp's tools, its arithmetic, its tables, and a short run without tools."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import children, models, peer_log, peers, sizes, table
from benchmarks.__main__ import parser
from benchmarks.setting import Setting, prepare
from benchmarks.table import BenchError, Row, Target
from core.contract import Machine
from core.gguf_header import read_file_header
from jobs.baseline.kld_file import KldShape
from jobs.llama import Model

ROOT = Path(__file__).resolve().parents[2]

# Captured from llama.cpp 0.5.0-dev (commit 0c1e570), --log-timestamps --log-prefix.
KLD_LOG = """\
0.00.014.215 I cmn          init: llama threadpool init, n_threads = 2
0.00.645.719 W llama_perplexity: model was trained on only 512 context tokens (2048 specified)
0.00.645.776 I
0.00.649.992 I kl_divergence: computing over 4 chunks, n_ctx=512, batch_size=2048, n_seq=4
0.03.273.909 I kl_divergence: 2.62 seconds per pass - ETA """
KLD_PRINTED = """\
0.03 minutes

chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence
   4      30.6371 ±    2.9347       0.00000 ±       -nan      -0.00000 ±    0.00000     0.001 ±  0.000 %    100.000 ±

====== KL divergence statistics ======
Mean    KLD:   0.005995 ±   0.000123
Maximum KLD:   0.000061
"""
RECORD_LOG = """\
0.00.030.860 I perplexity: saving all logits to p.kld
0.00.030.920 I perplexity: tokenizing the input ..
0.00.112.660 I perplexity: tokenization took 81.723 ms
1.02.112.846 I perplexity: calculating perplexity over 4 chunks, n_ctx=512, batch_size=2048, n_seq=4
1.03.153.912 I perplexity: 1.04 seconds per pass - ETA 0.02 minutes
[1]23.8313,[2]22.1975,[3]27.0736,[4]30.6371,
1.03.181.315 I Final estimate: PPL = 30.6371 +/- 2.93468
"""
BENCH = [
    {"n_prompt": 512, "n_gen": 0, "avg_ts": 10893.6, "samples_ts": [1986.27, 19801]},
    {"n_prompt": 0, "n_gen": 128, "avg_ts": 1045.46, "samples_ts": [698.153, 1392.77]},
]


def ended(errors: str, printed: str = "", wall: float = 100.0) -> children.Ended:
    lines = [(0.0, line) for line in printed.splitlines()]
    return children.Ended(wall, 1 << 20, frozenset(), lines, errors)


def test_load_is_what_comes_before_the_first_chunk() -> None:
    kld = peer_log.read_pass(ended(KLD_LOG, KLD_PRINTED))
    assert (kld.load, kld.n_chunks, kld.mean_kld) == (pytest.approx(0.649992), 4, "0.005995")
    assert kld.work == pytest.approx(100 - 0.649992)
    recorded = peer_log.read_pass(ended(RECORD_LOG))
    assert (recorded.load, recorded.ppl) == (pytest.approx(62.112846), "30.6371")


@pytest.mark.parametrize(
    "log",
    ["", "0.00.649.992 E kl_divergence: failed to open base.kld", "kl_divergence: computing over 4 chunks, unstamped"],
)
def test_a_tool_that_measured_nothing_is_an_error_whatever_its_exit_code(log: str) -> None:
    with pytest.raises(BenchError, match="measured nothing"):
        peer_log.read_pass(ended(log, KLD_PRINTED))


def test_a_tool_that_began_but_came_to_no_figure_is_an_error() -> None:
    with pytest.raises(BenchError, match="no figure"):
        peer_log.read_pass(ended(KLD_LOG, "chunk"))


def test_llama_benchs_samples_by_test() -> None:
    assert peer_log.bench_samples(json.dumps(BENCH)) == {"pp512": [1986.27, 19801], "tg128": [698.153, 1392.77]}
    with pytest.raises(BenchError):
        peer_log.bench_samples("error: no such model")


def test_median_of_ratios_drops_what_a_round_does_to_both() -> None:
    # The second round ran on a machine twice as slow.
    assert table.median_of_ratios([1.0, 2.0, 1.1], [2.0, 4.0, 2.0]) == pytest.approx(0.5)
    assert table.ratio_of_medians([1.0, 2.0, 1.1], [2.0, 4.0, 2.0]) == pytest.approx(0.55)


def test_targets() -> None:
    assert table.at_most(1.05).met(1.05) and not table.at_most(1.05).met(1.0501)
    assert table.within(0.03).met(0.97) and table.within(0.03).met(1.03) and not table.within(0.03).met(0.96)
    assert not table.at_most(1.05).met(math.nan)
    assert Row("f", "o").met is None
    assert Row("f", "o", ratio=0.5, target=table.at_most(0.3), value=0.2).met is True


def test_a_table_is_markdown() -> None:
    rows = [
        table.paired("time", [1.0, 3.0, 2.0], [2.0, 6.0, 4.0], table.at_most(0.65), limit="peer"),
        Row("a|b", "equal", "", None, Target("the same", 0.0), 1.0),
        table.peaks("memory", [2_000_000], [1_000_000], limit="peer"),
    ]
    text = table.render("demo", rows)
    assert text.splitlines() == [
        "### demo",
        "",
        "| figure | ours | peer or limit | ratio | target | met? |",
        "|---|--:|--:|--:|--:|---|",
        "| time | 2.000 s | peer: 4.000 s | 0.500 | ≤ 0.65 | yes |",
        "| a\\|b | equal |  |  | the same | **no** |",
        "| memory | 2 MB | peer: 1 MB | 2.000 |  |  |",
    ]
    assert rows[0].as_json()["ours_s"] == [1.0, 3.0, 2.0]


def test_sizes_are_readable() -> None:
    assert [table.size(n) for n in (12, 1234, 44_945_039_860, 310_000_000)] == ["12 B", "1.23 kB", "44.9 GB", "310 MB"]


def test_the_whole_baselines_size_is_the_known_one() -> None:
    # shared/reference/llama-measurements.md: 580 x 512 at V = 151,936.
    assert sizes.WHOLE.file_bytes == 44_945_039_860
    planned = sizes.states_plan(sizes.WHOLE, 1024, "F16", n_samples=8)
    states = 580 * 255 * 1024 * 2
    assert states < sizes.data_bytes(planned) < states + 580 * 512 * 4 + 580 * 255 * 8 + 8 * 151_936 * 4 + 10_000


def test_tensors_are_padded_and_a_head_is_scaled() -> None:
    tensors = [
        sizes.Planned("token_embd.weight", (100, 96), "F16"),
        sizes.Planned("output_norm.weight", (96,), "F32"),
        sizes.Planned("odd", (3,), "F32"),
    ]
    assert sizes.data_bytes(tensors) == 100 * 96 * 2 + 96 * 4 + 32
    wider = sizes.scaled(tensors, width=(96, 1056), vocab=(100, 151_936))
    assert [t.shape for t in wider] == [(151_936, 1056), (1056,), (3,)]


def test_libraries_are_found_in_a_processs_maps(tmp_path: Path) -> None:
    real = tmp_path / "libllama.so.0.5.0"
    real.touch()
    (tmp_path / "libllama.so").symlink_to(real)
    line = "7f5f2814a000-7f5f28150000 r-xp 00000000 fe:00 1 "
    maps = "\n".join(line + name for name in (f"{tmp_path}/libllama.so", "/lib/libggml-cpu.so.0", "/lib/libc.so.6"))
    assert children.mapped_libraries(maps) == {str(real), os.path.realpath("/lib/libggml-cpu.so.0")}


def test_a_child_is_measured() -> None:
    code = "import sys; print(sys.stdin.read()); x = bytearray(300 << 20); print('end')"
    found = children.run([sys.executable, "-c", code], name="child", environment=os.environ, text="hello")
    assert [line for _, line in found.lines] == ["hello", "end"]
    assert 300 << 20 < found.peak_bytes < 400 << 20
    assert 0 < found.lines[0][0] <= found.lines[1][0] <= found.wall


def test_a_child_that_fails_or_takes_too_long_is_named_with_its_last_words() -> None:
    with pytest.raises(BenchError, match=r"tool failed \(code 3\): no such model"):
        code = "import sys; print('no such model', file=sys.stderr); sys.exit(3)"
        children.run([sys.executable, "-c", code], name="tool", environment=os.environ)
    with pytest.raises(BenchError, match="tool took longer than 0 s"):
        sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
        children.run(sleep, name="tool", environment=os.environ, timeout=0.2)


def test_a_build_that_lacks_a_tool_is_refused(tmp_path: Path) -> None:
    (tmp_path / "llama-perplexity").touch()
    with pytest.raises(BenchError, match=r"no llama-bench and no libllama\.so"):
        peers.existing(tmp_path)


def test_peers_are_cached_by_version_and_flags(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert peers.cache_key("0.3.36", "-DGGML_NATIVE=OFF") == "0.3.36-DGGML_NATIVE=OFF"
    assert peers.cache_key("0.3.36", "-DA=B " * 30) != peers.cache_key("0.3.36", "-DA=C " * 30)
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    assert peers.cmake_flags().startswith("-DGGML_NATIVE=OFF")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(peers.shutil, "which", lambda *_, **__: None)
    with pytest.raises(BenchError, match="cmake is needed"):
        peers.build(lambda _: None)


@pytest.mark.parametrize(("line", "done"), [("[ 12%] Building CXX", 12), ("[30/300] Building", 10), ("-- Found", None)])
def test_a_builds_progress(line: str, done: int | None) -> None:
    assert peers.percent(line) == done


def test_a_made_up_model_loads_and_takes_any_text(tmp_path: Path) -> None:
    shape = models.Shape(2, 64, 128, 4, 2, n_vocab=2000, n_merges=1500)
    path = models.make_model("tiny", shape, tmp_path, lambda _: None)
    first = path.read_bytes()
    path.unlink()
    assert models.make_model("tiny", shape, tmp_path, lambda _: None).read_bytes() == first
    assert [(t.name, t.shape[::-1]) for t in read_file_header(path).tensors] == list(shape.tensors)
    assert list(tmp_path.iterdir()) == [path]
    with Model(path, Machine(n_threads=1)) as model:
        assert model.n_vocab == 2000 and not model.add_bos
        tokens = model.tokenize("the tea, naïve 🙂 \n\t 漢字".encode())
        assert 5 < len(tokens) < 40 and np.all(tokens < 1756)


def test_the_made_up_shapes_are_the_real_ones() -> None:
    assert models.SHAPES["real"].n_bytes == pytest.approx(988e6, rel=0.01)
    assert len(models.byte_tokens()) == len(set(models.byte_tokens())) == 256
    pairs = models.merges(10_000)
    assert len({first + second for first, second in pairs}) == 10_000


def setting(folder: Path, chunks: int) -> Setting:
    product = children.Product(None, folder)
    return Setting(product, None, folder, Machine(n_threads=1), chunks=chunks, rounds=1, variant="F16")


def test_a_base_file_beyond_bounds_is_never_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo = models.find_case("demo", lambda _: None)
    with pytest.raises(BenchError, match="never writes"):
        prepare(demo, setting(tmp_path, 1_000_000), files=1)
    monkeypatch.setattr("benchmarks.setting.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    (tmp_path / "again").mkdir()
    with pytest.raises(BenchError, match="give fewer --chunks"):
        prepare(demo, setting(tmp_path / "again", 4), files=1)


def test_a_subjects_size_is_its_base_files(tmp_path: Path) -> None:
    demo = models.find_case("demo", lambda _: None)
    subject = prepare(demo, setting(tmp_path, 8), files=1)
    assert subject.kld_bytes == KldShape(512, subject.n_vocab, 8).file_bytes
    assert subject.variant == demo.reference


def test_every_option_is_documented() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for action in parser()._actions:
        for name in action.option_strings:
            assert name in ("-h", "--help") or f"`{name}" in text, name


def test_a_short_run_needs_no_tools(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--model", "demo", "--only", "kernel", "--only", "bytes"]
    done = subprocess.run(
        [*command, "--work", str(tmp_path), "--json", str(out)], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "### kernels" in done.stdout and "### demo" in done.stdout and "- machine: " in done.stdout
    tables = json.loads(out.read_text())["tables"]
    (demo,) = [rows for title, rows in tables.items() if title.startswith("demo")]
    assert demo[1]["kld_bytes"] == 44_945_039_860 and demo[1]["met"] is True
    assert list(tmp_path.iterdir()) == [out], "temporary files are gone"
