"""Verdicts: the Pareto front, ties, picks; nobody is called better within the error."""

# ruff: noqa: E501 (sentences are given as they are read)

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.verdict import CLOSE, NEAR, Candidate, closest, pareto, picks, sentence, tied


def c(label: str, size: int, kld: float, se: float = 0.0001, top: float = 0.95, ref: bool = False) -> Candidate:
    return Candidate(label, size, kld, se, top, ref)


SOME = st.lists(
    st.builds(
        c,
        st.sampled_from("ABCDEFGH"),
        st.integers(1, 6),
        st.sampled_from([0.0, 0.001, 0.005, 0.009, 0.0101, 0.02, 0.049, 0.06, 0.3]),
        st.sampled_from([0.0, 0.0001, 0.001, 0.01]),
        st.sampled_from([0.7, 0.85, 0.89, 0.93, 0.945, 0.99]),
        st.booleans(),
    ),
    max_size=7,
    unique_by=lambda one: one.label,
)


def beats(other: Candidate, one: Candidate) -> bool:
    return (other.size_bytes <= one.size_bytes and other.kld <= one.kld) and (
        other.size_bytes < one.size_bytes or other.kld < one.kld
    )


@given(SOME)
def test_the_front_is_whom_nobody_beats(some: list[Candidate]) -> None:
    assert pareto(some) == [not any(beats(other, one) for other in some) for one in some]
    front = [one for one, on in zip(some, pareto(some), strict=True) if on]
    assert bool(front) is bool(some)
    assert all(any(beats(other, one) for other in front) for one in some if one not in front)


def test_twins_are_both_on_the_front() -> None:
    assert pareto([c("A", 1, 0.1), c("B", 1, 0.1), c("C", 1, 0.2), c("D", 2, 0.1)]) == [True, True, False, False]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [(c("A", 1, 0.1, 0.01), c("B", 1, 0.1277, 0.01), True), (c("A", 1, 0.1, 0.01), c("B", 1, 0.1278, 0.01), False),
     (c("A", 1, 0.1, 0), c("B", 1, 0.1, 0), True), (c("A", 1, 0.1, 0), c("B", 1, 0.1001, 0), False)],
)  # fmt: skip
def test_ties(a: Candidate, b: Candidate, expected: bool) -> None:
    assert tied(a, b) is tied(b, a) is expected


@settings(max_examples=500)
@given(SOME)
def test_picks_keep_to_what_is_said_of_them(some: list[Candidate]) -> None:
    quants = [one for one in some if not one.is_reference]
    by_label = {one.label: one for one in quants}
    found = picks(some)
    assert bool(found) is bool(quants)
    assert len({pick.label for pick in found}) == len(found)
    for pick in found:
        one = by_label[pick.label]
        limits = {"practically the original": NEAR, "the smallest that is still close": CLOSE}.get(pick.purpose)
        if limits:
            within = [q for q in quants if q.kld <= limits[0] and q.same_top >= limits[1]]
            assert one in within and one.size_bytes == min(q.size_bytes for q in within)
        else:
            assert not any(q.kld <= CLOSE[0] and q.same_top >= CLOSE[1] for q in quants)
            least = min(quants, key=lambda q: (q.kld, q.size_bytes))
            assert one is least or tied(one, least)
            assert not any(q.size_bytes < one.size_bytes and (q is least or tied(q, least)) for q in quants)
    assert not sentence(some).endswith("..") and sentence(some).endswith((".", "):"))


@settings(max_examples=500)
@given(SOME)
def test_who_is_named_as_closer_is_measurably_closer(some: list[Candidate]) -> None:
    by_label = {one.label: one for one in some}
    for pick in picks(some):
        one = by_label[pick.label]
        words = pick.because.split()
        if "is closer still" in pick.because or "has a lower mean KLD" in pick.because:
            better = by_label[words[0]]
            assert better.kld < one.kld and not tied(better, one)
        if "can't be told" in pick.because:
            other = by_label[words[2 if words[0] == "smaller" else 0].strip(",")]
            assert tied(other, one)
        if "grows" in pick.because:
            worse = by_label[words[5].strip(",")]
            assert worse.kld > one.kld and not tied(worse, one)
        if pick.because == "no file here is measurably closer":
            assert all(tied(q, one) or q.kld > one.kld for q in some if not q.is_reference)


