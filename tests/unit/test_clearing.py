"""What is cleared away between jobs, and what stays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bot.queue.clearing import clear_away
from bot.queue.disk import DOOMED
from bot.queue.places import work_folder
from bot.store import Store
from bot.store.jobs import NewJob
from core.gguf_files import RepoFile, VariantFiles
from core.protocol import WIKITEXT2_TEST, Protocol

#: Keys of as many jobs, the first of which are done, failed, running and waiting.
KEYS = [f"{n:x}" * 64 for n in range(5)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A queue with a job that is done, one that failed, one that runs, one put back and one not begun."""
    with Store(tmp_path / "q.db") as made:
        made.repos.save_repo(
            "o/r", sha="1", last_modified=None, source="follow", note=None, base_model=None, config={}, now=1.0
        )
        file = RepoFile("m.gguf", 1, "a" * 64)
        made.repos.save_variants("o/r", [(VariantFiles("m.gguf", (file,), 1), None, None)], revision="1", now=1.0)
        [variant] = made.repos.variants("o/r")
        protocol = Protocol(corpus=WIKITEXT2_TEST)
        for at, key in enumerate(KEYS):
            made.jobs.add([NewJob(key, "speed", variant.id, None, protocol)], now=1.0 + at)
        ids = [job.id for key in KEYS[:4] if (job := made.leases.claim(key, now=10.0, lease=60.0))]
        made.leases.finish(ids[0], KEYS[0], now=11.0)
        made.leases.fail(ids[1], KEYS[1], error_type="GGUFError", reason="broken", retry="never", now=11.0)
        made.leases.release(ids[3], KEYS[3], reason="stopped", now=11.0)
        yield made


def test_the_work_of_jobs_that_ended_goes_and_that_of_others_stays(store: Store, tmp_path: Path) -> None:
    """Whoever ended them was killed before it could clear away."""
    unknown = work_folder(tmp_path, "f" * 64)
    for folder in [*(work_folder(tmp_path, key) for key in KEYS[:4]), unknown]:
        folder.mkdir(parents=True)
        (folder / "measured.checkpoint").write_text("")
    (tmp_path / "work" / f"{DOOMED}by-one-that-was-killed").mkdir()
    (tmp_path / "work" / "x' OR 1").mkdir()
    assert store.standing.ended_of([path.name for path in (tmp_path / "work").iterdir()]) == {
        work_folder(tmp_path, key).name for key in KEYS[:2]
    }
    clear_away(store, tmp_path)
    left = {path.name for path in (tmp_path / "work").iterdir()}
    assert left == {work_folder(tmp_path, key).name for key in KEYS[2:4]} | {unknown.name, "x' OR 1"}


def test_models_that_nobody_needs_go(store: Store, tmp_path: Path) -> None:
    for name in ("a" * 64, "b" * 64):
        (tmp_path / "models" / name).mkdir(parents=True)
    clear_away(store, tmp_path)
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["a" * 64]
