"""The results behind the page: loading, filters, paging, ranking, and what happens when the source is broken."""

from __future__ import annotations

import itertools
import json
import random
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.dataset import MEASUREMENTS_PATH
from core.errors import HubUnreachableError, QuantcardError, SettingsError
from core.verdict import Candidate, pareto, tied
from space import snapshot
from space.data import HubSource, LocalSource, Results
from space.space_app import source_from

sys.path.insert(0, str(Path(__file__).parents[1] / "acceptance"))
from sample_rows import CPU, GPU, MODEL, row, sample, write

NOW = datetime(2026, 3, 5, tzinfo=UTC)


def results_of(folder: Path, rows: list, **columns: list) -> Results:
    write(folder / MEASUREMENTS_PATH, rows, **columns)
    results = Results(LocalSource(folder))
    assert results.refresh(), results.error
    return results


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    written = row(label="Q6_K", flags='[{"code": "x", "detail": "y"}]')
    assert results_of(tmp_path, [written]).row(written.id).row == written  # type: ignore[union-attr]


def test_filters_and_counts(tmp_path: Path) -> None:
    results = results_of(tmp_path, sample(now=NOW))
    assert [(c.key, c.n) for c in results.models()] == [(MODEL, 27), ("google/gemma-3-1b-it", 2)]
    assert [c.key for c in results.owners()] == ["bartowski", "mradermacher", "unsloth", "ggml-org"]
    assert [c.label for c in results.protocols()] == ["wiki512"]
    assert results.count() == 28
    assert results.count(include_stale=True) == 29
    assert results.count(owner="unsloth") == 8
    assert results.count(base_model=MODEL, search="IQ4 unsloth") == 1
    assert results.count(protocol="wiki512") == results.count(protocol=results.protocols()[0].key) == 28
    assert {e.row.repo_id for e in results.rows(repo_id="unsloth/Qwen3-4B-Instruct-GGUF")} == {
        "unsloth/Qwen3-4B-Instruct-GGUF"
    }


def test_pages_cover_every_row_once(tmp_path: Path) -> None:
    results = results_of(tmp_path, sample(now=NOW))
    pages = [results.rows(sort="size", limit=10, offset=at) for at in range(0, 40, 10)]
    assert [len(p) for p in pages] == [10, 10, 8, 0]
    seen = [e.row.id for page in pages for e in page]
    assert len(set(seen)) == 28
    sizes = [e.row.size_bytes for page in pages for e in page]
    assert sizes == sorted(sizes)


def test_missing_figures_sort_last_either_way(tmp_path: Path) -> None:
    results = results_of(tmp_path, sample(now=NOW))
    for descending in (False, True):
        assert results.rows(sort="kld_mean", descending=descending)[-1].row.state == "failed"


@pytest.mark.parametrize(
    "text",
    ["'; DROP TABLE measurements; --", "%", "_", "' OR 1=1 --", "\\", "?", "$1", '"', "a" * 10_000, "\x00", "🤗"],
)
def test_a_search_is_text_and_nothing_else(tmp_path: Path, text: str) -> None:
    results = results_of(tmp_path, [row(label="Q4-K")])
    expected = 0
    assert results.count(search=text) == expected
    assert results.rows(search=text, base_model=text, owner=text, protocol=text) == []
    assert results.row(text) is None
    assert results.count() == 1


def test_an_unknown_sort_is_the_default_one(tmp_path: Path) -> None:
    results = results_of(tmp_path, sample(now=NOW))
    assert results.rows(sort="size_bytes; DROP TABLE measurements") == results.rows()


def test_limits_are_bounded(tmp_path: Path) -> None:
    results = results_of(tmp_path, sample(now=NOW))
    assert results.rows(limit=-5) == []
    assert len(results.rows(limit=10**9, offset=-3)) == 28


def test_fronts_and_ties_are_those_of_core(tmp_path: Path) -> None:
    draw = random.Random(7)
    rows = [
        row(
            label=f"L{i}",
            bpw=draw.choice([2.0, 3.0, 4.0, 5.0, 6.0]),
            kld_mean=draw.choice([0.01, 0.011, 0.02, 0.04, 0.0]),
            kld_stderr=draw.choice([0.0, 0.0004, 0.002]),
        )
        for i in range(40)
    ]
    entries = results_of(tmp_path, rows).rows(sort="kld_mean", limit=100)
    candidates = [
        Candidate(e.row.label, e.row.size_bytes, e.row.kld_mean or 0, e.row.kld_stderr or 0, 0) for e in entries
    ]
    assert [e.on_front for e in entries] == pareto(candidates)
    expected = [None] + [a.label if tied(a, b) else None for a, b in itertools.pairwise(candidates)]
    assert [e.tied_with for e in entries] == expected


