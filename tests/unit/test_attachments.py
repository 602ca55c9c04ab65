"""What stands beside the rows: named by its content, put there once, uploaded once, a bounded part at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from rows import PROTOCOL, row

from bot.publish import attachments, fragment_files
from bot.publish.attachments import attach, raw_json
from bot.store import Store
from core.dataset import DatasetRow
from core.dataset_file import sha256_in, tokens_path

WHERE = "hub:me/results"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "bot.db") as found:
        yield found


def measured(data: Path, number: int, content: bytes) -> DatasetRow:
    """A row whose per-token file lies where the worker puts it."""
    key = hashlib.sha256(f"file {number}".encode()).hexdigest()
    path = data / "tokens" / f"{key[:16]}-{PROTOCOL.fingerprint[:16]}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return row(
        "Q8_0", id=f"{number:016x}", variant_key=key, protocol_fingerprint=PROTOCOL.fingerprint,
        tokens_path=tokens_path(hashlib.sha256(content).hexdigest()), quality_json=f'{{"n":{number}}}',
    )  # fmt: skip


def test_files_are_named_by_their_bytes_and_put_there_once(store: Store, tmp_path: Path) -> None:
    export = tmp_path / "export"
    rows, paths = attach(store, [measured(tmp_path, 1, b"tokens")], data=tmp_path, export=export)
    assert sorted(paths) == sorted([rows[0].raw_path, rows[0].tokens_path])
    for path in paths:
        assert hashlib.sha256((export / path).read_bytes()).hexdigest() == sha256_in(path)
    raw = json.loads((export / str(rows[0].raw_path)).read_bytes())
    assert raw["quality"] == {"n": 1} and raw["speed"] is None and raw["version"] == 1
    assert raw["protocol"] == PROTOCOL.model_dump(mode="json")

    stamps = {path: (export / path).stat().st_mtime_ns for path in paths}
    again, _ = attach(store, rows, data=tmp_path, export=export)
    assert again == rows and {path: (export / path).stat().st_mtime_ns for path in paths} == stamps


def test_what_another_file_took_the_place_of_is_not_published(store: Store, tmp_path: Path) -> None:
    one = measured(tmp_path, 1, b"tokens")
    next((tmp_path / "tokens").glob("*")).write_bytes(b"other bytes")
    rows, paths = attach(store, [one], data=tmp_path, export=tmp_path / "export")
    assert rows[0].tokens_path is None and rows[0].raw_path in paths and rows[0].kld_mean == one.kld_mean
    # It was published before: then the dataset has it, whatever became of ours.
    rows, _ = attach(store, [one], data=tmp_path, export=tmp_path / "export", published={one.tokens_path})
    assert rows[0].tokens_path == one.tokens_path


def test_a_file_that_is_too_large_stays_at_home(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachments, "MAX_BYTES", 5)
    rows, _ = attach(store, [measured(tmp_path, 1, b"tokens")], data=tmp_path, export=tmp_path / "export")
    assert rows[0].tokens_path is None


def test_a_commit_takes_a_part_and_the_next_the_rest(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = tmp_path / "export"
    given = [measured(tmp_path, number, b"tokens %d" % number) for number in range(5)]
    _, paths = attach(store, given, data=tmp_path, export=export)
    assert store.files.n_due(WHERE) == 10
    monkeypatch.setattr(fragment_files, "MAX_BYTES", 8)
    uploaded: list[str] = []
    while part := fragment_files.due(store, WHERE, paths, export=export, most=3):
        assert len(part) <= 3 and sum(map(len, part.values())) <= 8 + max(map(len, part.values()))
        uploaded += part
        fragment_files.note(store, WHERE, part)
    assert sorted(uploaded) == sorted(paths) and store.files.n_due(WHERE) == 0


def test_fragments_and_attachments_do_not_forget_each_other(store: Store, tmp_path: Path) -> None:
    export = tmp_path / "export"
    _, paths = attach(store, [measured(tmp_path, 1, b"tokens")], data=tmp_path, export=export)
    fragment_files.refresh(store, [], fragment_files.Links("https://huggingface.co"), export=export)
    assert set(store.files.known("")) == set(paths)
    attach(store, [], data=tmp_path, export=export)
    assert not store.files.known("") and not any((export / path).exists() for path in paths)


def test_without_results_there_is_nothing_raw() -> None:
    assert raw_json(row(quality_json=None, speed_json=None)) is None
