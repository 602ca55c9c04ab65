"""The verdict: what picks promise, whatever the figures; nobody wins within the error or against another metric."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from situations import situations

from bot.publish.contest import Field, in_field, no_pairs, sign, slower, within
from bot.publish.entries import entries
from bot.publish.ranking import in_order, rank
from bot.publish.verdict import CONTEXT, MEMORY_GB, Entry, Figure, Pick, Rate, closest, verdict
from core.verdict import CLOSE, NEAR

GB = 10**9


def around(value: float, half: float) -> Figure:
    return Figure(value, value - half, value + half)


def file(
    key: str, size: float, kld: float, half: float = 0.0002, *, top: float = 0.95, top_half: float = 0.001,
    tail: float | None = None, gen: float | None = None, gen_half: float | None = 0.1, prompt: float | None = None,
    need: float | None = None,
) -> Entry:  # fmt: skip
    return Entry(
        key,
        key,
        round(size * GB),
        around(kld, half),
        around(top, top_half),
        around(tail, tail / 20) if tail is not None else None,
        Rate(prompt, 1.0) if prompt is not None else None,
        Rate(gen, gen_half) if gen is not None else None,
        round(need * GB) if need is not None else None,
    )


KLDS = [0.0, 0.001, 0.005, 0.0095, 0.0101, 0.02, 0.049, 0.0502, 0.06, 0.3]
ENTRY = st.builds(
    file,
    st.just(""),
    st.integers(1, 30),
    st.sampled_from(KLDS),
    st.sampled_from([0.0, 0.0002, 0.002, 0.02]),
    top=st.sampled_from([0.7, 0.85, 0.879, 0.881, 0.93, 0.94, 0.99]),
    top_half=st.sampled_from([0.0, 0.002, 0.02]),
    tail=st.none() | st.sampled_from([0.01, 0.1, 1.0, 4.0]),
    gen=st.none() | st.sampled_from([30.0, 60.0, 60.5, 90.0]),
    gen_half=st.none() | st.sampled_from([0.1, 2.0]),
    prompt=st.none() | st.sampled_from([1000.0, 4000.0]),
    need=st.none() | st.integers(2, 60),
)
SOME = st.lists(ENTRY, max_size=7).map(
    lambda found: [replace(one, key=f"F{at}", label=f"F{at}") for at, one in enumerate(found)]
)


def of_kind(picks: tuple[Pick, ...], kind: str) -> list[Pick]:
    return [one for one in picks if one.kind == kind]


@settings(max_examples=400, deadline=None)
@given(SOME, st.randoms())
def test_order_does_not_matter(some: list[Entry], rng: object) -> None:
    mixed = list(some)
    rng.shuffle(mixed)  # type: ignore[attr-defined]
    assert verdict(mixed) == verdict(some)


@settings(max_examples=600, deadline=None)
@given(SOME)
def test_a_file_that_is_worse_in_everything_changes_no_pick(some: list[Entry]) -> None:
    """Larger, farther, slower and hungrier than any, beyond every error."""
    if not some:
        return
    worse = Entry("W", "W", 40 * GB, around(9.0, 0.1), around(0.1, 0.01), around(40.0, 0.1), Rate(1.0, 0.01),
                  Rate(0.1, 0.001), 70 * GB)  # fmt: skip
    before, after = verdict(some), verdict([*some, worse])
    assert [(one.kind, one.purpose, one.files) for one in after.picks] == [
        (one.kind, one.purpose, one.files) for one in before.picks
    ]


@settings(max_examples=600, deadline=None)
@given(SOME)
def test_who_wins_alone_beats_all_others(some: list[Entry]) -> None:
    by_key = {one.key: one for one in some}
    field = in_field(some, no_pairs)
    for pick in verdict(some).picks:
        files = [by_key[key] for key in pick.files]
        assert [one.size_bytes for one in files] == sorted(one.size_bytes for one in files)
        if pick.kind in ("closest", "memory") and len(files) == 1:
            among = some
            if pick.kind == "memory":
                least = int("".join(c for c in pick.purpose.split("GB")[0].split(" to ")[0] if c.isdigit()))
                among = [one for one in some if one.need is not None and one.need <= least * GB]
            assert all(field.beats(files[0], one) for one in among if one is not files[0])
        if pick.kind == "fastest":
            timed = [one for one in some if one.gen and within(one, CLOSE) == "yes"]
            best = max(timed, key=lambda one: one.gen.value if one.gen else 0)
            assert all(one.gen and one.gen.half is not None for one in timed) and len(timed) > 1
            assert {one.key for one in timed if one.gen and best.gen and not slower(one.gen, best.gen)} == {*pick.files}


@settings(max_examples=600, deadline=None)
@given(SOME)
def test_twins_never_make_a_winner(some: list[Entry]) -> None:
    """A second file with any pick's figures, but for its name, is named beside it."""
    for pick in verdict(some).picks:
        if not pick.files:
            continue
        twin = replace(next(one for one in some if one.key == pick.files[0]), key="T", label="T")
        again = next(one for one in verdict([*some, twin]).picks if one.purpose == pick.purpose)
        assert {pick.files[0], "T"} <= {*again.files} and len(again.files) > 1