def test_other_models_protocols_and_baselines_are_not_ranked_together(tmp_path: Path) -> None:
    rows = [
        row(label="A", bpw=4.0, kld_mean=0.01),
        row(label="B", bpw=5.0, kld_mean=0.02, base_model="other/model"),
        row(label="C", bpw=5.0, kld_mean=0.02, protocol={"name": "wiki2k"}),
        row(label="D", bpw=5.0, kld_mean=0.02, reference_key="another"),
        row(label="E", bpw=5.0, kld_mean=0.02),
    ]
    found = {e.row.label: e for e in results_of(tmp_path, rows).rows()}
    assert [found[x].on_front for x in "ABCDE"] == [True, True, True, True, False]
    assert len({found[x].group for x in "ABCDE"}) == 4


@pytest.mark.parametrize(("floor", "together"), [(1e-6, True), (0.002, False), (None, False)])
def test_environments_are_ranked_together_below_a_low_noise_floor(
    tmp_path: Path, floor: float | None, together: bool
) -> None:
    rows = [
        row(label="A", bpw=4.0, kld_mean=0.01, environment=CPU, noise_floor=floor),
        row(label="B", bpw=5.0, kld_mean=0.02, environment=GPU, noise_floor=floor),
    ]
    found = {e.row.label: e for e in results_of(tmp_path, rows).rows()}
    assert found["B"].on_front is not together
    assert found["A"].apart is found["B"].apart is not together


def test_imported_figures_are_shown_outside_the_ranking(tmp_path: Path) -> None:
    rows = [
        row(label="A", bpw=4.0, kld_mean=0.01),
        row(label="B", bpw=5.0, kld_mean=0.0101),
        row(label="C", bpw=3.0, kld_mean=0.0001, quality_imported="llama-perplexity"),
        row(label="D", bpw=6.0, kld_mean=0.001, speed_imported="llama-bench"),
    ]
    found = {e.row.label: e for e in results_of(tmp_path, rows).rows()}
    assert [found[x].on_front for x in "ABCD"] == [True, False, False, True]
    assert found["C"].tied_with is None and found["C"].row.quality_imported == "llama-perplexity"
    assert found["A"].tied_with is None, "nothing is compared with what was imported"


def test_unknown_columns_are_left_alone_and_missing_ones_null(tmp_path: Path) -> None:
    path = write(tmp_path / MEASUREMENTS_PATH, [row()], from_the_future=[[1, 2]])
    table = pq.read_table(path).drop_columns(["tg_ts", "measured_at", "flags", "schema_version", "kld_max"])
    pq.write_table(table, path)
    results = Results(LocalSource(path))
    assert results.refresh()
    found = results.rows()[0].row
    assert (found.tg_ts, found.measured_at, found.flags, found.schema_version) == (None, None, "[]", 1)


def test_rows_that_no_version_of_ours_wrote_are_left_out_and_said(tmp_path: Path) -> None:
    path = write(tmp_path / MEASUREMENTS_PATH, [row(label=x) for x in ("A", "B", "C", "D")] + [row(label="A")])
    table = pq.read_table(path)
    table = table.set_column(
        table.schema.get_field_index("state"), "state", pa.array(["measured", "quantum", None, "measured", "measured"])
    )
    table = table.set_column(
        table.schema.get_field_index("kld_mean"), "kld_mean", pa.array([float("nan"), 1, 1, float("inf"), 0.5])
    )
    pq.write_table(table, path)
    results = Results(LocalSource(path))
    results.refresh()
    assert {e.row.label for e in results.rows()} == {"A", "D"}
    assert all(e.row.kld_mean in {None, 0.5} for e in results.rows())
    assert "3 rows left out" in results.status_line()


def test_nothing_published_is_a_state_and_not_a_fault(tmp_path: Path) -> None:
    results = Results(LocalSource(tmp_path / "none"))
    assert results.count() == 0 and results.rows() == [] and results.models() == []
    assert not results.refresh()
    assert results.nothing_yet and "published" in results.status_line()
    assert results.age() is None
    write(tmp_path / "none" / MEASUREMENTS_PATH, [row()])
    assert results.refresh() and results.count() == 1 and not results.nothing_yet


def test_an_empty_dataset_loads(tmp_path: Path) -> None:
    path = tmp_path / "measurements.parquet"
    pq.write_table(pq.read_table(write(path, [row()])).slice(0, 0), path)
    results = Results(LocalSource(tmp_path))
    assert results.refresh() and results.count() == 0 and results.error is None