LADDER = [c("Q8", 8, 0.0005, top=0.99), c("Q6", 6, 0.0013, top=0.98), c("Q4", 4, 0.0090, top=0.95),
          c("Q3", 3, 0.0400, top=0.89), c("IQ3", 2, 0.0800, top=0.85), c("Q2", 1, 0.3000, top=0.70)]  # fmt: skip
FAR = c("Q2", 1, 0.3, 0.002, top=0.7)


@pytest.mark.parametrize(
    ("some", "expected"),
    [
        (LADDER, [("practically the original", "Q4", "Q8 is closer still, at 2.0 times the size"),
                  ("the smallest that is still close", "Q3", "with the next smaller file, IQ3, KLD grows 2.0-fold")]),
        ([FAR], [("the closest there is", "Q2", "none of these files stays close to the original")]),
        ([c("Q8", 8, 0.001)], [("practically the original", "Q8", "it is the only file measured here")]),
        ([c("A", 2, 0.001, 0.01), c("B", 1, 0.002, 0.01)],
         [("practically the original", "B", "no file here is measurably closer")]),
        ([c("A", 3, 0.009, 0.001), c("B", 2, 0.0101, 0.001)],
         [("practically the original", "A", "B is smaller and misses the mark, but its mean KLD can't be told from this one's"),
          ("the smallest that is still close", "B", "smaller than A, and its mean KLD can't be told from that")]),
        ([c("A", 2, 0.009, top=0.95), c("B", 1, 0.001, top=0.93)],
         [("practically the original", "A", "B has a lower mean KLD, but picks another top token more often"),
          ("the smallest that is still close", "B", "there is no smaller file")]),
        ([c("A", 2, 0.04, top=0.9), c("B", 1, 0.055, top=0.9)],
         [("the smallest that is still close", "A", "no smaller file stays close")]),
        ([c("F16", 16, 0.0, 0, 1.0, True)], []),
        ([], []),
    ],
)  # fmt: skip
def test_picks_by_hand(some: list[Candidate], expected: list[tuple[str, str, str]]) -> None:
    assert [(pick.purpose, pick.label, pick.because) for pick in picks(some)] == expected


@pytest.mark.parametrize(
    ("some", "expected"),
    [
        (LADDER, "**Q4 is the smallest file that is practically the original** (mean KLD 0.00900 ± 0.00020; it picks the "
         "same top token 95.0 % of the time). Q3 and the smaller files pick another token than the original at least one "
         "time in ten."),
        ([LADDER[0], FAR], "**Q8 is the smallest file that is practically the original** (mean KLD 0.00050 ± 0.00020; it "
         "picks the same top token 99.0 % of the time). Q2 picks another token than the original at least one time in ten."),
        ([LADDER[0]], "**Q8 is practically the original** (mean KLD 0.00050 ± 0.00020; it picks the same top token 99.0 % "
         "of the time)."),
        ([FAR], "**Q2 is not practically the original** (mean KLD 0.3000 ± 0.0039; it picks the same top token 70.0 % of "
         "the time)."),
        ([FAR, c("Q3", 2, 0.298, 0.002, 0.71)], "**No file here is practically the original.** The closest is Q2 (mean KLD "
         "0.3000 ± 0.0039; it picks the same top token 70.0 % of the time). Q3 is larger and not measurably closer."),
        ([c("F16", 16, 0.0, 0, 1.0, True)], "No quantized file of this repo has been measured."),
    ],
)  # fmt: skip
def test_sentences(some: list[Candidate], expected: str) -> None:
    assert sentence(some) == expected


def test_smaller_files_are_lumped_only_if_all_are_worse() -> None:
    some = [
        c("A", 9, 0.001),
        c("B", 4, 0.06, top=0.89),
        c("C", 3, 0.06, top=0.91),
        c("D", 2, 0.3, top=0.8),
        c("E", 1, 0.4, top=0.7),
    ]
    assert sentence(some).endswith(" B, D and E pick another token than the original at least one time in ten.")


def test_the_closest_of_equals_is_the_smallest() -> None:
    some = [c("A", 3, 0.1, 0.01), c("B", 2, 0.11, 0.01), c("C", 1, 0.2, 0.01), c("R", 9, 0.0, 0, 1.0, True)]
    best = closest(some)
    assert best is not None and best.label == "B"
    assert closest([some[-1]]) is None