@settings(max_examples=400, deadline=None)
@given(SOME)
def test_thresholds_are_kept_with_the_whole_interval(some: list[Entry]) -> None:
    by_key = {one.key: one for one in some}
    picks = verdict(some).picks
    for kind, limits in (("near", NEAR), ("close", CLOSE)):
        sure = [one for one in some if within(one, limits) == "yes"]
        for pick in of_kind(picks, kind):
            for key in pick.files:
                one = by_key[key]
                assert one.kld.high <= limits[0] and one.top.low >= limits[1]
                assert one.size_bytes == min(other.size_bytes for other in sure)
        if kind == "near":
            assert bool(of_kind(picks, kind)) is bool(sure)
    assert bool(of_kind(picks, "closest")) is (bool(some) and not any(within(one, CLOSE) == "yes" for one in some))
    fits = {one.key: one.need for one in some}
    for pick in of_kind(picks, "memory"):
        assert all(fits[key] is not None for key in pick.files)


def test_metrics_that_disagree_are_told_and_nobody_is_called_better() -> None:
    some = [
        file("A", 5.0, 0.0241, 0.0005, tail=0.71, top=0.92, need=7),
        file("B", 4.8, 0.0268, 0.0005, tail=0.39, top=0.927, need=6.8),
    ]
    found = verdict(some)
    assert "metrics disagree on A and B" in found.sentence and "neither is called better" in found.sentence
    [memory] = of_kind(found.picks, "memory")
    assert memory.files == ("B", "A") and "mean KLD favours A" in memory.because and "99.9 % KLD B" in memory.because
    agreeing = verdict([some[0], replace(some[1], tail=around(0.9, 0.02), top=around(0.91, 0.001))])
    assert "disagree" not in agreeing.sentence
    assert [one.files for one in of_kind(agreeing.picks, "memory")] == [("A",)]


def test_the_same_tokens_tell_more_than_two_intervals() -> None:
    some = [file("A", 3, 0.1, 0.01, need=5), file("B", 2, 0.105, 0.01, need=4)]
    assert of_kind(verdict(some).picks, "closest")[0].files == ("B", "A")

    def pairs(one: str, other: str) -> int:
        return -1 if (one, other) == ("A", "B") else 1

    assert of_kind(verdict(some, pairs=pairs).picks, "closest")[0].files == ("A",)
    assert closest(some).key == "B" and closest(some, pairs=pairs).key == "A"


def test_memory_says_what_fits() -> None:
    some = [file("L", 20, 0.001, need=22), file("M", 9, 0.02, top=0.93, need=11), file("S", 5, 0.3, top=0.7, need=9)]
    told = [(one.purpose, one.files, one.because) for one in of_kind(verdict(some).picks, "memory")]
    assert told == [
        ("the closest for 8 GB of memory", (), f"S needs least: 9.0 GB with {CONTEXT:,} tokens of context"),
        ("the closest for 12 to 16 GB", ("M",), f"needs 11.0 GB with {CONTEXT:,} tokens of context"),
        ("the closest for 24 GB of memory or more", ("L",), "every file here fits"),
    ]
    [only] = of_kind(verdict([some[2]]).picks, "memory")[1:]
    assert "not good enough" in only.because and MEMORY_GB[0] == 8


@pytest.mark.parametrize(
    ("speeds", "files"),
    [
        ({"A": (60.0, 0.1), "B": (60.5, 0.1)}, ("B", "A")),  # within 2 %
        ({"A": (60.0, 0.1), "B": (66.0, 0.1)}, ("B",)),
        ({"A": (60.0, 5.0), "B": (66.0, 5.0)}, ("B", "A")),
        ({"A": (60.0, None), "B": (66.0, 0.1)}, None),
    ],
)
def test_the_fastest(speeds: dict[str, tuple[float, float | None]], files: tuple[str, ...] | None) -> None:
    some = [
        file(key, 5 - at, 0.005, gen=gen, gen_half=half) for at, (key, (gen, half)) in enumerate(speeds.items())
    ] + [file("far", 1, 0.3, top=0.7, gen=500.0)]
    assert [one.files for one in of_kind(verdict(some).picks, "fastest")] == ([files] if files else [])


@pytest.mark.parametrize(
    ("some", "says"),
    [
        ([], "No quantized file of this repo has been measured."),
        ([file("A", 1, 0.005)], "**A is practically the original** (mean KLD 0.00500 ± 0.00020; it picks the same "),
        ([file("A", 1, 0.02)], "**A is good enough, but not practically the original** ("),
        ([file("A", 1, 0.01, 0.001)], "**A is good enough, and may be practically the original** ("),
        ([file("A", 1, 0.05, 0.001)], "**Whether A is good enough can't be told** ("),
        ([file("A", 1, 0.5)], "**A is not close to the original** ("),
        ([file("A", 2, 0.005), file("B", 1, 0.02)], "**B is the smallest file that is good enough** (0.02000 ± 0.00"),
        ([file("A", 2, 0.3), file("B", 1, 0.5)], "**No file here is close to the original.** The closest is A ("),
        ([file("A", 2, 0.3, 0.1), file("B", 1, 0.31, 0.1)], "The closest are B and A, which can't be told apart (B: "),
    ],
)  # fmt: skip
def test_sentences(some: list[Entry], says: str) -> None:
    assert says in verdict(some).sentence


@settings(max_examples=300, deadline=None)
@given(SOME)
def test_comparisons_turn_round(some: list[Entry]) -> None:
    field = Field(some, no_pairs)
    for a in some:
        for b in some:
            assert sign(a.kld, b.kld) == -sign(b.kld, a.kld)
            assert not (field.beats(a, b) and field.beats(b, a))


@pytest.mark.parametrize("name", situations())
def test_nobody_is_recommended_who_may_not_be_ranked(name: str) -> None:
    rows = in_order(situations()[name])
    ranked = {row.id for row, c in rank(rows).ranked if not c.is_reference}
    for pick in verdict(entries(rank(rows))).picks:
        assert {*pick.files} <= ranked