@pytest.mark.parametrize("broken", [b"", b"PAR1 not really", b"<html>404</html>"])
def test_a_broken_file_keeps_the_last_good_copy(tmp_path: Path, broken: bytes) -> None:
    results = results_of(tmp_path, [row()])
    revision = results.revision
    (tmp_path / MEASUREMENTS_PATH).write_bytes(broken)
    assert not results.refresh()
    assert results.count() == 1 and results.revision == revision
    assert "last good copy" in results.status_line() and "damaged" in results.status_line()
    write(tmp_path / MEASUREMENTS_PATH, [row(), row(label="Q2_K")])
    assert results.refresh() and results.error is None and results.count() == 2


def test_another_schema_is_refused_with_the_columns_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"id": ["a"]}), path)
    with pytest.raises(snapshot.BrokenDatasetError, match="repo_id"):
        snapshot.load(path)


class Flaky:
    """A source whose answers are set from outside."""

    name, hub_url = "owner/results", "https://huggingface.co"

    def __init__(self, path: Path) -> None:
        self.path, self.revision, self.fetched = path, "aaaaaaaaaaaaaaaa", 0
        self.failure: Exception | None = None

    def latest(self) -> object:
        if self.failure:
            raise self.failure
        return snapshot_published(self.revision)

    def fetch(self, published: object) -> Path:
        self.fetched += 1
        return self.path


def snapshot_published(revision: str) -> object:
    from space.sources import Published

    return Published(revision, NOW - timedelta(hours=3))


def test_the_file_is_fetched_once_per_revision_and_survives_the_hub(tmp_path: Path) -> None:
    source = Flaky(write(tmp_path / "m.parquet", [row()]))
    results = Results(source, clock=lambda: NOW)  # type: ignore[arg-type]
    assert results.refresh() and not results.refresh() and source.fetched == 1
    assert results.age() == timedelta(hours=3)
    assert results.status_line() == (
        "1 result · published 3 hours ago · owner/results at aaaaaaaaaaaa · checked just now"
    )
    source.failure = HubUnreachableError("The Hub did not answer.")
    assert not results.refresh() and results.count() == 1
    assert results.status_line().endswith("showing the last good copy: The Hub did not answer.")
    source.failure = RuntimeError("a secret path")
    assert not results.refresh() and "secret" not in results.status_line()
    source.failure, source.revision = None, "b" * 16
    assert results.refresh() and source.fetched == 2 and results.error is None


def test_an_unreachable_hub_is_a_sentence(tmp_path: Path) -> None:
    source = HubSource("owner/results", "http://127.0.0.1:9")
    with pytest.raises(QuantcardError, match="did not answer"):
        source.latest()
    results = Results(source)
    assert not results.refresh() and results.status_line() == "The Hub did not answer."


def test_queries_can_reach_no_file(tmp_path: Path) -> None:
    results = results_of(tmp_path, [row()])
    with pytest.raises(Exception, match=r"disabled|Permission"):
        results._query(f"SELECT * FROM read_parquet('{tmp_path / MEASUREMENTS_PATH}')")


def test_environments_are_described(tmp_path: Path) -> None:
    known = results_of(tmp_path, [row(), row(label="x", environment=GPU), row(label="y")]).environments()
    assert [e["backend"] for e in known.values()] == ["CPU", "CUDA0: NVIDIA L4"]
    odd = results_of(tmp_path, [row(environment_json="[not json")]).environments()
    assert list(odd.values()) == [{}]


def test_the_space_entry_reads_its_environment(tmp_path: Path) -> None:
    hub = source_from({"QUANTCARD_DATASET": "me/results", "HF_ENDPOINT": "http://localhost:1"})
    assert (hub.name, hub.hub_url) == ("me/results", "http://localhost:1")
    assert isinstance(source_from({"QUANTCARD_DATASET": str(tmp_path)}), LocalSource)
    with pytest.raises(SettingsError, match="QUANTCARD_DATASET"):
        source_from({})


def test_many_rows_stay_quick(tmp_path: Path) -> None:
    one = row().model_dump()
    many = pa.Table.from_pylist([one]).take(pa.array([0] * 20_000))
    ids = pa.array([f"{i:016x}" for i in range(20_000)])
    many = many.set_column(many.schema.get_field_index("id"), "id", ids)
    path = tmp_path / "m.parquet"
    pq.write_table(many, path)
    results = Results(LocalSource(path))
    assert results.refresh(), results.error
    started = datetime.now()
    assert len(results.rows(search="bartowski", sort="size", offset=15_000)) == 50
    assert datetime.now() - started < timedelta(seconds=2)
    assert json.loads(next(iter(results.snapshot.protocols.values())))["name"] == "wiki512"
