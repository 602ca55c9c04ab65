"""Pull mode's files: the same everywhere, every figure in them, only what changed written again."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from golden import compare
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import ENDPOINT, GPU, LADDER, PROTOCOL, flag, row, sha

from bot.intake.repo_config import RepoConfig
from bot.publish import card as cards
from bot.publish.data_block import DataBlock, DataMode, decode
from bot.publish.fragment_files import MAX_FILES, NAMES, due, folder_of, note, refresh
from bot.publish.fragments import Links, badge, current, fragments, section, told
from bot.publish.render import render_section
from bot.publish.repo_figures import RepoFigures, figures_json, repo_figures
from bot.publish.section import section_key
from bot.store import Store
from core.dataset import DatasetRow
from core.verdict import Z95

LINKS = Links(ENDPOINT, "https://github.com/example/quantcard", "https://huggingface.co/spaces/quantcard/leaderboard")
ROWS = [row(label) for label in LADDER]
MIXED = [
    row("F16"),
    row(
        "Q8_0",
        environment=GPU,
        n_files=2,
        first_file="Q8_0/M-00001-of-00002.gguf",
        quality_json=json.dumps({"kind": "quality", "kld": {"mean": 0.1, "p10": 0.01}, "timings": {"wall": 1.0}}),
        speed_json=json.dumps({"kind": "speed", "tests": [{"model_filename": "/home/me/M.gguf", "avg_ts": 10.5}]}),
    ),
    row("Q6_K", quality_imported="llama-perplexity", command=None, kld_max=math.nan, same_top_stderr=0.001),
    row("Q4_K_M", flags=flag("It has no imatrix."), reference_key=sha("other"), reference_variant="Other-F16.gguf"),
    row("Q2_K", without="quality speed", state="failed", reason="INVALID: the logits of chunk 3 hold NaN."),
]
WHERE, KEY = "https://hub:bot/results", "3f1c9a7be210"


def numbers(value: Any) -> Iterator[float]:
    """Every number in a JSON value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def test_figures_as_agreed() -> None:
    compare("quantcard.json", figures_json(MIXED, key=KEY).decode())


def test_figures_hold_every_column_of_a_row() -> None:
    kinds = {name: str(field.annotation) for name, field in DatasetRow.model_fields.items()}
    values: dict[str, float] = {name: 1_000_003.5 + at for at, name in enumerate(kinds) if "float" in kinds[name]}
    values |= {name: 2_000_003 + at for at, name in enumerate(kinds) if "int" in kinds[name]}
    for ours in ("schema_version", "n_files"):
        del values[ours]
    there = set(numbers(json.loads(figures_json([row("Q4_K_M", **values)], key=KEY))))
    assert len(values) >= 30 and {name for name, value in values.items() if value not in there} == set()


def test_what_a_script_goes_by() -> None:
    found = json.loads(figures_json(MIXED, key=KEY))
    assert (found["schema"], found["version"], found["repo"]) == ("quantcard.repo", 1, "owner/Model-GGUF")
    assert found["key"] == KEY and found["measured_at"] == "2026-11-20T12:00:00+00:00"
    by_label = {one["label"]: one for one in found["variants"]}
    split, imported, other, failed = (by_label[label] for label in ("Q8_0", "Q6_K", "Q4_K_M", "Q2_K"))
    assert found["protocols"][split["protocol"]] == PROTOCOL.model_dump(mode="json")
    assert found["references"][split["reference"]]["file"] == "Model-F16.gguf"
    assert found["references"][other["reference"]]["file"] == "Other-F16.gguf"
    assert found["environments"][split["environment"]] == GPU
    assert split["sha256"] is None and imported["sha256"] == imported["key"] == sha("file", "Q6_K")
    assert split["speed"]["details"] == {"tests": [{"avg_ts": 10.5}]}, "no path of a machine"
    assert split["quality"]["details"] == {"kld": {"mean": 0.1, "p10": 0.01}}
    assert imported["quality"]["imported"] == "llama-perplexity" and not imported["ranked"]
    assert imported["quality"]["kld"]["max"] is None and imported["closeness"] is None
    low, high = imported["quality"]["same_top"]["ci95"]
    assert math.isclose(high - low, 2 * Z95 * 0.001)
    assert other["flags"] == [{"code": "no-imatrix", "detail": "It has no imatrix."}]
    assert (failed["state"], failed["quality"], failed["speed"]) == ("failed", None, None) and "NaN" in failed["reason"]
    assert found["verdict"]["picks"][0]["label"] == "Q8_0" and "**" not in found["verdict"]["sentence"]


