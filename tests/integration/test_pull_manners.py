"""Pulls with manners, against localhub: one visit at a time, at a time of the test's choosing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bot_helpers import BOT, CARD, REPO, UP, World, measured, quant
from huggingface_hub import CommitOperationAdd

from bot.cli import run_app
from bot.commands.common import open_hub
from bot.hub.client import Hub
from bot.intake.view import view
from bot.intake.watch import poll
from bot.publish import card as cards
from bot.publish.manners import DAY
from bot.publish.outcome import Outcome, note_outcome
from bot.publish.pulls import publish_repo
from bot.publish.rows import current_rows, settled
from bot.store import Store
from bot.store.repos import Variant
from bot.store.switch import pause, resume
from bot.switch import WritingPausedError
from core.errors import HubConflictError, HubUnreachableError
from localhub import seed

OTHER, THIRD = f"{UP}/other-GGUF", f"{UP}/third-GGUF"
NOON = 1_800_014_400.0  # 2027-01-15 12:00 UTC


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as found:
        yield found


def visit(world: World, repo: str = REPO, *, now: float = NOON, **more: Any) -> Outcome:
    """Poll, then decide about one repo, as a cycle does."""
    settings = world.settings(**more)
    with Store(settings.db) as store:
        hub = open_hub(settings)
        poll(store, hub, now=now)
        seen, protocol = view(store, trusted=[]), settings.protocol_in_force()
        known = store.repos.repo(repo)
        assert known is not None
        rows = current_rows(store, seen, protocol, repo_id=repo)
        done = settled(store, seen, protocol, repo)
        outcome = publish_repo(store, hub, settings, known, rows, now=now, settled=done)
        if not hub.dry_run:
            note_outcome(store, outcome, sha=known.sha, now=now, touched=store.publishing.touches(repo))
        return outcome


def did(outcome: Outcome) -> str:
    return outcome.decision.action


def opened(world: World, **more: Any) -> None:
    world.usual(**more)
    world.follow()
    assert did(visit(world)) == "open"


def lose_database(world: World) -> None:
    for path in world.folder.glob("bot.db*"):
        path.unlink()
    shutil.copyfile(measured() / "bot.db", world.folder / "bot.db")
    world.follow()


def requests(world: World, repo: str = REPO, **more: Any) -> list[str]:
    """The Hub's requests during a visit's decision, without the poll's."""
    settings = world.settings(**more)
    with Store(settings.db) as store:
        hub, seen, protocol = open_hub(settings), view(store, trusted=[]), settings.protocol_in_force()
        known = store.repos.repo(repo)
        assert known is not None
        hub.budget.requests.clear()
        rows = current_rows(store, seen, protocol, repo_id=repo)
        publish_repo(store, hub, settings, known, rows, now=NOON)
        return sorted(hub.budget.requests.elements())


def texts_on(world: World, num: int = 1, repo: str = REPO) -> list[str]:
    events = world.api().get_discussion_details(repo, num).events
    return [event.content for event in events if event.type == "comment"][1:]


def file_known(world: World, name: str) -> Variant:
    with Store(world.settings().db) as store:
        return next(variant for variant in store.repos.variants(REPO) if variant.name == name)


def worsen(world: World, factor: float) -> None:
    """A measurement of Q8_0 with another mean KLD, as if another machine had made it."""
    with Store(world.settings().db) as store:
        protocol = world.settings().protocol_in_force()
        key = file_known(world, "demo-Q8_0.gguf").key
        found = store.results.measurements(key, protocol.fingerprint)["quality"]
        kld = found.result.kld.model_copy(update={"mean": found.result.kld.mean * factor})  # type: ignore[union-attr]
        store.results.save_measurement(
            key, protocol.fingerprint, found.result.model_copy(update={"kld": kld}),
            reference_key=found.reference_key, job_id=None, now=NOON,
        )  # fmt: skip


# what is decided without the Hub


def test_what_is_clear_beforehand_costs_no_request(world: World) -> None:
    world.usual(**{".quantcard.yml": b"enabled: false\n"})
    world.usual(OTHER)
    world.usual(THIRD)
    world.follow()
    assert did(visit(world, OTHER)) == "open"
    assert did(visit(world, THIRD)) == "wait" and "introduction" in visit(world, THIRD).decision.reason
    assert requests(world) == [] and requests(world, THIRD) == []
    assert requests(world, OTHER, quiet_hours="11-13") == []
    # An open pull whose figures and card are as they were: one look at it (and one at whose token this is).
    assert requests(world, OTHER) == ["api", "api"]


