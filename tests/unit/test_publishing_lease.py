"""The lease of publishing, when whoever has it was killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from bot.store import Store

HOLDERS = {"gone": False, "living": True, "elsewhere": None}


@pytest.mark.parametrize(("holder", "seconds", "taken"), [
    ("gone", 9.0, False),  # What it had sent may still arrive.
    ("gone", 11.0, True),
    ("living", 170.0, False),
    ("elsewhere", 170.0, False),
    ("elsewhere", 181.0, True),
])  # fmt: skip
def test_the_lease_of_a_process_that_ended_ends_with_it(
    tmp_path: Path, holder: str, seconds: float, taken: bool
) -> None:
    with Store(tmp_path / "q.db") as store:
        assert store.results.take_lease("publish", holder, now=1000.0, lease=180.0)
        alive = HOLDERS.get
        assert taken is store.results.take_lease("publish", "me", now=1000.0 + seconds, lease=180.0, alive=alive)
        assert taken is not store.results.keep_lease("publish", holder, now=1000.0 + seconds, lease=180.0)