def test_figures_read_back_as_what_they_were() -> None:
    for rows in (MIXED, ROWS, [row("Q8_0", without="quality speed", state="waiting")]):
        assert RepoFigures.model_validate_json(figures_json(rows, key=KEY)) == repo_figures(rows, key=KEY)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.text(max_size=60), min_size=3, max_size=3),
    st.lists(st.one_of(st.none(), st.floats()), min_size=4, max_size=4),
)
def test_whatever_the_rows_hold_it_is_json(texts: list[str], figures: list[float | None]) -> None:
    label, name, reason = texts
    ppl, stderr, bpw, floor = figures
    rows = [
        row("Q8_0"),
        row("Q4_K_M", label=label, variant=name + ".gguf", ppl=ppl, ppl_stderr=stderr, bpw=bpw, noise_floor=floor),
        row("Q2_K", without="quality speed", state="failed", reason=reason),
    ]
    text = figures_json(rows, key=KEY).decode("ascii")
    assert all(math.isfinite(number) for number in numbers(json.loads(text, parse_constant=pytest.fail)))


@pytest.mark.parametrize("data", ["comment", "file", "none"])
def test_the_section_is_what_the_bot_would_put_on_the_card(data: DataMode) -> None:
    text = section(ROWS, LINKS, config={"data": data})
    key = section_key(ROWS, RepoConfig(data=data))
    found = cards.find(text)
    assert found is not None and (found.start, found.end, found.key) == (0, len(text), key)
    body = render_section(ROWS, endpoint=ENDPOINT, project_url=LINKS.project_url, leaderboard_url=LINKS.leaderboard_url)
    bare = section(ROWS, LINKS, config={"data": data}, markers=False)
    assert bare.startswith(body.strip()) and cards.find(bare) is None
    assert (decode(text) is not None) == (decode(bare) is not None) == (data == "comment")
    card = "---\na: b\n---\n# T\n\n"
    included = card + text + "\nmore\n"
    again = cards.find(included)
    assert again is not None and again.key == key, "a script that includes it makes a card that the bot knows"


def test_what_is_told_and_current() -> None:
    waiting, stale = row("Q8_0", without="quality speed", state="waiting"), row("Q4_K_M", state="stale")
    assert not told([waiting]) and told([waiting, row("Q6_K", without="quality")])
    assert current([waiting, stale], {}) == [waiting]
    assert current([waiting], {"protocols": ["other"]}) == []
    assert b"not measured yet" in badge([]) and b"KLD 0.0086" in badge(ROWS, "Q4_K_M")


@pytest.fixture
def export(tmp_path: Path) -> Path:
    return tmp_path / "export"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "bot.db") as found:
        yield found


def know(store: Store, *repo_ids: str, **config: Any) -> None:
    for repo_id in repo_ids:
        store.repos.save_repo(
            repo_id, sha=None, last_modified=None, source="follow", note=None, base_model=None, config=config, now=0.0
        )


def of(repo_id: str, **changes: Any) -> DatasetRow:
    return row("Q8_0", repo_id=repo_id, owner=repo_id.split("/")[0], **changes)


def stamps(export: Path) -> dict[str, int]:
    return {str(p.relative_to(export)): p.stat().st_mtime_ns for p in export.rglob("*") if p.is_file()}


def test_only_what_changed_is_written_and_uploaded(store: Store, export: Path) -> None:
    know(store, "a/one", "a/two")
    rows = [of("a/one"), of("a/two")]
    paths = refresh(store, rows, LINKS, export=export)
    assert paths == [f"cards/a/{name}/{file}" for name in ("one", "two") for file in NAMES]
    first = due(store, WHERE, paths, export=export)
    assert first == {path: (export / path).read_bytes() for path in paths}
    assert first["cards/a/one/section.md"] == fragments([of("a/one")], LINKS, config={})["section.md"]
    note(store, WHERE, first)
    assert store.files.n_due(WHERE) == 0

    before = stamps(export)
    assert refresh(store, rows, LINKS, export=export) == paths and stamps(export) == before
    assert due(store, WHERE, paths, export=export) == {}

    rows[1] = of("a/two", kld_mean=0.0005)
    refresh(store, rows, LINKS, export=export)
    assert {path for path, at in stamps(export).items() if before.get(path) != at} == {
        "cards/a/two/section.md", "cards/a/two/quantcard.json",
    }, "its badge says the same"  # fmt: skip
    assert list(due(store, WHERE, paths, export=export)) == ["cards/a/two/quantcard.json", "cards/a/two/section.md"]
    assert store.files.n_due(WHERE) == 2