def test_quiet_hours_a_pause_and_the_hubs_own_limit_hold_every_write(world: World) -> None:
    world.usual()
    world.follow()
    quiet = visit(world, quiet_hours="11:30-13")
    assert (did(quiet), quiet.next_at) == ("wait", NOON + 3600.0) and "13:00" in quiet.decision.reason
    with Store(world.settings().db) as store:
        pause(store, reason="a bad template", now=NOON)
    held = visit(world)
    assert did(held) == "wait" and "a bad template" in held.decision.reason and held.next_at
    with Store(world.settings().db) as store:
        assert resume(store) is not None and resume(store) is None
    world.faults.fail(rf"/api/models/{REPO}/commit/", status=429, method="POST")
    limited = visit(world)
    assert (did(limited), limited.next_at) == ("wait", NOON + 3600.0)
    assert requests(world) == [] and world.pulls() == []
    world.faults.clear()
    assert did(visit(world, now=NOON + 3601.0)) == "open"


def test_a_pause_stops_a_write_in_the_middle(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.usual()
    world.follow()
    read = Hub.my_pulls

    def late(self: Hub, repo_id: str) -> Any:
        with Store(world.settings().db) as store:
            pause(store, reason="", now=NOON)
        return read(self, repo_id)

    monkeypatch.setattr(Hub, "my_pulls", late)
    with pytest.raises(WritingPausedError, match="quantcard resume"):
        visit(world)
    assert world.pulls() == []


def test_where_the_hub_lets_us_ask_nothing_we_come_back_in_a_week(world: World) -> None:
    world.usual()
    world.follow()
    seed.create_repo(world.root, REPO, discussions=False, exist_ok=True)
    barred = visit(world)
    assert did(barred) == "barred" and "disabled" in barred.decision.reason and barred.next_at == NOON + 7 * DAY
    seed.create_repo(world.root, REPO, discussions=True, exist_ok=True)
    assert did(visit(world)) == "open"


# limits


def test_two_closed_pulls_mute_an_owner_until_one_is_reopened(world: World) -> None:
    for repo in (REPO, OTHER, THIRD):
        world.usual(repo)
    world.follow(REPO, consented=True)
    world.follow(OTHER, consented=True)
    assert did(visit(world)) == did(visit(world, OTHER)) == "open"
    for repo in (REPO, OTHER):
        world.api().change_discussion_status(repo, 1, "closed")
        assert did(visit(world, repo)) == "nothing"
    world.follow(THIRD)
    muted = visit(world, THIRD)
    assert did(muted) == "wait" and "closed in 2 repos" in muted.decision.reason
    world.api().change_discussion_status(OTHER, 1, "open")
    visit(world, OTHER)
    with Store(world.settings().db) as store:
        assert THIRD in store.publishing.due(now=NOON), "what waited is decided anew"
    assert "introduction" in visit(world, THIRD).decision.reason
    world.follow(THIRD, consented=True)
    assert did(visit(world, THIRD)) == "open"


def test_the_introduction_survives_a_lost_database(world: World) -> None:
    opened(world)
    world.usual(OTHER)
    lose_database(world)
    assert did(visit(world, OTHER)) == "wait", "the owner's other repos are asked before a first pull"
    assert world.pulls(OTHER) == []


# updates


def test_a_rebase_follows_main_and_a_human_commit_in_between_is_not_undone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(world)
    new = CARD.replace("# A model", "# A better model").encode()
    world.upload({"README.md": new})
    update = Hub.update_pull
    parents: list[str | None] = []

    def late(self: Hub, repo_id: str, num: int, *, parent: str | None, **more: Any) -> Any:
        parents.append(parent)
        theirs = [CommitOperationAdd(path_in_repo="notes.txt", path_or_fileobj=b"mine")]
        world.api().create_commit(repo_id, theirs, commit_message="mine", revision=f"refs/pr/{num}")
        return update(self, repo_id, num, parent=parent, **more)

    head = world.api().get_discussion_details(REPO, 1).events[-1].oid
    monkeypatch.setattr(Hub, "update_pull", late)
    met = visit(world)
    assert did(met) == "wait" and "just now" in met.decision.reason and parents == [head]
    monkeypatch.setattr(Hub, "update_pull", update)
    before = world.card("refs/pr/1")
    hands_off = visit(world)
    assert did(hands_off) == "nothing" and "left to them" in hands_off.decision.reason
    assert world.card("refs/pr/1") == before
    with pytest.raises(HubConflictError):
        open_hub(world.settings()).update_pull(REPO, 1, files={"x": b"x"}, title="x y z", body="", parent=head)


def test_a_rebase_is_one_silent_commit(world: World) -> None:
    opened(world)
    new = CARD.replace("# A model", "# A better model").encode()
    world.upload({"README.md": new})
    assert did(visit(world)) == "update" and did(visit(world)) == "nothing"
    assert cards.remove(world.card("refs/pr/1").decode()).encode() == new
    assert texts_on(world) == []
    world.api().merge_pull_request(REPO, 1)
    assert did(visit(world)) == "nothing"


def test_a_material_change_is_told_once_a_day(world: World) -> None:
    opened(world)
    worsen(world, 1.02)
    assert did(visit(world)) == "update" and texts_on(world) == []
    worsen(world, 40.0)
    assert did(visit(world, now=NOON + 60)) == "update"
    [told] = texts_on(world)
    assert "`Q8_0`: mean KLD" in told and "quantcard:changed" in told
    worsen(world, 0.025)
    assert did(visit(world, now=NOON + 7200)) == "update" and len(texts_on(world)) == 1
    lose_database(world)
    worsen_after_loss = 30.0
    visit(world, now=NOON + 7300)
    worsen(world, worsen_after_loss)
    assert did(visit(world, now=NOON + 7400)) == "update" and len(texts_on(world)) == 1
    worsen(world, 1 / worsen_after_loss)
    assert did(visit(world, now=NOON + 2 * DAY)) == "update" and len(texts_on(world)) == 2
    assert len(world.pulls()) == 1


def test_a_comment_whose_response_was_lost_is_not_said_again(world: World) -> None:
    opened(world)
    worsen(world, 40.0)
    world.faults.drop(rf"/api/models/{REPO}/discussions/1/comment$", method="POST")
    with pytest.raises(HubUnreachableError):
        visit(world)
    assert did(visit(world)) == "nothing" and len(texts_on(world)) == 1


# .quantcard.yml


def test_a_repo_chooses_protocols_columns_and_data(world: World) -> None:
    opened(world)
    world.upload({".quantcard.yml": b"columns: [size, kld]\ndata: file\nmetadata: true\nposition: top\n"})
    assert did(visit(world)) == "update" and did(visit(world)) == "nothing"
    card = world.card("refs/pr/1").decode()
    assert "| Quant | Size | Mean KLD |" in card and "quantcard:data" not in card and "model-index:" in card
    found = open_hub(world.settings()).read(REPO, ".quantcard.json", revision="refs/pr/1", limit=1 << 20)
    assert found and b"kld_mean" in found
    world.upload({".quantcard.yml": b"protocols: [wiki2048]\n"})
    other = visit(world)
    assert did(other) == "nothing" and "wiki2048 only" in other.decision.reason


def test_a_file_with_an_error_is_answered_once_on_our_pull_and_never_by_a_discussion(world: World) -> None:
    world.usual(**{".quantcard.yml": b"enable: true\n"})
    world.follow()
    assert did(visit(world)) == "nothing" and world.pulls() == []
    world.upload({".quantcard.yml": b"enabled: true\n"})
    assert did(visit(world)) == "open"
    world.upload({".quantcard.yml": b"columns: [kdl]\n"})
    before = world.card("refs/pr/1")
    for _ in range(2):
        found = visit(world)
        assert did(found) == "nothing" and "did you mean 'kld'" in found.decision.reason
    lose_database(world)
    for wishes in (b"enabled: true\n", b"columns: [kdl]\n"):
        world.upload({".quantcard.yml": wishes})
        visit(world)
    [said] = texts_on(world)
    assert "did you mean" in said and "kdl" in said and world.card("refs/pr/1") == before
    world.upload({".quantcard.yml": b"columns: [kkd]\n"})
    visit(world)
    assert len(texts_on(world)) == 2
    # Where our pull was closed nobody wants to hear from us.
    world.api().change_discussion_status(REPO, 1, "closed")
    world.upload({".quantcard.yml": b"columns: [xyz]\n"})
    visit(world)
    assert len(texts_on(world)) == 2 and len(list(world.api().get_repo_discussions(REPO))) == 1


def test_dry_run_decides_as_it_would_be_and_writes_nothing_anywhere(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    world.usual()
    world.follow()
    visit(world, quiet_hours="0-23")
    assert did(visit(world, dry_run=True)) == "open" and world.pulls() == []
    with Store(world.settings().db) as store:
        assert store.results.pulls() == []
    shown = capfd.readouterr().out
    assert "create_pr=True" in shown and "+++ b/README.md" in shown and "README.md: " in shown
    assert did(visit(world)) == "open"
    worsen(world, 40.0)
    assert did(visit(world, dry_run=True)) == "update"
    shown = capfd.readouterr().out
    assert "revision='refs/pr/1'" in shown and "comment_discussion(" in shown and f"repo_id='{REPO}'" in shown
    assert texts_on(world) == [] and world.pulls()[0].author == BOT
    assert did(visit(world)) == "update", "the dry run did not count"
    assert quant("Q8_0").exists()


def test_an_update_whose_response_was_lost_is_not_committed_again(world: World) -> None:
    opened(world)
    worsen(world, 40.0)
    world.faults.drop(rf"/api/models/{REPO}/commit/refs/pr/1", method="POST")
    with pytest.raises(HubUnreachableError):
        visit(world)
    commits = len(world.api().list_repo_commits(REPO, revision="refs/pr/1"))
    assert did(visit(world)) == "nothing" and texts_on(world) == []
    assert len(world.api().list_repo_commits(REPO, revision="refs/pr/1")) == commits


def test_an_open_pull_of_another_account_of_ours_is_left_to_it(world: World) -> None:
    opened(world)
    seed.create_user(world.root, "quantbot-two", token="hf_two")
    worsen(world, 40.0)
    other = visit(world, hf_token="hf_two")
    assert did(other) == "nothing" and "another account of ours" in other.decision.reason
    assert len(world.pulls()) == 1 and did(visit(world)) == "update"


def test_next_looks(world: World) -> None:
    opened(world)
    assert visit(world).next_at == NOON + 3600.0 and visit(world, pulls_check_s=60).next_at == NOON + 60.0
    world.api().change_discussion_status(REPO, 1, "closed")
    assert visit(world).next_at == NOON + DAY
    world.usual(OTHER, **{".quantcard.yml": b"enabled: false\n"})
    assert visit(world, OTHER).next_at is None


def test_the_commands_of_the_operator(
    world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str, code: int = 0) -> tuple[str, str]:
        capfd.readouterr()
        assert run_app([*arguments]) == code
        return tuple(capfd.readouterr())  # type: ignore[return-value]

    opened(world)
    for name, value in world.environment().items():
        monkeypatch.setenv(name, value)
    assert "until 'quantcard resume'" in run("pause", "--reason", "wrong figures")[1]
    worsen(world, 40.0)
    assert "is paused since" in run("card", REPO)[1] and did(visit(world)) == "wait"
    shown, said = run("card", REPO, "--dry-run")
    assert "revision='refs/pr/1'" in shown and "[bot] quantcard" in said and "+++ b/README.md" in shown
    assert "Writing goes on" in run("resume")[1] and "was not paused" in run("resume")[1]
    assert f"{REPO}/discussions/1" in run("card", REPO)[0]
    assert "Nothing would be committed now" in run("card", REPO, "--dry-run")[1]
    assert "Nobody disputes" in run("disputes", "list")[1]
    world.api().comment_discussion(REPO, 1, "/quantcard dispute [red]no[/red]")
    visit(world)
    [dispute] = json.loads(run("disputes", "list", "--json")[0])
    assert (dispute["text"], dispute["state"]) == ("[red]no[/red]", "open")
    assert "[red]no[/red]" in run("disputes", "list")[0]
    assert "no open dispute 99" in run("disputes", "close", "99", code=2)[1]
    run("disputes", "close", str(dispute["id"]), "--note", "It is.")
    assert json.loads(run("disputes", "list", "--json")[0])[0]["state"] == "closed"
