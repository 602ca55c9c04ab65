"""A protocol that the operator defined, through whole cycles."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
from bot_helpers import CORPUS, REPO, World

from bot.store import Store
from localhub import seed


def test_a_cycle_under_an_operators_own_protocol(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        text = CORPUS.read_bytes()[:60_000]
        seed.upload_files(world.root, "quantbot/texts", {"short.txt": text}, repo_type="dataset")
        (tmp_path / "short.txt").write_bytes(text)
        (tmp_path / "own.toml").write_text(
            '[protocol.here]\nbase = "demo"\ncorpus = { path = "short.txt" }\n'
            "n_ctx = 256\nchunks = 2\nrepetitions = 1\n"
        )
        world.usual()
        world.follow()
        own = {"protocols": tmp_path / "own.toml", "protocol": "here"}
        unset = {"corpus": None, "chunks": None, "repetitions": None}
        report = world.cycle(**own, **unset)
        assert report.exit_code == 0 and report.jobs_done == 5 and report.exported, report
        here = world.settings(**own, **unset).protocol_in_force()
        with Store(world.settings().db) as store:
            [quant] = [v for v in store.repos.variants(REPO) if "Q8_0" in v.name]
            kept = store.results.measurements(quant.key, here.fingerprint)
            assert set(kept) == {"quality", "speed"}
            protocol = kept["quality"].result.protocol
            assert (protocol["name"], protocol["fingerprint"]) == ("here", here.fingerprint)
        assert not (tmp_path / "data" / "corpora").exists(), "a text on this machine is not copied"

        # The same text from the Hub is the same protocol: nothing is measured again.
        pinned = f'name = "short.txt", sha256 = "{here.corpus.sha256}"'
        where = 'repo_id = "quantbot/texts", filename = "short.txt"'
        table = (tmp_path / "own.toml").read_text().replace('path = "short.txt"', f"{pinned}, {where}")
        (tmp_path / "own.toml").write_text(table)
        assert world.cycle(**own, **unset).queued == 0
        published = pq.read_table(tmp_path / "data" / "export" / "data" / "measurements.parquet").to_pylist()
        assert str(tmp_path) not in repr(published) + world.card("refs/pr/1").decode()
