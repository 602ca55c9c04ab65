"""The bot over Hugging Face Jobs: what a cycle measures there is what it measures here, and no model is fetched."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from bot.queue.runners.hf_jobs_money import spending
from bot.store import Store
from core.contract import QualityResult
from tests.integration.bot_helpers import BOT, BOT_TOKEN, World, measured

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")


def figures(db: Path) -> dict[str, tuple[float, float, int]]:
    """By the variant's key: mean KLD, PPL and scored tokens."""
    with Store(db) as store:
        found = {}
        for row in store.db.query("SELECT variant_key, result FROM measurements WHERE kind = 'quality'"):
            result = QualityResult.model_validate_json(row["result"])
            found[row["variant_key"]] = (result.kld.mean, result.ppl.value, result.n_tokens)
        return found


def test_a_cycle_over_jobs_gives_the_figures_of_this_machine(tmp_path: Path) -> None:
    with World(tmp_path, template=False) as world:
        world.usual()
        world.follow()
        report = world.cycle(
            publish=False, runners=["hf-jobs"], hf_jobs_image="any", hf_jobs_flavors=["cpu-basic"],
            hf_jobs_monthly_usd=1, hf_jobs_poll_s=0.2, hf_jobs_slots=2,
        )  # fmt: skip
        assert report.jobs_done == 5 and report.jobs_dead == 0, [event.error for event in world.events]
        jobs = list(world.api(BOT_TOKEN).list_jobs(namespace=BOT))
        assert [str(job.status.stage) for job in jobs] == ["COMPLETED"] * 5
        with Store(world.settings().db) as store:
            money = spending(store, time.time())
        assert money.n_jobs == 5 and money.open == () and 0 < money.spent < 1
        assert not list((tmp_path / "data").rglob("demo-*.gguf"))
        assert list((tmp_path / "data" / "tokens").glob("*.parquet"))
        assert figures(tmp_path / "bot.db") == figures(measured() / "bot.db")
