"""What the doctor says of a token's rights, and of clocks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.doctor.token import Needs, judge_clock, judge_hub, judge_token, new_token_url
from bot.hub.account import Account, Answer, Scope, read_account

HUB = "https://huggingface.co"
NOW = 1_800_000_000.0
ALL = Needs(pulls=True, dataset="bot/results")
ENOUGH = Account(
    "bot", "fineGrained", token_name="publisher", everywhere=frozenset({"discussion.write"}),
    scopes=(Scope("dataset", "bot/results", frozenset({"repo.content.read", "repo.write"})),),
)  # fmt: skip


def judge(account: Account | None, needs: Needs = ALL, **more: Any) -> list[Any]:
    return judge_token(present=True, answer=Answer(HUB, account=account, **more), needs=needs, now=NOW)


def scoped(name: str, *permissions: str, kind: str = "user") -> Account:
    return replace(ENOUGH, scopes=(Scope(kind, name, frozenset(permissions)),))


def test_no_token_is_told_of_where_something_is_to_be_written() -> None:
    (found,) = judge_token(present=False, answer=Answer(HUB), needs=ALL, now=NOW)
    assert found.state == "warn" and "globalPermissions=discussion.write" in found.fix
    (found,) = judge_token(present=False, answer=Answer(HUB), needs=Needs(pulls=False), now=NOW)
    assert found.state == "ok"


def test_a_token_that_nobody_knows_is_bad_and_an_unasked_one_unknown() -> None:
    (found,) = judge(None, error="The Hub does not know this token.", refused=True)
    assert found.state == "bad"
    (found,) = judge(None, error="The Hub did not answer.")
    assert found.state == "unknown" and "did not answer" in found.found


def test_a_fine_grained_token_that_can_do_just_what_it_has_to_is_well() -> None:
    (found,) = judge(ENOUGH)
    assert found.state == "ok" and "everywhere discussion.write" in found.found and "'publisher'" in found.found
    assert judge(scoped("Bot/Results", "repo.write"))[0].state == "ok", "names differ by case only"


@pytest.mark.parametrize(
    ("account", "lacks"),
    [
        (replace(ENOUGH, everywhere=frozenset()), "discussion.write everywhere"),
        (replace(ENOUGH, scopes=()), "repo.write on the dataset bot/results"),
        (scoped("bot/other", "repo.write"), "repo.write on the dataset bot/results"),
        (scoped("bot/results", "repo.content.read"), "repo.write on the dataset"),
        (scoped("results", "repo.write"), "repo.write on the dataset"),
    ],
)
def test_what_a_token_lacks_is_bad_and_named(account: Account, lacks: str) -> None:
    (found,) = judge(account)
    assert found.state == "bad" and lacks in found.found


def test_discussions_in_ones_own_repos_are_not_enough_for_pulls_elsewhere() -> None:
    own = replace(scoped("bot", "repo.write", "discussion.write"), everywhere=frozenset())
    assert judge(own)[0].state == "bad"


@pytest.mark.parametrize(
    ("account", "more"),
    [
        (scoped("bot", "repo.write"), "repo.write on all repos of bot (bot/results is enough)"),
        (
            replace(ENOUGH, scopes=(*ENOUGH.scopes, Scope("org", "acme", frozenset({"repo.write"})))),
            "repo.write on acme",
        ),
        (replace(ENOUGH, everywhere=ENOUGH.everywhere | {"post.write"}), "post.write everywhere"),
        (scoped("bot/results", "repo.write", "user.billing.read"), "user.billing.read on bot/results"),
        (scoped("bot/results", "repo.write", "repo.future.superpower"), "repo.future.superpower"),
        (scoped("bot/results", "repo.write", "user.webhooks.write"), "user.webhooks.write"),
        (scoped("bot/results", "repo.write", "job.write"), "job.write"),
    ],
)
def test_what_a_token_can_do_beyond_its_need_is_warned_of(account: Account, more: str) -> None:
    (found,) = judge(account)
    assert found.state == "warn" and more in found.found and found.fix


def test_needs_decide_what_is_too_little_and_too_much() -> None:
    hooks = scoped("bot/results", "repo.write", "user.webhooks.write", "job.write")
    bucket = Scope("bucket", "bot/quantcard", frozenset({"repo.write"}))
    both = replace(hooks, scopes=(*hooks.scopes, bucket))
    assert judge(both, replace(ALL, webhook=True, jobs=True))[0].state == "ok"
    (found,) = judge(hooks, replace(ALL, webhook=True, jobs=True))
    assert found.state == "bad" and "repo.write on the bucket bot/quantcard" in found.found
    (found,) = judge(both, replace(ALL, webhook=True, jobs=True, namespace="lab"))
    assert found.state == "bad" and "lab/quantcard" in found.found
    (found,) = judge(ENOUGH, replace(ALL, webhook=True, jobs=True))
    assert found.state == "bad" and "user.webhooks.write" in found.found and "job.write" in found.found
    (found,) = judge(ENOUGH, Needs(pulls=False, dataset="bot/results"))
    assert found.state == "warn" and "discussion.write everywhere" in found.found


def test_a_classic_write_token_can_do_more_than_it_needs() -> None:
    orgs = (("acme", "admin"), ("lab", "write"))
    (found,) = judge(Account("bot", "write", orgs=orgs))
    assert found.state == "warn" and "every repo of bot and of 2 organisations (acme, lab)" in found.found
    assert "administrator of acme" in found.found
    assert new_token_url(HUB, ALL) in found.fix and "bot/results" in found.fix


def test_a_read_token_is_enough_for_reading_only() -> None:
    assert judge(Account("bot", "read"), Needs(pulls=False))[0].state == "ok"
    assert judge(Account("bot", "read"))[0].state == "bad"
    assert judge(Account("bot", "superuser"))[0].state == "unknown"


@pytest.mark.parametrize(
    ("expires", "says"),
    [("2027-01-16T00:00:00.000Z", "ends in"), ("2020-01-01T00:00:00+00:00", "has ended"), ("2040-01-01T00:00:00Z", ""),
     ("soon", ""), (None, "")],
)  # fmt: skip
def test_a_tokens_end_is_told_of_when_it_is_near(expires: str | None, says: str) -> None:
    found = judge(replace(ENOUGH, expires=expires))
    assert [one.state for one in found] == (["ok", "warn"] if says else ["ok"])
    assert says in found[-1].found


def test_the_hubs_answer_is_read_as_it_is_told() -> None:
    account = read_account({
        "type": "user", "name": "bot", "orgs": [{"name": "acme", "roleInOrg": "admin"}, "?"],
        "auth": {"type": "access_token", "accessToken": {
            "displayName": "publisher", "role": "fineGrained", "createdAt": "2026-07-23T10:27:03.276Z",
            "fineGrained": {"canReadGatedRepos": True, "global": ["discussion.write", "post.write"], "scoped": [
                {"entity": {"_id": "1", "type": "user", "name": "bot"}, "permissions": ["repo.write"]}, 7,
            ]},
        }},
    })  # fmt: skip
    assert account.everywhere == {"discussion.write", "post.write"} and account.reads_gated
    assert account.scopes == (Scope("user", "bot", frozenset({"repo.write"})),)
    assert account.orgs == (("acme", "admin"),)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["name", "auth", "accessToken", "fineGrained", "global", "scoped", "entity", "permissions",
                         "role", "orgs", "expiration", "displayName"]), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(_JSON)
def test_any_answer_is_an_account_or_none(told: Any) -> None:
    try:
        account = read_account(told)
    except TypeError:
        return
    found = judge_token(present=True, answer=Answer(HUB, account=account), needs=ALL, now=NOW)
    assert found and all("\n" not in one.found and "\x1b" not in one.found for one in found)


def at(offset: float, *, took: float = 0.2) -> Answer:
    """An answer of a Hub whose clock is ``offset`` seconds behind ours."""
    return Answer(HUB, date=NOW - offset, sent=NOW + 0.5 - took / 2, received=NOW + 0.5 + took / 2, took=took)


@pytest.mark.parametrize(
    ("offset", "state", "says"),
    [(0, "ok", ""), (5, "ok", ""), (60, "warn", "60.0 s ahead of"), (-60, "warn", "60.0 s behind"),
     (4000, "bad", "4000.0 s ahead")],
)  # fmt: skip
def test_the_clock_is_compared_with_the_hubs(offset: float, state: str, says: str) -> None:
    (found,) = judge_clock(at(offset), newest=NOW - 5, now=NOW)
    assert (found.state, says in found.found) == (state, True)


def test_a_slow_answer_makes_a_clock_no_worse_than_is_known() -> None:
    assert judge_clock(at(12, took=20), newest=None, now=NOW)[0].state == "ok"


def test_a_clock_that_was_set_back_shows_in_the_database() -> None:
    found = judge_clock(at(0), newest=NOW + 3 * 3600, now=NOW)
    assert [one.state for one in found] == ["bad"] and "3 hours in the future" in found[0].found


def test_a_clock_that_is_moved_meanwhile_is_told_of() -> None:
    found = judge_clock(at(0), newest=None, now=NOW, drift=-7.0)
    assert [one.state for one in found] == ["warn"] and "-7.0 s" in found[0].found


def test_without_the_hub_the_clock_is_unknown_but_the_database_still_speaks() -> None:
    assert judge_clock(Answer(HUB, error="no"), newest=None, now=NOW)[0].state == "unknown"
    assert judge_clock(Answer(HUB, error="no"), newest=NOW + 999, now=NOW)[0].state == "bad"


def test_a_hub_that_answers_no_is_there_all_the_same() -> None:
    assert judge_hub(Answer(HUB, error="who are you?", refused=True, took=0.1))[0].state == "ok"
    assert judge_hub(Answer(HUB, took=8.0))[0].state == "warn"
    (found,) = judge_hub(Answer(HUB, error="The Hub did not answer (ConnectError). Check HF_ENDPOINT."))
    assert found.state == "bad" and found.found == "The Hub did not answer (ConnectError)." and found.fix
