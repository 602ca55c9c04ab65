"""The whole way: the bot measures and publishes, the page reads the dataset from the Hub and pairs two files."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from bot_helpers import DATASET, World

from bot.commands.retract import retract
from core.dataset import MEASUREMENTS_PATH, DatasetRow
from core.dataset_file import parquet_rows, sha256_in
from core.errors import SettingsError
from space.data import HubSource, Results
from space.filters import Filters
from space.pairing import Pairing
from space.queries import Queries


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with World(tmp_path) as found:
        found.usual()
        found.follow()
        found.cycle()
        yield found


def test_the_page_reads_what_the_bot_published(world: World) -> None:
    settings = world.settings()
    tree = {item.path for item in world.api().list_repo_tree(DATASET, repo_type="dataset", recursive=True)}
    rows = parquet_rows((settings.data / "export" / MEASUREMENTS_PATH).read_bytes())
    named = {path for row in rows for path in (row.tokens_path, row.raw_path) if path}
    assert named and named <= tree, "all that rows name is there"
    assert {path for path in tree if sha256_in(path)} == named, "and nothing else"
    [commit] = [c for c in world.api().list_repo_commits(DATASET, repo_type="dataset") if "measured" in c.title]
    assert commit.title == "2 measured variants"

    results = Results(HubSource(DATASET, settings.hf_endpoint))
    assert results.refresh(), results.error
    queries = Queries(results)
    measured = [row for row in queries.variants(Filters(show="measured")).rows if row.has_tokens]
    assert len(measured) == 2
    found = Pairing(results).compare(measured[0].id, measured[1].id)
    assert found.how == "paired" and found.n_tokens and found.sentence, found.notes

    one = queries.measurement(measured[0].id)
    assert one is not None and one.raw_url is not None and one.quality is not None
    with urllib.request.urlopen(one.raw_url, timeout=20) as answer:
        raw = json.loads(answer.read())
    assert raw["quality"]["kld"] == one.quality["kld"] and raw["variant_key"] == one.row["variant_key"]


def test_a_retracted_figure_stays_with_its_reason_until_that_is_taken_back(world: World) -> None:
    settings = world.settings()

    def published(id: str) -> DatasetRow:
        world.cycle()
        content = (settings.data / "export" / MEASUREMENTS_PATH).read_bytes()
        return next(row for row in parquet_rows(content) if row.id == id)

    before = next(row for row in parquet_rows((settings.data / "export" / MEASUREMENTS_PATH).read_bytes())
                  if row.state == "measured" and not row.is_reference)  # fmt: skip
    retract(before.repo_id, before.variant, reason="A broken build\nmeasured it.", db=settings.db)
    gone = published(before.id)
    assert (gone.state, gone.reason) == ("retracted", "A broken build measured it.")
    assert gone.kld_mean == before.kld_mean, "what was measured stays visible"
    retract(before.repo_id, before.variant, undo=True, db=settings.db)
    assert published(before.id).state == "measured"
    with pytest.raises(SettingsError, match="--reason"):
        retract(before.repo_id, before.variant, db=settings.db)
    with pytest.raises(SettingsError, match="There is no file"):
        retract(before.repo_id, "no-such.gguf", reason="x", db=settings.db)
