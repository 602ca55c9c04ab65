"""Plots in pulls: through LFS beside the card, ours only, gone where they are not wanted; also with faults."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bot_helpers import BASE, BOT, REPO, World
from machine_judge import Broken
from machine_people import OWN_PICTURE, PLOTS, Deed
from machine_play import Faulty, Killed, Play, Run
from machine_world import REPOS, Measuring, quick

from bot.commands.common import open_hub
from bot.intake.repo_config import RepoConfig
from bot.publish import beside
from bot.publish import card as cards
from bot.publish.drawing import draw
from bot.publish.manners import DAY
from bot.publish.outcome import Outcome
from bot.publish.plot_files import SIZE_PLOT, SPEED_PLOT, is_our_plot
from bot.publish.plots import pictures
from bot.publish.pulls import preview, publish_repo
from bot.store import Store
from core.dataset import DatasetRow
from localhub import seed
from localhub.names import MAIN

sys.path.append(str(Path(__file__).parents[1] / "unit"))
from rows import row, sha

NOON = 1_800_014_400.0
CARD = (
    f"---\r\nbase_model: {BASE}   # keep this\r\nversion: 1.10\r\n---\r\n\r\n# Mine  \r\n\ttabs\r\n"
    "![my plot](quantcard/size-kld.png)\r\n\r\n"
    "```\r\n<!-- quantcard:begin v=1 -->\r\n```\r\nno newline at the end"
).encode()
ALICE, BOB = REPOS.index("alice/one-GGUF"), REPOS.index("bob/one-GGUF")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, template=False) as found:
        seed.upload_files(found.root, REPO, {"README.md": CARD})
        with Store(found.settings().db) as store:
            store.repos.follow(REPO.split("/")[0], consented=True, now=1.0)
        wish(found)
        yield found


def wish(world: World, **config: object) -> None:
    """What the repo's .quantcard.yml was read to say."""
    with Store(world.settings().db) as store:
        store.repos.save_repo(
            REPO,
            sha=world.api().model_info(REPO).sha,
            last_modified=None,
            source="follow",
            note=None,
            base_model=BASE,
            config=RepoConfig(**config).as_json(),  # type: ignore[arg-type]
            now=1.0,
        )


def rows(**changed: object) -> list[DatasetRow]:
    own = {"repo_id": REPO, "owner": REPO.split("/")[0], "reference_repo": REPO}
    found = [row(label, **own) for label in ("F16", "Q8_0", "Q6_K", "Q4_K_M", "Q2_K")]
    return [one.model_copy(update=changed) if one.label == "Q4_K_M" else one for one in found]


OTHER = {"kld_mean": 0.0011, "kld_stderr": 0.00001, "variant_key": sha("new")}


def decide(world: World, told: list[DatasetRow], *, dry_run: bool = False, later: float = 0.0) -> Outcome:
    settings = world.settings(dry_run=dry_run)
    with Store(settings.db) as store:
        repo = store.repos.repo(REPO)
        assert repo is not None
        return publish_repo(store, open_hub(settings), settings, repo, told, now=NOON + later)


def read(world: World, path: str, revision: str = "main") -> bytes | None:
    return open_hub(world.settings()).read(REPO, path, revision=revision, limit=1 << 20)


def plots(world: World, revision: str = "main") -> dict[str, bytes]:
    found = {path: read(world, path, revision) for path in (SIZE_PLOT, SPEED_PLOT)}
    return {path: data for path, data in found.items() if data is not None}


def drawn(told: list[DatasetRow]) -> dict[str, bytes]:
    return {picture.path: draw(picture) for picture in pictures(told, RepoConfig())}


def without_section(card: bytes | None) -> bytes:
    return cards.remove((card or b"").decode()).encode()