def test_other_links_or_wishes_make_them_anew(store: Store, export: Path) -> None:
    know(store, "a/one")
    paths = refresh(store, [of("a/one")], LINKS, export=export)
    path = export / paths[0]
    text = path.read_text()
    refresh(store, [of("a/one")], Links(ENDPOINT), export=export)
    assert LINKS.leaderboard_url in text and LINKS.leaderboard_url not in path.read_text()
    know(store, "a/one", data="none")
    refresh(store, [of("a/one")], Links(ENDPOINT), export=export)
    assert "quantcard:data" in text and "quantcard:data" not in path.read_text()


def test_a_lost_or_changed_local_file_is_made_again(store: Store, export: Path) -> None:
    know(store, "a/one")
    rows = [of("a/one")]
    paths = refresh(store, rows, LINKS, export=export)
    whole = due(store, WHERE, paths, export=export)
    (export / paths[0]).unlink()
    (export / paths[1]).write_text("somebody else's")
    refresh(store, rows, LINKS, export=export)
    assert due(store, WHERE, paths, export=export) == whole
    (export / paths[2]).write_text("somebody else's")
    assert paths[2] not in due(store, WHERE, paths, export=export)
    refresh(store, rows, LINKS, export=export)
    assert due(store, WHERE, paths, export=export) == whole


def test_a_commit_is_bounded_and_new_files_go_first(store: Store, export: Path) -> None:
    ids = [f"a/m{n:02}" for n in range(4)]
    know(store, *ids)
    rows = [of(repo_id) for repo_id in ids]
    paths = refresh(store, rows, LINKS, export=export)
    done: dict[str, bytes] = {}
    while some := due(store, WHERE, paths, export=export, most=5):
        assert len(some) <= 5 and not some.keys() & done.keys()
        note(store, WHERE, some)
        done |= some
    assert sorted(done) == sorted(paths) and MAX_FILES >= 100
    know(store, "b/new")
    rows = [of(repo_id, kld_mean=0.0005) for repo_id in ids] + [of("b/new")]
    paths = refresh(store, rows, LINKS, export=export)
    assert all(path.startswith("cards/b/new/") for path in due(store, WHERE, paths, export=export, most=3))


def test_what_is_not_for_others_or_not_measured_is_not_told(store: Store, export: Path) -> None:
    know(store, "a/live", "a/private", "a/gone", "a/waits", "a/stale")
    for state in ("private", "gone"):
        store.watching.set_state(f"a/{state}", state, note=None, now=0.0)  # type: ignore[arg-type]
    rows = [of("a/live"), of("a/private"), of("a/gone"), of("a/unknown"), of("a/stale", state="stale")]
    rows.append(row("Q8_0", repo_id="a/waits", owner="a", without="quality speed", state="waiting"))
    paths = refresh(store, rows, LINKS, export=export)
    assert {path.split("/")[2] for path in paths} == {"live"}
    # Gone since: what was published stays, and nothing of it is uploaded any more.
    store.watching.set_state("a/live", "private", note=None, now=0.0)
    assert refresh(store, rows, LINKS, export=export) == [] and (export / paths[0]).is_file()
    assert store.files.n_due(WHERE) == 0


def test_of_two_names_in_other_case_the_last_measured_counts(store: Store, export: Path) -> None:
    know(store, "Own/Model", "own/model")
    later = datetime(2026, 11, 20, tzinfo=UTC) + timedelta(days=9)
    paths = refresh(store, [of("own/model", measured_at=later), of("Own/Model")], LINKS, export=export)
    assert {path.rsplit("/", 1)[0] for path in paths} == {"cards/own/model"}


@pytest.mark.parametrize("name", ["../x", "a/../../b", "a", "a/b/c", "/a/b", "a/.b", "a/b\n", "a\\b/c", ""])
def test_no_name_leads_out_of_the_folder(name: str) -> None:
    with pytest.raises(ValueError, match="no repo"):
        folder_of(name)


def names_of(schema: dict[str, Any]) -> set[str]:
    """The names of everything in a JSON schema."""
    models = [schema, *schema.get("$defs", {}).values()]
    return {name for model in models for name in model.get("properties", {})}


@pytest.mark.parametrize("model", [RepoFigures, DataBlock])
def test_every_name_is_documented(model: type[RepoFigures | DataBlock]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "pull-mode.md").read_text(encoding="utf-8")
    assert {name for name in names_of(model.model_json_schema()) if f"`{name}`" not in page} == set()
