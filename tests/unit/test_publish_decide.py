"""Manners of pulls, states of rows, bytes of the dataset."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any

import pyarrow.parquet as pq
import pytest
from rows import LADDER, row, sha

from bot.intake.references import Choice
from bot.publish.export import arrow_schema, parquet_bytes
from bot.publish.pulls import PullView, decide
from bot.publish.rows import _state, figures_key
from bot.store.jobs import Job
from bot.store.repos import Variant
from bot.store.results import StoredPull
from core.audit import inspect
from core.dataset import DatasetRow
from core.gguf_files import RepoFile
from core.gguf_header import GGUFHeader


def pull(status: str, num: int = 1, key: str = "old", foreign: bool = False) -> PullView:
    return PullView(num, status, key, foreign)


def stored(status: str, num: int = 1) -> StoredPull:
    return StoredPull("owner/other", num, "old", status, None, 0.0)


@pytest.mark.parametrize(
    ("given", "action", "says"),
    [
        ({}, "open", "no section with these figures"),
        ({"card_key": "new"}, "nothing", "has these figures"),
        ({"card_key": "new", "pulls": [pull("open")]}, "nothing", "has these figures"),
        ({"card_key": "old", "consented": True}, "open", "no section"),
        ({"pulls": [pull("open", 4)]}, "update", "Pull 4 is open"),
        ({"pulls": [pull("draft", 4)]}, "update", "Pull 4 is open"),
        ({"pulls": [pull("closed", 3), pull("open", 4)]}, "update", "Pull 4"),
        ({"pulls": [pull("open", 4, foreign=True)], "consented": True}, "nothing", "left to them"),
        ({"pulls": [pull("closed", 3)], "consented": True}, "nothing", "left alone"),
        ({"pulls": [pull("merged", 2), pull("closed", 3)]}, "nothing", "Pull 3 was closed"),
        ({"pulls": [pull("closed", 2), pull("merged", 3)], "owner_pulls": [stored("merged")]}, "open", "no section"),
        ({"pulls": [pull("merged", 3, "new")], "owner_pulls": [stored("merged")]}, "nothing", "taken off"),
        ({"owner_pulls": [stored("open")]}, "wait", "introduction"),
        ({"owner_pulls": [stored("closed")]}, "wait", "introduction"),
        ({"owner_pulls": [stored("open")], "consented": True}, "open", "no section"),
        ({"owner_pulls": [stored("open"), stored("merged", 2)]}, "open", "no section"),
        ({"owner_pulls": [stored("merged"), *[stored("open", n) for n in range(2, 7)]]}, "wait", "5 open pulls"),
        ({"owner_pulls": [stored("draft", n) for n in range(5)], "consented": True}, "wait", "5 open pulls"),
        ({"owner_pulls": [stored("draft", n) for n in range(4)], "consented": True}, "open", "no section"),
        ({"opened_last_hour": 20}, "wait", "20 pulls"),
        ({"opened_last_hour": 19}, "open", "no section"),
        ({"pulls": [pull("open", 4)], "opened_last_hour": 99, "owner_pulls": [stored("open")] * 9}, "update", "Pull 4"),
    ],
)  # fmt: skip
def test_manners(given: dict[str, Any], action: str, says: str) -> None:
    known: dict[str, Any] = {
        "key": "new", "card_key": None, "pulls": [], "owner_pulls": [], "consented": False, "open_per_owner": 5,
        "per_hour": 20, "opened_last_hour": 0,
    }  # fmt: skip
    found = decide(**(known | given))
    assert found.action == action and says in found.reason
    assert found.reason.endswith(".")
    assert (found.num is not None) is (action == "update" or "Pull" in found.reason or "left to" in found.reason)


INSPECTION = inspect([GGUFHeader(3, {}, (), 0)], size_bytes=1, name="M.gguf")


def variant(note: str | None = None, inspected: bool = True) -> Variant:
    return Variant(
        1,
        "o/r",
        "M.gguf",
        "k",
        "M",
        (RepoFile("M.gguf", 1, "k"),),
        1,
        "c",
        INSPECTION if inspected else None,
        note,
        "current",
    )


def job(kind: str, state: str, error: str = "It died.") -> Job:
    fields = dict.fromkeys(Job.__dataclass_fields__, None) | {"kind": kind, "state": state, "error": error}
    return Job(**fields)


REFERENCE = Choice(variant(), "F16")
NONE = Choice(None, "No reference.")


@pytest.mark.parametrize(
    ("given", "choice", "quality", "speed", "jobs", "expected"),
    [
        (variant("1 of 2 shards are there."), REFERENCE, False, False, [], ("failed", "1 of 2 shards are there.")),
        (variant("It is damaged.", inspected=False), REFERENCE, False, False, [], ("failed", "It is damaged.")),
        (variant(), NONE, False, False, [], ("waiting", "No reference.")),
        (variant(), NONE, False, True, [], ("measured", "No reference.")),
        (variant(), REFERENCE, False, False, [], ("waiting", None)),
        (variant(), REFERENCE, False, True, [], ("waiting", None)),
        (variant(), REFERENCE, False, False, [job("quality", "queued")], ("waiting", None)),
        (variant(), REFERENCE, False, True, [job("quality", "dead")], ("failed", "It died.")),
        (variant(), REFERENCE, True, False, [], ("measured", None)),
        (variant(), REFERENCE, True, False, [job("speed", "dead")], ("measured", "No speed: It died.")),
        (variant(), REFERENCE, True, True, [job("speed", "dead")], ("measured", None)),
    ],
)
def test_states(
    given: Variant, choice: Choice, quality: bool, speed: bool, jobs: list[Job], expected: tuple[str, str | None]
) -> None:
    by_kind = {one.kind: one for one in jobs}
    assert _state(given, choice, has_quality=quality, has_speed=speed, jobs=by_kind) == expected


def test_an_imported_quality_says_why_it_was_not_measured_here() -> None:
    for state, reason in (("dead", "Not measured here: It died."), ("todo", None)):
        jobs = {"quality": job("quality", state)}
        found = _state(variant(), REFERENCE, has_quality=True, has_speed=True, jobs=jobs, imported=True)
        assert found == ("measured", reason)


def test_the_key_follows_what_is_told() -> None:
    rows = [row("Q8_0"), row("Q4_K_M")]
    key = figures_key(rows)
    assert len(key) == 12 and int(key, 16) >= 0
    assert figures_key([row("Q8_0"), row("Q4_K_M")]) == key
    for change in (
        {"tg_ts": 1.0},
        {"variant_key": sha("x")},
        {"state": "failed"},
        {"reason": "x"},
        {"quality_json": "{}"},
    ):
        assert figures_key([rows[0], rows[1].model_copy(update=change)]) != key
    assert figures_key([rows[0], rows[1].model_copy(update={"measured_at": None, "label": "x"})]) == key


def read(data: bytes) -> list[DatasetRow]:
    return [DatasetRow(**fields) for fields in pq.read_table(io.BytesIO(data)).to_pylist()]


ROWS = [
    *[row(label) for label in LADDER],
    row("Q4_K_M", variant="Bad.gguf", without="quality speed", state="failed", reason="ä\u2028|", flags='[{"a":1}]'),
    row("Q4_K_M", repo_id="another/Repo", n_params=1 << 62, measured_at=datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)),
]


def test_rows_come_back_from_parquet() -> None:
    assert read(parquet_bytes(ROWS)) == sorted(ROWS, key=lambda r: (r.repo_id, r.variant, r.id))


def test_the_same_rows_are_the_same_bytes() -> None:
    assert parquet_bytes(ROWS) == parquet_bytes(ROWS[::-1])
    assert parquet_bytes(ROWS) != parquet_bytes(ROWS[1:])


def test_no_rows_keep_the_schema() -> None:
    table = pq.read_table(io.BytesIO(parquet_bytes([])))
    assert table.num_rows == 0 and table.schema.equals(arrow_schema())
    assert table.schema.names == list(DatasetRow.model_fields)


def test_every_type_is_meant() -> None:
    kinds = {field.name: str(field.type) for field in arrow_schema()}
    assert (kinds["state"], kinds["is_reference"], kinds["size_bytes"]) == ("string", "bool", "int64")
    assert (kinds["kld_mean"], kinds["measured_at"]) == ("double", "timestamp[us, tz=UTC]")
    assert set(kinds.values()) == {"string", "bool", "int64", "double", "timestamp[us, tz=UTC]"}
