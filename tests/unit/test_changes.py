"""Which changes of figures are worth a comment."""

from __future__ import annotations

from typing import Any

import pytest
from rows import row, sha

from bot.publish.changes import changes, only_speeds_differ
from bot.publish.data_block import data_of, decode, encode
from core.dataset import DatasetRow

BEFORE = [row("F16"), row("Q8_0"), row("Q4_K_M"), row("Q2_K")]


def after(label: str = "Q4_K_M", **changed: Any) -> list[DatasetRow]:
    return [one.model_copy(update=changed) if one.label == label else one for one in BEFORE]


def compared(rows: list[DatasetRow]) -> Any:
    """As it is done: the old figures from the comment on the pull's card."""
    old = decode(encode(BEFORE))
    assert old is not None
    return changes(old, data_of(rows))


@pytest.mark.parametrize(
    "rows",
    [
        BEFORE,
        BEFORE[::-1],
        after(tg_ts=1.0, pp_ts=2.0, peak_memory_bytes=1),
        after(ppl_ratio=2.0, kld_p99_9=9.0),
        # 0.00861 ± 0.00020 (95 %): within both intervals, or not by 5 %.
        after(kld_mean=0.0089, kld_stderr=0.0001),
        after("Q2_K", kld_mean=0.300, kld_stderr=0.0001),
        after("F16", kld_mean=1e-7),
        after(variant_key=sha("new")),
        [*BEFORE, row("Q3_K_M", kld_mean=0.06)],
        [one for one in BEFORE if one.label != "Q2_K"],
        [*BEFORE, row("Q6_K", without="quality speed", state="failed", reason="INVALID")],
        after("Q2_K", reason="said otherwise", disputed="no"),
    ],
)
def test_what_nobody_is_told(rows: list[DatasetRow]) -> None:
    assert not compared(rows)


def test_a_mean_kld_that_moved() -> None:
    found = compared(after("Q2_K", kld_mean=0.2, variant_key=sha("new")))
    assert found and not found.advice and not found.lost
    [moved] = found.moved
    assert (moved.label, moved.before, moved.after, moved.replaced) == ("Q2_K", 0.293, 0.2, True)
    assert not compared(after("Q2_K", kld_mean=0.31, kld_stderr=0.02))
    assert compared(after("Q2_K", kld_mean=0.31, kld_stderr=0.002)).moved[0].replaced is False


def test_another_recommendation() -> None:
    found = compared([*BEFORE, row("IQ4_XS", kld_mean=0.0084)])
    [advice] = found.advice
    assert (advice.purpose, advice.before, advice.after) == ("practically the original", "Q4_K_M", "IQ4_XS")
    none = compared([one for one in BEFORE if one.label in ("F16", "Q2_K")])
    assert {(a.purpose, a.before, a.after) for a in none.advice} == {
        ("practically the original", "Q4_K_M", None),
        ("the closest there is", None, "Q2_K"),
    }


def test_a_file_that_can_not_be_measured_any_more() -> None:
    broken = row("Q2_K", without="quality speed", state="failed", reason="INVALID: NaN.")
    assert compared([*BEFORE[:3], broken]).lost == ("Q2_K",)


def test_other_ground_is_one_reason_and_no_list() -> None:
    for changed in ({"protocol_fingerprint": sha("p")}, {"reference_key": sha("r")}):
        found = compared([one.model_copy(update=changed | {"kld_mean": 9.0}) for one in BEFORE])
        assert found.other_ground and not found.moved and not found.advice


def test_figures_that_were_cut_for_want_of_room_recommend_nothing() -> None:
    old = decode(encode(BEFORE, limit=1_500))
    assert old is not None and old.left_out
    assert not changes(old, data_of([*BEFORE, row("IQ4_XS", kld_mean=0.0084)])).advice


@pytest.mark.parametrize(
    ("rows", "same"),
    [
        (BEFORE, True),
        (after(tg_ts=1.0, pp_ts=2.0, tg_ts_stddev=0.5, peak_memory_bytes=1), True),
        (after(kld_mean=0.0087), False),
        (after(variant_key=sha("new")), False),
        (after(state="failed"), False),
        ([*BEFORE, row("Q3_K_M")], False),
        (BEFORE[1:], False),
    ],
)
def test_speeds_alone_are_no_reason_for_a_new_pull(rows: list[DatasetRow], same: bool) -> None:
    old, new = decode(encode(BEFORE)), decode(encode(rows))
    assert old is not None and new is not None and only_speeds_differ(old, new) is same