def test_plots_travel_through_lfs_in_the_cards_commit_and_are_merged(world: World) -> None:
    assert decide(world, rows()).decision.action == "open"
    ref = "refs/pr/1"
    assert plots(world, ref) == drawn(rows()) and set(plots(world, ref)) == set(PLOTS)
    card = read(world, "README.md", ref)
    assert without_section(card) == CARD, "every byte outside the section"
    assert card is not None and card.count(b"](quantcard/size-kld.png)") == 2 and b"](quantcard/speed-kld.png)" in card
    tree = {item.path: item for item in world.api().list_repo_tree(REPO, recursive=True, revision=ref)}
    assert all(tree[path].lfs is not None and tree[path].lfs.size < 100_000 for path in PLOTS)
    commits = world.api().list_repo_commits(REPO, revision=ref)
    assert [one.authors == [BOT] for one in commits] == [True, False, False], "one commit"
    said = world.api().get_discussion_details(REPO, 1).events[0].content  # type: ignore[attr-defined]
    assert "adds plots of the figures" in said and "plots: false" in said
    again = decide(world, rows())
    assert again.decision.reason == "Pull 1 has these figures."
    assert len(world.api().list_repo_commits(REPO, revision=ref)) == 3, "nothing changes when no figure does"
    world.api().merge_pull_request(REPO, 1)
    assert plots(world) == drawn(rows())
    # Other figures, other plots: the next pull brings both.
    assert decide(world, rows(**OTHER), later=2 * DAY).decision.action == "open"
    newer = plots(world, "refs/pr/2")
    assert newer == drawn(rows(**OTHER)) and newer[SPEED_PLOT] != plots(world)[SPEED_PLOT]
    assert without_section(read(world, "README.md", "refs/pr/2")) == CARD


def test_plots_that_are_not_wanted_go_with_the_next_commit(world: World) -> None:
    decide(world, rows())
    wish(world, plots=False)
    done = decide(world, rows())
    assert done.decision.action == "update"
    assert plots(world, "refs/pr/1") == {}
    card = read(world, "README.md", "refs/pr/1")
    assert without_section(card) == CARD and card is not None and card.count(b"](quantcard/") == 1
    assert decide(world, rows()).decision.reason == "Pull 1 has these figures."
    wish(world)
    assert decide(world, rows()).decision.action == "update" and plots(world, "refs/pr/1") == drawn(rows())


def test_merged_plots_that_are_not_wanted_any_more_are_taken_off(world: World) -> None:
    decide(world, rows())
    world.api().merge_pull_request(REPO, 1)
    wish(world, plots=False)
    assert decide(world, rows(), later=2 * DAY).decision.action == "open"
    assert plots(world, "refs/pr/2") == {} and plots(world) != {}
    world.api().merge_pull_request(REPO, 2)
    assert plots(world) == {} and without_section(read(world, "README.md")) == CARD


def test_fewer_files_than_a_plot_needs(world: World) -> None:
    decide(world, rows())
    few = [one for one in rows() if one.label in ("F16", "Q8_0", "Q2_K")]
    assert decide(world, few).decision.action == "update" and plots(world, "refs/pr/1") == {}


@pytest.mark.parametrize("theirs", [OWN_PICTURE, b"text", b"", b"\x89PNG" + bytes(3 << 20)])
def test_an_owners_file_of_that_name_is_theirs(world: World, theirs: bytes) -> None:
    world.upload({SIZE_PLOT: theirs})
    wish(world)
    assert decide(world, rows()).decision.action == "open"
    tree = {item.path: item for item in world.api().list_repo_tree(REPO, recursive=True, revision="refs/pr/1")}
    before = {item.path: item for item in world.api().list_repo_tree(REPO, recursive=True)}
    assert tree[SIZE_PLOT].blob_id == before[SIZE_PLOT].blob_id and SPEED_PLOT in tree
    card = read(world, "README.md", "refs/pr/1") or b""
    assert card.count(b"](quantcard/size-kld.png)") == 1, "their own link to it only"
    wish(world, plots=False)
    decide(world, rows())
    tree = {item.path: item for item in world.api().list_repo_tree(REPO, recursive=True, revision="refs/pr/1")}
    assert SIZE_PLOT in tree and SPEED_PLOT not in tree


def test_an_owner_puts_their_file_in_a_merged_plots_place(world: World) -> None:
    decide(world, rows())
    world.api().merge_pull_request(REPO, 1)
    world.upload({SIZE_PLOT: OWN_PICTURE})
    wish(world)
    assert decide(world, rows(**OTHER), later=2 * DAY).decision.action == "open"
    assert plots(world, "refs/pr/2")[SIZE_PLOT] == OWN_PICTURE
    assert is_our_plot(plots(world, "refs/pr/2")[SPEED_PLOT])
    card = read(world, "README.md", "refs/pr/2") or b""
    assert card.count(b"](quantcard/size-kld.png)") == 1, "theirs is not shown as ours"


