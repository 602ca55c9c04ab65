"""From an upload to a pull and a dataset row: the real client, a hub on localhost, real measurements."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from bot_helpers import (
    BASE,
    BOT_TOKEN,
    CARD,
    DATASET,
    F16,
    MESSY,
    REPO,
    UP,
    UP_TOKEN,
    World,
    imatrix,
    other_vocabulary,
    quant,
    with_nan,
)
from huggingface_hub import CommitOperationAdd

from bot.publish import card as cards
from bot.store import Store


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as found:
        yield found


def dataset_rows(world: World) -> list[dict[str, object]]:
    path = world.api().hf_hub_download(
        DATASET, "data/measurements.parquet", repo_type="dataset", local_dir=world.folder / "got", force_download=True
    )
    return pq.read_table(io.BytesIO(Path(path).read_bytes())).to_pylist()


def actions(report: object) -> list[tuple[str, str]]:
    return [(outcome.repo_id, outcome.decision.action) for outcome in report.outcomes]  # type: ignore[attr-defined]


def test_an_upload_becomes_a_pull_and_dataset_rows_and_the_next_cycle_does_nothing(tmp_path: Path) -> None:
    with World(tmp_path, template=False) as world:
        world.upload({"demo-F16.gguf": F16, "demo-Q8_0.gguf": quant("Q8_0"), "README.md": MESSY})
        world.follow()
        report = world.cycle()
        assert report.exit_code == 0 and report.jobs_done == 5 and report.exported
        assert actions(report) == [(REPO, "open")]
        [pull] = world.pulls()
        assert pull.status == "open" and pull.author == "quantbot"
        new = world.card("refs/pr/1").decode("utf-8", "surrogateescape")
        assert cards.remove(new).encode("utf-8", "surrogateescape") == MESSY
        assert "Q8_0" in new and world.card("main") == MESSY
        rows = {row["variant"]: row for row in dataset_rows(world)}
        assert rows["demo-Q8_0.gguf"]["state"] == "measured" and 0 < rows["demo-Q8_0.gguf"]["kld_mean"] < 0.1
        assert rows["demo-F16.gguf"]["is_reference"] and rows["demo-F16.gguf"]["kld_mean"] < 1e-4
        assert not list((tmp_path / "data" / "models").iterdir()), "model files are cleared away"

        commits = len(world.api().list_repo_commits(DATASET, repo_type="dataset"))
        again = world.cycle()
        assert (again.queued, again.jobs_done, again.exported, again.exit_code) == (0, 0, False, 0)
        assert len(world.pulls()) == 1 and world.card("refs/pr/1").decode("utf-8", "surrogateescape") == new
        assert len(world.api().list_repo_commits(DATASET, repo_type="dataset")) == commits


def test_a_file_replaced_under_its_name_is_measured_again_in_the_same_pull(world: World) -> None:
    world.usual()
    world.follow()
    assert world.cycle().jobs_done == 0
    before = world.card("refs/pr/1")
    world.upload({"demo-Q8_0.gguf": quant("Q6_K")})
    report = world.cycle()
    assert report.jobs_done == 2 and actions(report) == [(REPO, "update")]
    assert len(world.pulls()) == 1 and world.card("refs/pr/1") != before
    states = sorted(
        row["state"] for row in dataset_rows(world) if row["variant"] == "demo-Q8_0.gguf" and row["repo_id"] == REPO
    )
    assert states == ["measured", "stale"]


def test_after_a_merge_a_new_file_gets_a_new_pull_and_a_closed_one_is_a_no(world: World) -> None:
    world.usual()
    world.follow()
    world.cycle()
    world.api().merge_pull_request(REPO, 1)
    assert actions(world.cycle()) == [(REPO, "nothing")]
    world.upload({"second/demo-Q8_0.gguf": quant("Q8_0")})
    assert actions(world.cycle()) == [(REPO, "open")]
    assert [(pull.num, pull.status) for pull in world.pulls()] == [(1, "merged"), (2, "open")]
    world.api().change_discussion_status(REPO, 2, "closed")
    world.upload({"third/demo-Q8_0.gguf": quant("Q8_0")})
    report = world.cycle()
    assert actions(report) == [(REPO, "nothing")] and "closed" in report.outcomes[0].decision.reason
    assert len(world.pulls()) == 2 and report.exit_code == 0


def test_a_lost_response_and_a_lost_database_make_no_second_pull(world: World) -> None:
    world.usual()
    world.follow()
    world.faults.drop(rf"/api/models/{REPO}/commit/", method="POST")
    report = world.cycle()
    assert report.exit_code == 4 and len(world.pulls()) == 1, report
    again = world.cycle()
    assert again.exit_code == 0 and len(world.pulls()) == 1, again
    # The database of before: it knows no pull at all.
    for path in world.folder.glob("bot.db*"):
        path.unlink()
    from bot_helpers import measured

    (world.folder / "bot.db").write_bytes((measured() / "bot.db").read_bytes())
    world.follow()
    lost = world.cycle()
    assert lost.exit_code == 0 and len(world.pulls()) == 1
    with Store(world.settings().db) as store:
        assert [pull.num for pull in store.results.pulls(REPO)] == [1]


def test_a_pull_that_somebody_committed_to_is_left_to_them(world: World) -> None:
    world.usual()
    world.follow()
    world.cycle()
    theirs = [CommitOperationAdd(path_in_repo="notes.txt", path_or_fileobj=b"mine now")]
    world.api().create_commit(REPO, theirs, commit_message="mine", revision="refs/pr/1")
    before = world.card("refs/pr/1")
    world.upload({"second/demo-Q8_0.gguf": quant("Q8_0")})
    report = world.cycle()
    assert actions(report) == [(REPO, "nothing")] and "committed" in report.outcomes[0].decision.reason
    assert world.card("refs/pr/1") == before and len(world.pulls()) == 1


@pytest.mark.parametrize(
    ("config", "card", "reason"),
    [
        (b"enabled: false\n", CARD, "says no"),
        (b"enabled: [\n", CARD, "not valid YAML"),
        (b"enabled: !!bool maybe\n", CARD, "not valid YAML"),
        (b"#" * (65 << 10), CARD, "larger than"),
        (b"", CARD + "<!-- quantcard:begin v=1 key=abcdef012345 -->\n", "begin marker without an end"),
    ],
)
def test_a_repo_can_refuse_and_damaged_markers_are_left_alone(
    world: World, config: bytes, card: str, reason: str
) -> None:
    world.usual(card=card.encode(), **{".quantcard.yml": config})
    world.follow()
    report = world.cycle()
    assert actions(report) == [(REPO, "nothing")] and reason in report.outcomes[0].decision.reason
    assert world.pulls() == [] and report.exit_code == 0


def test_without_consent_an_owner_gets_one_pull_until_it_is_merged(world: World) -> None:
    other = f"{UP}/other-GGUF"
    world.usual()
    world.usual(other)
    world.follow()
    report = world.cycle()
    assert sorted(action for _, action in actions(report)) == ["open", "wait"]
    assert len(world.pulls()) + len(world.pulls(other)) == 1
    first, second = (REPO, other) if world.pulls() else (other, REPO)
    world.api().merge_pull_request(first, 1)
    assert (second, "open") in actions(world.cycle())
    assert len(world.pulls(second)) == 1


def test_what_is_no_model_is_left_out_and_what_is_broken_fails_with_its_reason(world: World) -> None:
    nan = with_nan(quant("Q8_0"), "demo-nan.gguf")
    foreign = other_vocabulary(quant("Q8_0"), "demo-foreign.gguf")
    world.usual(
        **{
            "mmproj-demo-F16.gguf": b"GGUF" * 3000,
            "demo.imatrix.gguf": b"GGUF" * 3000,
            "demo-Q2_K.gguf": F16.read_bytes()[: 5 << 20],
            "demo-Q3_K_M.gguf": b"this is no GGUF at all" * 1000,
            "demo-Q4_K_M.gguf": nan,
            "demo-Q5_K_M.gguf": foreign,
            "demo-Q4_0-00001-of-00002.gguf": F16,
            "demo-Q4_1.gguf": imatrix("misnamed.gguf"),
        }
    )
    world.follow()
    report = world.cycle()
    assert report.exit_code == 5 and actions(report) == [(REPO, "open")]
    rows = {name: row for (repo, name, _), row in world.rows().items() if repo == REPO}
    assert sorted(rows) == [
        f"demo-{label}.gguf" for label in ("F16", "Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q5_K_M", "Q8_0")
    ]
    assert "truncated" in rows["demo-Q2_K.gguf"].reason and rows["demo-Q2_K.gguf"].state == "failed"
    assert "not a GGUF" in rows["demo-Q3_K_M.gguf"].reason
    assert "1 of 2 shards" in rows["demo-Q4_0.gguf"].reason
    assert rows["demo-Q4_K_M.gguf"].state == "failed" and "INVALID" in rows["demo-Q4_K_M.gguf"].reason
    assert rows["demo-Q5_K_M.gguf"].state == "failed" and "vocabulary differs" in rows["demo-Q5_K_M.gguf"].reason
    assert rows["demo-Q8_0.gguf"].state == "measured" and rows["demo-Q8_0.gguf"].kld_mean is not None
    assert "INVALID" in world.card("refs/pr/1").decode()
    assert not any(str(world.folder) in (row.reason or "") for row in rows.values())


def test_without_a_reference_only_speed_is_told_until_a_trusted_owner_has_one(world: World) -> None:
    world.upload({"demo-Q6_K.gguf": quant("Q6_K"), "README.md": CARD.encode()})
    world.follow()
    world.cycle()
    [row] = [row for (repo, _, state), row in world.rows().items() if repo == REPO]
    assert row.kld_mean is None and row.tg_ts is not None and BASE in row.reason
    # A stranger's F16 does not count, one of the base model's owner does.
    for owner in ("stranger", "demo-org"):
        world.upload({"demo-F16.gguf": F16, "README.md": CARD.encode()}, f"{owner}/demo-F16-GGUF")
        world.follow(owner)
        world.cycle()
        [row] = [row for (repo, _, state), row in world.rows().items() if repo == REPO]
        assert (row.reference_repo == "demo-org/demo-F16-GGUF") == (owner == "demo-org")
    assert row.kld_mean is not None


def test_a_card_that_is_no_utf8_is_left_alone_and_the_reason_said(world: World) -> None:
    other = f"{UP}/other-GGUF"
    world.usual(card=CARD.encode() + b"\xff\n")
    world.usual(other)
    world.follow(consented=True)
    report = world.cycle()
    assert len(world.pulls(other)) == 1 and world.pulls() == []
    assert not report.errors
    assert any(o.repo_id == REPO and "not UTF-8" in o.decision.reason for o in report.outcomes)


def test_split_shards_are_one_variant(world: World) -> None:
    from core.gguf_files import variant_name

    first = "demo-Q8_0-00001-of-00002.gguf"
    assert variant_name(first) == "demo-Q8_0.gguf"
    world.upload({first: quant("Q8_0"), "demo-Q8_0-00002-of-00002.gguf": F16, "README.md": CARD.encode()})
    world.follow()
    with Store(world.settings().db) as store:
        from bot.commands.common import open_hub
        from bot.intake.watch import poll

        poll(store, open_hub(world.settings()), now=1.0)
        [variant] = store.repos.variants(REPO)
    assert variant.name == "demo-Q8_0.gguf" and [file.path[-9:] for file in variant.files] == ["0002.gguf"] * 2
    assert re.fullmatch("[0-9a-f]{64}", variant.key)


def test_a_private_repo_is_not_told_about_and_a_deleted_one_is_forgotten(world: World) -> None:
    world.usual()
    world.follow()
    world.cycle()
    world.api().delete_repo(REPO)
    report = world.later()
    assert report.exit_code == 0, report
    assert all(state == "stale" for (repo, _, state) in world.rows() if repo == REPO)
    with Store(world.settings().db) as store:
        store.results.add_request(f"{BOT_TOKEN}/hidden", None, now=1.0)
        store.results.add_request("a--b/c", None, now=1.0)
    world.api(UP_TOKEN).create_repo(f"{UP}/hidden", private=True)
    assert world.cycle().exit_code == 0
    with Store(world.settings().db) as store:
        assert {request["state"] for request in store.results.requests()} == {"refused"}
