"""Manners of pulls, keys of figures, bytes of the dataset."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rows import LADDER, row, sha

from bot.publish.manners import DAY, PullView, Standing, decide, held_back, not_replaced_yet
from bot.publish.outcome import note_outcome, refused
from bot.publish.rows import figures_key
from bot.store import Store
from bot.store.results import StoredPull
from core.dataset import DatasetRow
from core.dataset_file import arrow_schema, parquet_bytes
from core.errors import HubError


def pull(status: str, num: int = 1, key: str = "old", foreign: bool = False, mine: bool = True) -> PullView:
    return PullView(num, status, key, foreign, mine)


def stored(status: str, num: int = 1, repo: str = "other") -> StoredPull:
    return StoredPull(f"owner/{repo}", num, "old", status, None, 0.0)


NOW = 1_800_000_000.0
TWO_MERGED = [stored("merged", 1, "c"), stored("merged", 1, "d")]
TWO_CLOSED = [stored("closed", 1, "a"), stored("closed", 1, "b")]


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
        ({"pulls": [pull("open", 4, mine=False)], "consented": True}, "nothing", "left to that one"),
        ({"pulls": [pull("closed", 3)], "consented": True}, "nothing", "left alone"),
        ({"pulls": [pull("closed", 3, mine=False)], "consented": True}, "nothing", "left alone"),
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
        ({"opened": [NOW - 60.0] * 20}, "wait", "20 pulls"),
        ({"opened": [NOW - 60.0] * 19}, "open", "no section"),
        ({"opened": [NOW - 3601.0] * 99}, "open", "no section"),
        ({"pulls": [pull("open", 4)], "opened": [NOW] * 99, "owner_pulls": [stored("open")] * 9}, "update", "Pull 4"),
        # What was merged before and stands on the card no more, but an older section does, is no whim of its owner.
        ({"pulls": [pull("merged", 3, "new")], "card_key": "older", "owner_pulls": [stored("merged")]}, "open", "no"),
        # A pull that we closed to open it anew is nobody's no, and no introduction.
        ({"pulls": [pull("replaced", 3)], "owner_pulls": [stored("replaced")]}, "open", "no section"),
        # Two repos whose last pull was closed mute their owner; a merge elsewhere does not undo that. Who agreed
        # beforehand is muted once more were closed than merged.
        ({"owner_pulls": TWO_CLOSED}, "wait", "closed in 2 repos"),
        ({"owner_pulls": [*TWO_CLOSED, stored("merged", 1, "c")]}, "wait", "closed in 2 repos"),
        ({"owner_pulls": TWO_CLOSED, "consented": True}, "wait", "closed in 2 repos"),
        ({"owner_pulls": [*TWO_CLOSED, stored("merged", 1, "c")], "consented": True}, "wait", "closed in 2 repos"),
        ({"owner_pulls": [*TWO_CLOSED, *TWO_MERGED], "consented": True}, "open", "no section"),
        ({"owner_pulls": TWO_CLOSED, "pulls": [pull("open", 4)]}, "update", "Pull 4"),
        ({"owner_pulls": [*TWO_CLOSED[:1], stored("closed", 2, "a"), stored("merged", 1, "c")]}, "open", "no section"),
        ({"owner_pulls": [*TWO_CLOSED, stored("merged", 2, "a")]}, "open", "no section"),
    ],
)  # fmt: skip
def test_manners(given: dict[str, Any], action: str, says: str) -> None:
    held = {"owner_pulls", "consented", "opened"} & given.keys()
    standing = Standing(
        pulls=given.get("owner_pulls", []),
        consented=given.get("consented", False),
        open_per_owner=5,
        per_hour=20,
        opened=given.get("opened", []),
        now=NOW,
    )
    rest: dict[str, Any] = {"card_key": None, "pulls": []} | {n: v for n, v in given.items() if n not in held}
    found = decide(key="new", standing=standing, **rest)
    assert found.action == action and says in found.reason
    assert found.reason.endswith(".")
    assert (found.until is not None) is (action == "wait")
    assert found.until is None or found.until > NOW
    assert (found.num is not None) is (action == "update" or "Pull" in found.reason or "left to" in found.reason)


@pytest.mark.parametrize(
    ("pulls", "waits"),
    [
        ([(1, "open", 0.9)], "1 day after"),
        ([(1, "open", 1.1)], None),
        ([(1, "replaced", 9.0), (2, "open", 6.9)], "7 days after"),
        ([(1, "replaced", 9.0), (2, "open", 7.1)], None),
        ([(1, "replaced", 99.0), (2, "replaced", 98.0), (3, "open", 29.0)], "30 days after"),
        ([(n, "replaced", 99.0) for n in (1, 2, 3)] + [(4, "open", 98.0)], "3 were replaced before it"),
    ],
)
def test_a_pull_is_replaced_ever_more_seldom(pulls: list[tuple[int, str, float]], waits: str | None) -> None:
    known = [StoredPull("owner/r", num, "k", status, None, NOW - days * DAY) for num, status, days in pulls]
    standing = Standing(known, False, open_per_owner=5, per_hour=20, opened=[], now=NOW)
    found = not_replaced_yet(standing, repo_id="owner/r", num=pulls[-1][0])
    assert (found is None) is (waits is None)
    assert waits is None or (found and waits in found.reason)
    # Another repo's pulls are the limits' matter, and the owner's patience the same as ever.
    closed = [
        *known,
        StoredPull("owner/a", 1, "", "closed", None, 0.0),
        StoredPull("owner/b", 1, "", "closed", None, 0.0),
    ]
    muted = not_replaced_yet(replace(standing, pulls=closed), repo_id="owner/r", num=pulls[-1][0])
    assert muted is not None


def test_what_the_hub_refuses_is_asked_ever_more_seldom(tmp_path: Path) -> None:
    error, now, pauses = HubError("It says 400."), NOW, []
    with Store(tmp_path / "a.db") as store:
        for _ in range(10):
            found = refused(store, "o/r", error, now=now)
            assert found.decision.action == "barred" and found.next_at is not None and "400" in found.decision.reason
            pauses.append(found.next_at - now)
            note_outcome(store, found, sha=None, now=now, touched=0)
            now = found.next_at
    assert pauses == [3600.0 * 2**n for n in range(8)] + [7 * DAY] * 2


def test_a_full_hour_waits_until_the_first_of_it_is_over() -> None:
    opened = [NOW - 3000.0, NOW - 2000.0, NOW - 1000.0]
    found = held_back(Standing([], True, open_per_owner=5, per_hour=2, opened=opened, now=NOW))
    assert found is not None and found.until == NOW - 2000.0 + 3600.0
    none = held_back(Standing([], True, open_per_owner=5, per_hour=0, opened=[], now=NOW))
    assert none is not None and none.action == "wait"


def test_the_key_follows_what_is_told() -> None:
    rows = [row("Q8_0"), row("Q4_K_M")]
    key = figures_key(rows)
    assert len(key) == 12 and int(key, 16) >= 0
    assert figures_key([row("Q8_0"), row("Q4_K_M")]) == key
    for change in (
        {"tg_ts": 1.0},
        {"variant_key": sha("x")},
        {"state": "failed"},
        {"reference_kind": "q8_0"},
        {"quality_json": "{}"},
    ):
        assert figures_key([rows[0], rows[1].model_copy(update=change)]) != key
    assert figures_key([rows[0], rows[1].model_copy(update={"measured_at": None, "label": "x", "reason": "x"})]) == key


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