def test_a_dry_run_tells_of_plots_with_their_sizes(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    decide(world, rows(), dry_run=True)
    shown = capfd.readouterr()
    for path, data in drawn(rows()).items():
        assert f"#   {path}: {len(data):,} bytes\n" in shown.out
    assert "PNG" not in shown.out and world.pulls() == []
    settings = world.settings(dry_run=True)
    with Store(settings.db) as store:
        repo = store.repos.repo(REPO)
        assert repo is not None
        found = preview(store, open_hub(settings), settings, repo, rows())
    assert "](quantcard/speed-kld.png)" in found.after and found.files == drawn(rows())


# With people, strangers and faults: the judge sees to it that only plots of ours are touched.


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Play]:
    measuring = Measuring()
    with quick(measuring), Play(tmp_path / "world", measuring) as found:
        yield found


def files(repo: int, *marks: int) -> list[Deed]:
    labels = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M")
    return [Deed("upload", repo, (label, mark)) for label, mark in zip(labels, marks, strict=False)]


def there(play: Play, repo: int = BOB) -> set[str]:
    """The plots of the newest pull."""
    num = play.ground.pulls(REPOS[repo])[-1]["num"]
    return set(PLOTS) & set(play.ground.tree(REPOS[repo], f"refs/pr/{num}"))


machine = pytest.mark.skipif(sys.platform != "linux", reason="forks a process with threads")


@machine
@pytest.mark.parametrize(
    "run",
    [Faulty(kind, "plots", nth) for kind in ("lost", "500", "cut") for nth in (0, 2)]
    + [Faulty("412", "commit", 0), Faulty("lost", "commit", 0), Killed(600, "publishing"), Killed(1500, "publishing")],
    ids=str,
)
def test_faults_while_plots_are_uploaded(play: Play, run: Run) -> None:
    play.step(files(BOB, 1, 2, 3), 2, run)
    play.step([], 2, Run())
    play.rest()
    assert there(play) == set(PLOTS)


@machine
def test_people_change_their_minds_about_plots(play: Play) -> None:
    steps = [
        (files(BOB, 1, 2, 3), set(PLOTS)),
        ([Deed("configure", BOB, "no plots")], set()),
        ([Deed("configure", BOB, "yes")], set(PLOTS)),
        ([Deed("merge", BOB), Deed("picture", BOB, True), *files(BOB, 4)], set(PLOTS)),
        ([Deed("merge", BOB), *files(BOB, 5), Deed("configure", BOB, "no plots")], {PLOTS[0]}),
    ]
    for deeds, left in steps:
        play.step(deeds, 26, Run())
        play.step([], 2, Run())
        assert there(play) == left, deeds
    play.rest()
    assert play.ground.read(REPOS[BOB], MAIN, PLOTS[0]) == OWN_PICTURE


@machine
def test_others_files_are_drawn_where_the_owner_asks_for_it(play: Play) -> None:
    play.step([*files(BOB, 1, 2, 3), *files(ALICE, 4, 5, 6), Deed("configure", BOB, "others")], 2, Run())
    play.step([], 2, Run())
    num = play.ground.pulls(REPOS[BOB])[-1]["num"]
    card = play.ground.read(REPOS[BOB], f"refs/pr/{num}") or b""
    assert b"3 of other uploaders in grey" in card
    head = play.ground.history(REPOS[BOB], f"refs/pr/{num}")[0]
    # That theirs changed is no reason for a commit here.
    play.step(files(ALICE, 2, 3), 26, Run())
    play.rest()
    assert play.ground.history(REPOS[BOB], f"refs/pr/{num}")[0].oid == head.oid


# Bugs put in on purpose, which the judge has to see.


@machine
def test_the_judge_sees_an_owners_file_written_over(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "is_our_plot", lambda _: True)
    with pytest.raises(Broken, match="which is the owner's"):
        play.step([Deed("picture", BOB, True), *files(BOB, 1, 2, 3)], 2, Run())


@machine
def test_the_judge_sees_plots_that_nobody_wants(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "pictures", lambda told, _, others: pictures(told, RepoConfig()))
    play.step([Deed("configure", BOB, "no plots"), *files(BOB, 1, 2, 3)], 2, Run())
    with pytest.raises(Broken, match="which nobody wants"):
        play.rest()
