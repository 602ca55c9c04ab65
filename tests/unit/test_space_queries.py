"""Every view's question: typed, paged, bounded, and nothing that an address or a caller may hold breaks it."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.dataset import MEASUREMENTS_PATH, DatasetRow
from core.dataset_file import parquet_bytes, raw_path, tokens_path
from core.errors import InputError
from core.picks import Wish
from space import downloads
from space.data import LocalSource, Results
from space.filters import MODEL_SORTS, SORTS, Filters
from space.queries import MAX_PER_PAGE, Queries

sys.path.insert(0, str(Path(__file__).parents[1] / "acceptance"))
from sample_rows import CPU, GPU, MODEL, hostile, row, sample

NOW = datetime(2026, 3, 5, tzinfo=UTC)
HOSTILE = ["'; DROP TABLE measurements; --", "%", "\\", "?", "$1", '"', "a" * 10_000, "\x00", "🤗", "\ud800", "<b>"]


def queries_of(folder: Path, rows: list[DatasetRow]) -> Queries:
    path = folder / MEASUREMENTS_PATH
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(parquet_bytes(rows))
    results = Results(LocalSource(folder))
    results.refresh()
    assert results.error is None, results.error
    return Queries(results)


@pytest.fixture(scope="module")
def queries(tmp_path_factory: pytest.TempPathFactory) -> Queries:
    return queries_of(tmp_path_factory.mktemp("published"), [*sample(now=NOW), hostile()])


def test_models_with_their_best_files(queries: Queries) -> None:
    page = queries.models()
    assert [(one.model, one.n_variants) for one in page.rows[:2]] == [(MODEL, 26), ("google/gemma-3-1b-it", 2)]
    first = page.rows[0]
    assert (first.n_uploaders, first.n_repos, first.n_failed, first.n_measured) == (3, 3, 1, 25)
    assert (first.closest_owner, first.closest_label) == ("unsloth", "Q8_0")
    assert (first.near_owner, first.near_label) == ("bartowski", "Q5_K_M")
    assert [one.model for one in queries.models("gemma").rows] == ["google/gemma-3-1b-it"]
    for sort in [*MODEL_SORTS, *(f"-{name}" for name in MODEL_SORTS), "nonsense"]:
        assert queries.models(sort=sort).total == 3


def test_a_model_page_has_all_uploaders(queries: Queries) -> None:
    page = queries.model(MODEL)
    assert page is not None and page.variants.total == 26
    assert {one.owner for one in page.variants.rows} == {"bartowski", "unsloth", "mradermacher"}
    assert [one.key for one in page.facets.owners] == ["bartowski", "mradermacher", "unsloth"]
    klds = [one.kld_mean.value for one in page.variants.rows if one.kld_mean]
    assert klds == sorted(klds) and page.variants.rows[-1].state == "failed"
    tied = [one for one in page.variants.rows if one.tied_with]
    assert tied and all(one.tied_id for one in tied)
    narrowed = queries.model(MODEL, Filters(owner="unsloth"), sort="-size", per_page=3)
    assert narrowed and narrowed.variants.total == 8 and narrowed.variants.pages == 3
    assert narrowed.model == page.model, "the model stays what it is"
    assert queries.model("no/such") is None


def test_an_uploader(queries: Queries) -> None:
    page = queries.owner("bartowski")
    assert page and (page.owner.n_variants, page.owner.n_models, page.owner.n_failed) == (10, 1, 1)
    assert page.owner.on_front > 0 and page.variants.total == 10
    assert queries.owner("nobody") is None


def test_filters(queries: Queries) -> None:
    def n(**filters: object) -> int:
        return queries.variants(Filters.of(filters)).total

    everything = n(include_stale=True)
    assert n() == everything - 1 and n(state="stale") == 1
    assert n(show="failed") == 2 and n(show="disputed") == 0
    assert n(label="Q4_K_M") == 4 and n(owner="unsloth", label="Q4_K_M") == 1
    assert n(flag="imatrix-overlap") == 1 and n(flag="imatrix") == 0
    assert n(max_bytes=10**9, min_bytes=9 * 10**8) + n(max_bytes=9 * 10**8 - 1) + n(min_bytes=10**9 + 1) == n()
    assert 0 < n(max_kld=0.01) < n(show="measured") < n()
    assert 0 < n(show="front") < n(show="measured")


def test_pages_stay_within_what_is_there(queries: Queries) -> None:
    for page, per_page in ((-3, -3), (10**9, 10**9), (0, 0)):
        found = queries.variants(page=page, per_page=per_page)
        assert 1 <= found.page <= found.pages and 1 <= found.per_page <= MAX_PER_PAGE and found.rows
    seen = [one.id for page in range(1, 4) for one in queries.variants(page=page, per_page=10).rows]
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:8]))
def test_text_is_text(queries: Queries, text: str) -> None:
    before = queries.status().n_rows
    short = text.encode("utf-8", "replace").decode()[:300]
    chosen = Filters(model=short, owner=short, protocol=short, flag=short, search=short, label=short)
    assert queries.variants(chosen, sort=text).total == 0
    assert queries.models(short, text).total in (0, 1), "one model is named with tags"
    assert queries.model(short) is None and queries.owner(short) is None and queries.measurement(short) is None
    assert queries.pick(short, Wish(10**10)) is None
    assert isinstance(queries.search(short, 5), list)
    assert queries.status().n_rows == before


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from([*Filters.model_fields, "other"]), st.text(max_size=400), max_size=6))
def test_any_address_gives_filters_that_can_be_asked(queries: Queries, query: dict[str, str]) -> None:
    chosen = Filters.from_query({k: v.encode("utf-8", "replace").decode() for k, v in query.items()})
    assert queries.variants(chosen, per_page=1).total >= 0
    assert Filters.from_query(chosen.to_query()) == chosen


@pytest.mark.parametrize(
    "wrong", [{"max_kld": float("nan")}, {"min_bytes": -1}, {"x": 1}, {"owner": "a" * 301}, {"show": "x"}]
)
def test_filters_that_cannot_be_are_a_sentence(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match="The parameter"):
        Filters.of(wrong)


def test_a_measurement_has_everything(tmp_path: Path) -> None:
    sha = "ab" + "1" * 62
    one = row(raw_path=raw_path(sha), tokens_path=tokens_path(sha), flags='[{"code":"x","detail":"y"}]')
    queries = queries_of(tmp_path, [one, row(label="Q2_K", command="other")])
    found = queries.measurement(one.id)
    assert found and found.quality == json.loads(one.quality_json or "")
    assert (found.protocol, found.environment) == (json.loads(one.protocol_json), CPU)
    assert found.command == one.command and found.variant.has_tokens and found.variant.flags[0].code == "x"
    assert found.raw_url is None, "a folder has no address"
    assert found.row["ppl"] == one.ppl and "quality_json" not in found.row


def test_long_strings_are_shortened_and_nothing_is_larger_than_a_view_may_be(tmp_path: Path) -> None:
    long = "<i>" + "x" * 10_000
    rows = [
        row(id=f"{i:016x}", variant=long, label=long, reason=long, disputed=long, base_model="m/odel", repo_id="a/b",
            kld_mean=0.01 * (i + 1))
        for i in range(300)
    ]  # fmt: skip
    queries = queries_of(tmp_path, rows)
    for view in (queries.models(), queries.model("m/odel"), queries.variants(), queries.measurement(rows[0].id)):
        assert view is not None and len(view.model_dump_json()) < 200_000
    assert sum(len(one.model_dump_json()) for one in queries.points()) < 200_000


def test_search_finds_models_before_files(queries: Queries) -> None:
    hits = queries.search("qwen")
    assert hits[0].kind == "model" and hits[-1].kind == "variant"
    assert queries.search("q4_k_m unsloth")[0].kind == "variant"
    assert queries.search("   ") == [] and len(queries.search("q", 7)) == 7


def test_points_name_their_group(queries: Queries) -> None:
    points = queries.points(Filters(model=MODEL))
    assert len({one.group for one in points}) == 1 and sum(one.on_front for one in points) >= 3
    assert not any(one.name == "BF16" for one in points) and queries.points(limit=3)[0].on_front
    speed = [one for one in points if one.on_speed_front]
    for one in speed:
        assert not any((o.tg or 0) >= (one.tg or 0) and o.kld < one.kld for o in points)


def test_a_pick_goes_by_hardware(tmp_path: Path) -> None:
    rows = [
        row(label="Q4_K_M", bpw=4.8, kld_mean=0.02, tg_ts=20.0, memory_8k_bytes=3 * 10**9, environment=CPU),
        row(label="Q3_K_M", bpw=3.9, kld_mean=0.04, tg_ts=90.0, memory_8k_bytes=2 * 10**9, environment=GPU,
            noise_floor=1e-9),
    ]  # fmt: skip
    queries = queries_of(tmp_path, [one.model_copy(update={"noise_floor": 1e-9}) for one in rows])
    gpu = queries.pick(MODEL, Wish(10**10, hardware="gpu", task="speed"))
    cpu = queries.pick(MODEL, Wish(10**10, hardware="cpu", task="speed"))
    assert gpu and gpu.best and gpu.best.label == "Q3_K_M" and cpu and cpu.best and cpu.best.label == "Q4_K_M"
    none = queries.pick(MODEL, Wish(10**9))
    assert none and none.best is None and "fits" in none.because


def test_retracted_figures_stay_visible_and_rank_nowhere(tmp_path: Path) -> None:
    gone = row(label="Q8_0", kld_mean=0.0001, state="retracted", reason="It was measured with a broken build.")
    queries = queries_of(tmp_path, [gone, row(label="Q4_K_M")])
    shown = queries.variant(gone.id)
    assert shown and shown.reason == gone.reason and shown.kld_mean and not shown.ranked and not shown.on_front
    assert queries.models().rows[0].closest_label == "Q4_K_M"
    assert queries.variants(Filters(show="failed")).total == 1


@pytest.mark.parametrize("n", [0, 1])
def test_with_nothing_or_one(tmp_path: Path, n: int) -> None:
    queries = queries_of(tmp_path, [row()][:n])
    assert queries.models().total == queries.variants().total == queries.status().n_rows == n
    assert len(queries.points()) == n and len(queries.facets().owners) == n
    for sort in [*SORTS, *(f"-{name}" for name in SORTS)]:
        assert len(queries.variants(sort=sort).rows) == n


def test_a_download_holds_the_table_and_no_formula(tmp_path: Path) -> None:
    queries = queries_of(tmp_path, [row(label="=HYPERLINK(1)", variant="+x"), row(label="Q2_K")])
    table = downloads.write(queries.results, Filters(), "csv", folder=tmp_path).read_text()
    assert table.count("\n") == 3 and '"\'=HYPERLINK(1)"' in table and '"\'+x"' in table and "quality_json" not in table
    told = json.loads(downloads.write(queries.results, Filters(label="Q2_K"), "json", folder=tmp_path).read_text())
    assert [one["label"] for one in told] == ["Q2_K"]
    assert downloads.table(queries.results, Filters(), limit=1).num_rows == 1
    with pytest.raises(InputError, match="csv, json, parquet"):
        downloads.write(queries.results, Filters(), "exe", folder=tmp_path)


def test_a_bad_revision_is_not_taken(tmp_path: Path) -> None:
    queries = queries_of(tmp_path, [row()])
    path = tmp_path / MEASUREMENTS_PATH
    good = parquet_bytes([row(), row(label="Q2_K")])
    damaged = bytearray(good)
    damaged[200] ^= 0xFF
    for bad in (good[:-9], good[: len(good) // 2], bytes(damaged), b"", b"<html>not found</html>"):
        path.unlink()
        path.write_bytes(bad)
        assert not queries.results.refresh() and queries.status().n_rows == 1 and queries.status().error
        assert queries.measurement(queries.variants().rows[0].id) is not None, "the open file of before is still read"
    path.unlink()
    path.write_bytes(good)
    assert queries.results.refresh() and queries.status().n_rows == 2 and queries.status().error is None
