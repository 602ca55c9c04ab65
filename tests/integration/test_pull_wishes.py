"""What a repo's ``.quantcard.yml`` says while a pull of ours is open, and files of ours beside the card."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from bot_helpers import REPO, World
from huggingface_hub import CommitOperationAdd
from test_pull_manners import NOON, OTHER, did, lose_database, opened, texts_on, visit, worsen

from bot.commands.common import open_hub
from bot.publish import card as cards
from bot.publish.data_block import FILE, decode, decode_file
from bot.publish.manners import DAY
from bot.publish.pull_texts import PULL
from core.errors import HubUnreachableError

NO, YES = b"enabled: false\n", b"enabled: true\n"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as found:
        yield found


def wish(world: World, text: bytes) -> None:
    world.upload({".quantcard.yml": text})


def statuses(world: World) -> list[str]:
    return [pull.status for pull in world.pulls()]


def beside(world: World, revision: str) -> bytes | None:
    return open_hub(world.settings()).read(REPO, FILE, revision=revision, limit=1 << 20)


def body(world: World, num: int = 1) -> str:
    return str(world.api().get_discussion_details(REPO, num).events[0].content)  # type: ignore[attr-defined]


def test_a_file_that_breaks_the_yaml_reader_stops_nobody_elses_pull(world: World) -> None:
    world.usual(**{".quantcard.yml": b'enabled: "\\UFFFFFFFF"\n'})
    world.usual(OTHER)
    world.follow()
    report = world.cycle()
    assert report.exit_code == 0 and world.pulls() == [] and len(world.pulls(OTHER)) == 1


def test_another_position_moves_the_section_of_an_open_pull(world: World) -> None:
    opened(world)
    for text, before in ((b"position: top\n", b"# A model\n\n<!-- quantcard"), (b"", b"Some words.\n\n<!-- quantcard")):
        wish(world, text)
        assert did(visit(world)) == "update" and before in world.card("refs/pr/1")
        assert did(visit(world)) == "nothing"
    # A section that is on the card stays where it is.
    world.api().merge_pull_request(REPO, 1)
    visit(world)
    worsen(world, 40.0)
    assert did(visit(world, now=NOON + DAY)) == "open"
    wish(world, b"position: top\n")
    assert did(visit(world, now=NOON + DAY)) == "nothing" and b"Some words.\n\n<!-- quantcard" in world.card(
        "refs/pr/2"
    )


# a file that forbids


def test_an_open_pull_is_closed_once_where_the_file_says_no(world: World) -> None:
    opened(world)
    wish(world, NO)
    assert did(visit(world, dry_run=True)) == "nothing" and statuses(world) == ["open"]
    assert "was closed for that" in visit(world).decision.reason and statuses(world) == ["closed"]
    [said] = texts_on(world)
    assert "`enabled: false`" in said and "I close this pull" in said
    # That is a no as good as any other.
    for text in (NO, YES):
        wish(world, text)
        assert did(visit(world, now=NOON + DAY)) == "nothing"
        lose_database(world)
        assert did(visit(world, now=NOON + 2 * DAY)) == "nothing"
    assert statuses(world) == ["closed"] and len(texts_on(world)) == 1
    world.api().change_discussion_status(REPO, 1, "open")
    worsen(world, 40.0)
    assert did(visit(world, now=NOON + 3 * DAY)) == "update" and statuses(world) == ["open"]


@pytest.mark.parametrize("lost", [False, True])
def test_a_pull_that_its_owner_opens_again_stays_open(world: World, lost: bool) -> None:
    opened(world)
    wish(world, NO)
    visit(world)
    world.api().change_discussion_status(REPO, 1, "open")
    if lost:
        lose_database(world)
    for now in (NOON + DAY, NOON + 2 * DAY):
        assert did(visit(world, now=now)) == "nothing" and statuses(world) == ["open"]
    assert len(texts_on(world)) == 1
    wish(world, YES)
    worsen(world, 40.0)
    assert did(visit(world, now=NOON + 3 * DAY)) == "update" and statuses(world) == ["open"]


def test_a_pull_that_somebody_committed_to_is_theirs(world: World) -> None:
    opened(world)
    add = CommitOperationAdd("NOTES.md", b"mine")
    world.api().create_commit(REPO, [add], commit_message="Mine", revision="refs/pr/1")
    wish(world, NO)
    assert did(visit(world)) == "nothing" and statuses(world) == ["open"] and texts_on(world) == []


def test_a_lost_response_to_the_closing_is_no_second_one(world: World) -> None:
    opened(world)
    wish(world, NO)
    world.faults.drop(r"/discussions/1/status$", method="POST")
    with pytest.raises(HubUnreachableError):
        visit(world)
    assert did(visit(world)) == "nothing" and statuses(world) == ["closed"] and len(texts_on(world)) == 1


def test_a_name_that_is_no_protocol_is_told_with_the_nearest_one(world: World) -> None:
    opened(world)
    wish(world, b"protocols: [wiki-512, wiki2048]\n")
    for _ in range(2):
        found = visit(world)
        assert did(found) == "nothing" and "(did you mean 'wiki512'?)" in found.decision.reason
    lose_database(world)
    visit(world)
    [said] = texts_on(world)
    assert "'protocols' has no 'wiki-512' (did you mean 'wiki512'?)" in said and "wiki2048" in said
    assert statuses(world) == ["open"]


def test_without_quantized_files_the_reason_says_so(world: World) -> None:
    opened(world)
    world.api().delete_file("demo-Q8_0.gguf", REPO)
    assert visit(world, now=NOON + DAY).decision.reason == "There is no quantized file in the repo."


# figures beside the card


def test_the_file_goes_where_the_figures_come_back_into_the_card(world: World) -> None:
    opened(world, **{".quantcard.yml": b"data: file\n"})
    assert "adds `.quantcard.json` with the same figures" in body(world)
    assert decode_file(beside(world, "refs/pr/1") or b"")
    wish(world, b"data: comment\n")
    assert did(visit(world)) == "update" and beside(world, "refs/pr/1") is None
    assert decode(world.card("refs/pr/1").decode()) and "Nothing else changes." in body(world)
    assert did(visit(world)) == "nothing"


def test_a_file_that_was_merged_goes_with_the_next_pull(world: World) -> None:
    opened(world, **{".quantcard.yml": b"data: file\n"})
    world.api().merge_pull_request(REPO, 1)
    wish(world, b"data: none\n")
    assert did(visit(world, now=NOON + DAY)) == "open"
    assert beside(world, "main") and beside(world, "refs/pr/2") is None


@pytest.mark.parametrize("theirs", [b'{"mine": 1}\n', b"\xff\x00", b'{"schema": "quantcard.data", "version": 99}'])
def test_a_file_of_the_owners_with_that_name_is_left_alone(world: World, theirs: bytes) -> None:
    opened(world, **{".quantcard.yml": b"data: file\n", FILE: theirs})
    assert beside(world, "refs/pr/1") == theirs and decode(world.card("refs/pr/1").decode())
    assert "Nothing else changes." in body(world)
    wish(world, b"data: none\n")
    assert did(visit(world)) == "update" and beside(world, "refs/pr/1") == theirs
    assert did(visit(world)) == "nothing"


def test_a_dry_run_shows_the_file_that_would_go(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    opened(world, **{".quantcard.yml": b"data: file\n"})
    wish(world, b"data: none\n")
    capfd.readouterr()
    assert did(visit(world, dry_run=True)) == "update"
    out = capfd.readouterr().out
    assert f"#   {FILE}: deleted\n" in out and f"--- a/{FILE}\n+++ /dev/null\n" in out
    assert beside(world, "refs/pr/1")


# the pull's words


def test_after_a_lost_response_the_first_comment_is_brought_up_to_date(world: World) -> None:
    opened(world)
    worsen(world, 40.0)
    world.faults.drop(rf"/api/models/{REPO}/commit/refs(/|%2F)pr", method="POST")
    with pytest.raises(HubUnreachableError):
        visit(world)
    found = cards.find(world.card("refs/pr/1").decode())
    assert found and found.key not in body(world)
    assert did(visit(world)) == "nothing"
    told = PULL.search(body(world))
    assert told and told[1] == found.key
    world.faults.requests.clear()
    assert did(visit(world, now=NOON + 3600)) == "nothing"
    assert world.faults.requests.count(method="POST") == 0


def test_the_first_comment_says_what_else_changes_and_who_runs_the_bot(world: World) -> None:
    world.usual(**{".quantcard.yml": b"metadata: true\n"})
    world.follow()
    visit(world, operator="Ada <ada@example.org>", project_url="https://example.org/quantcard")
    said = body(world)
    assert "It also puts `model-index` entries into the front matter, as your `.quantcard.yml` asks for." in said
    assert "[quantcard](https://example.org/quantcard), run by Ada &lt;ada&#64;example.org&gt;." in said
    assert "never two of its pulls open here" in said and b"model-index:" in world.card("refs/pr/1")
    assert b"stddev" not in world.card("refs/pr/1").split(b"quantcard:data")[0]
    rows = [line for line in world.card("refs/pr/1").decode().splitlines() if line.startswith("| [Q8_0]")]
    # One repetition has no spread.
    assert rows and rows[0].count("±") == 3 and "Speeds: one repetition each" in world.card("refs/pr/1").decode()


# a dry run without a token


def test_without_a_token_a_dry_run_knows_our_pull_from_the_database_or_says_that_it_can_not(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    opened(world)
    worsen(world, 40.0)
    capfd.readouterr()
    assert did(visit(world, dry_run=True, hf_token="")) == "update"
    shown = capfd.readouterr()
    assert "revision='refs/pr/1'" in shown.out and "# edit_discussion_comment(" in shown.out
    assert "Without a token" not in shown.err
    lose_database(world)
    assert did(visit(world, dry_run=True, hf_token="")) == "open"
    assert "Without a token (HF_TOKEN) the Hub can't be asked for our own pulls" in capfd.readouterr().err
    assert statuses(world) == ["open"]
