"""Figures measured elsewhere enter as such; what is measured here takes their place: the command over a real hub."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bot_helpers import CARD, F16, REPO, World, quant, with_nan

from bot.clock import SystemClock
from bot.commands.common import open_hub
from bot.cycle import Cycle
from bot.intake.view import view
from bot.publish.pulls import publish_repo
from bot.publish.rows import current_rows
from bot.store import Store
from core.dataset import DatasetRow
from core.dataset_file import parquet_bytes, parquet_rows

FOREIGN = Path(__file__).parents[1] / "golden" / "foreign"
LOG, VERBOSE, PLAIN = (FOREIGN / f"perplexity-{name}.log" for name in ("Q6_K", "verbose-Q4_K_M", "plain"))
BENCH = FOREIGN / "bench-Q6_K.json"
Q6_K = f"{REPO}/demo-Q6_K.gguf"


def look(world: World) -> None:
    """A watch without a measurement."""
    settings = world.settings()
    with Store(settings.db) as store:
        hub = open_hub(settings)
        cycle = Cycle(
            store, hub, settings, SystemClock(), tell_job=lambda _: None, tell=lambda _: None, stop=world.stop
        )
        assert cycle.poll().changed == [REPO]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """F16 and Q8_0 measured before, Q6_K and Q4_K_M seen but not measured."""
    with World(tmp_path) as found:
        found.usual(**{"demo-Q6_K.gguf": quant("Q6_K"), "demo-Q4_K_M.gguf": quant("Q4_K_M")})
        found.follow()
        look(found)
        yield found


def quantcard(world: World, *arguments: object, **settings: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bot.cli", *map(str, arguments)],
        env=world.environment(**settings),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def refused(world: World, code: int, says: str, *arguments: object, **settings: Any) -> None:
    done = quantcard(world, "import", *arguments, **settings)
    assert done.returncode == code, (done.returncode, done.stderr)
    assert says in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert done.stdout == ""


def rows_of(world: World) -> dict[str, DatasetRow]:
    return {name: row for (repo, name, _), row in world.rows().items() if repo == REPO}


def test_an_import_is_marked_and_a_measurement_takes_its_place(world: World) -> None:
    for log, says in ((LOG, "mean KLD of 0.00128"), (BENCH, "pp512 of 23,365 t/s and tg128 of 7,607 t/s")):
        done = quantcard(world, "import", Q6_K, log)
        assert done.returncode == 0 and says in done.stderr, done.stderr
        again = quantcard(world, "import", Q6_K, log)
        assert again.returncode == 0 and "nothing changes" in again.stderr
    row = rows_of(world)["demo-Q6_K.gguf"]
    assert (row.state, row.quality_imported, row.speed_imported) == ("measured", "llama-perplexity", "llama-bench")
    assert (row.kld_mean, row.n_chunks, row.n_tokens, row.n_ctx) == (0.001283, 4, 1020, 512)
    assert row.peak_memory_bytes is None and row.command is None and not row.measured_here
    source = json.loads(row.quality_json or "")["imported"]
    assert source["source"] == LOG.name and len(source["sha256"]) == 64
    assert parquet_rows(parquet_bytes([row])) == [row]
    assert rows_of(world)["demo-Q8_0.gguf"].measured_here
    shown = quantcard(world, "status", REPO).stdout
    assert "quality imported (llama-perplexity); speed imported (llama-bench)" in shown

    report = world.cycle()
    assert report.exit_code == 0 and report.jobs_done == 4, report
    measured = rows_of(world)["demo-Q6_K.gguf"]
    assert measured.quality_imported is None and measured.speed_imported is None and measured.command
    assert measured.kld_mean == pytest.approx(row.kld_mean, rel=0.01) and measured.peak_memory_bytes
    assert "imported" not in world.card("refs/pr/1").decode()
    for log in (LOG, BENCH):
        refused(world, 2, "was measured here", Q6_K, log)
    assert rows_of(world)["demo-Q6_K.gguf"] == measured


def test_what_was_measured_here_is_never_replaced(world: World, tmp_path: Path) -> None:
    before = rows_of(world)["demo-Q8_0.gguf"]
    refused(world, 2, "was measured here on 20", f"{REPO}/demo-Q8_0.gguf", LOG)
    settings = world.settings()
    with Store(settings.db) as store:
        # Not even when it slips in behind the measurement.
        [q8] = [one for one in store.repos.variants(REPO) if one.name == "demo-Q8_0.gguf"]
        [q6] = [one for one in store.repos.variants(REPO) if one.name == "demo-Q6_K.gguf"]
        assert quantcard(world, "import", Q6_K, LOG).returncode == 0
        fingerprint, against = settings.protocol_in_force().fingerprint, before.reference_key
        taken = store.results.measurements(q6.key, fingerprint, reference_key=against)["quality"].result
        store.results.save_measurement(
            q8.key, fingerprint, taken, reference_key=against, job_id=None, now=time.time() + 60
        )
    assert rows_of(world)["demo-Q8_0.gguf"] == before


def test_another_file_protocol_corpus_or_reference_is_refused(world: World, tmp_path: Path) -> None:
    refused(world, 3, "The log is of demo-Q4_K_M.gguf, not of demo-Q6_K.gguf", Q6_K, VERBOSE)
    refused(world, 3, "without --kl-divergence", Q6_K, PLAIN)
    refused(world, 3, "The log is over 4 chunks; the protocol", Q6_K, LOG, chunks=3)
    refused(world, 3, "Run llama-bench with -p 512 -n 128 -d 0 -r 5", Q6_K, BENCH, repetitions=5)
    refused(world, 3, "No test is of demo-Q4_K_M.gguf", f"{REPO}/demo-Q4_K_M.gguf", BENCH)
    text = LOG.read_text(encoding="utf-8")
    other = tmp_path / "other.log"
    for old, new, says in (
        ("Mean PPL(base)                :  30.637050", "Mean PPL(base)                :  12.637050", "another corpus"),
        ("n_ctx=512", "n_ctx=513", "chunks of 513 tokens"),
        ("system_info", "K (q8_0): 1 MiB, V (q8_0): 1 MiB\nsystem_info", "KV cache was of type q8_0"),
    ):
        assert old in text
        other.write_text(text.replace(old, new), encoding="utf-8")
        refused(world, 3, says, Q6_K, other)
    tests = json.loads(BENCH.read_text())
    other.write_text(json.dumps([*tests, *({**test, "n_threads": 7} for test in tests)]))
    refused(world, 3, "more than once", Q6_K, other)
    other.write_text(json.dumps([tests[0], {**tests[1], "n_depth": 32}]))
    refused(world, 3, "not all there", Q6_K, other)
    assert rows_of(world)["demo-Q6_K.gguf"].state == "waiting"


def test_usage_is_told_in_a_sentence(world: World, tmp_path: Path) -> None:
    refused(world, 2, "Write OWNER/REPO/FILE.gguf", REPO, LOG)
    refused(world, 2, "was not looked into yet", "somebody/else-GGUF/x.gguf", LOG)
    refused(world, 2, "only demo-F16.gguf, demo-Q4_K_M.gguf", f"{REPO}/demo-Q5_0.gguf", LOG)
    refused(world, 3, "can't be read", Q6_K, tmp_path / "no.log")
    refused(world, 3, "can't be read", Q6_K, tmp_path)
    (tmp_path / "readme.md").write_text("# Nothing\n")
    refused(world, 3, "neither output of", Q6_K, tmp_path / "readme.md")


def test_a_log_of_a_windows_shell(world: World, tmp_path: Path) -> None:
    for encoding in ("utf-16", "utf-8-sig"):
        log = tmp_path / f"{encoding}.log"
        log.write_bytes(LOG.read_text(encoding="utf-8").replace("\n", "\r\n").encode(encoding))
        done = quantcard(world, "import", f"{REPO.upper().replace('UPLOADER', 'uploader')}/demo-Q6_K.gguf", log)
        assert done.returncode == 0, done.stderr
    assert rows_of(world)["demo-Q6_K.gguf"].kld_mean == 0.001283


def test_a_file_found_invalid_here_stays_so(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        world.usual(**{"demo-Q4_K_M.gguf": with_nan(quant("Q8_0"), "import-nan.gguf")})
        world.follow()
        look(world)
        nan = f"{REPO}/demo-Q4_K_M.gguf"
        assert quantcard(world, "import", nan, LOG).returncode == 0
        assert rows_of(world)["demo-Q4_K_M.gguf"].kld_mean is not None
        world.cycle(publish=False)
        row = rows_of(world)["demo-Q4_K_M.gguf"]
        assert row.state == "failed" and "INVALID" in (row.reason or "")
        assert row.kld_mean is None and row.quality_imported is None
        refused(world, 2, "found INVALID here", nan, LOG)


def test_without_a_reference_only_speed_enters_and_imports_alone_open_no_pull(tmp_path: Path) -> None:
    with World(tmp_path, template=False) as world:
        world.upload({"demo-Q6_K.gguf": quant("Q6_K"), "README.md": CARD.encode()})
        world.follow()
        look(world)
        refused(world, 2, "has no reference", Q6_K, LOG)
        assert quantcard(world, "import", Q6_K, BENCH).returncode == 0
        world.upload({"demo-F16.gguf": F16})
        look(world)
        assert quantcard(world, "import", Q6_K, LOG).returncode == 0
        settings = world.settings()
        with Store(settings.db) as store:
            seen = view(store, trusted=settings.trusted_owners)
            rows = current_rows(store, seen, settings.protocol_in_force(), repo_id=REPO)
            done = publish_repo(store, open_hub(settings), settings, seen.repos[REPO], rows, now=time.time())
        assert done.decision.action == "nothing" and "imported" in done.decision.reason
        assert world.pulls() == []
