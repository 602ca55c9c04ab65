"""What stands out among a model's files, and what two runs agree on."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.outliers import agree, stands_out

#: bits per weight and mean KLD of a common ladder of quants.
LADDER = [(8.5, 0.0009), (6.56, 0.003), (5.67, 0.008), (4.83, 0.02), (3.9, 0.06), (2.96, 0.2)]


@pytest.mark.parametrize(
    ("bpw", "kld", "found"),
    [
        (4.5, 0.027, None),
        (4.5, 0.05, None),
        (4.5, 0.0005, "low"),
        (4.5, 0.0, "low"),
        (4.5, 3.0, "high"),
        (6.5, 0.5, "high"),
        (2.1, 0.7, None),
    ],
)
def test_what_the_bits_do_not_explain_stands_out(bpw: float, kld: float, found: str | None) -> None:
    assert stands_out(bpw, kld, LADDER) == found
    # One odd one among the others changes nothing.
    assert stands_out(bpw, kld, [*LADDER, (5.0, 4.0)]) == found


@given(st.lists(st.tuples(st.floats(1, 9), st.floats(0, 5)), max_size=3), st.floats(1, 9), st.floats(0, 5))
def test_few_others_say_nothing(others: list[tuple[float, float]], bpw: float, kld: float) -> None:
    assert stands_out(bpw, kld, others) is None


@given(st.lists(st.tuples(st.floats(1, 9), st.floats(0, 5)), max_size=12), st.floats(1, 9), st.floats(0, 5))
def test_order_does_not_matter(others: list[tuple[float, float]], bpw: float, kld: float) -> None:
    assert stands_out(bpw, kld, others) == stands_out(bpw, kld, others[::-1])


@given(st.floats(1e-6, 5), st.floats(0, 0.1))
def test_a_run_agrees_with_itself_and_not_with_twice_it(kld: float, share: float) -> None:
    stderr = share * kld
    assert agree(kld, stderr, kld, stderr)
    assert not agree(kld, 0.0, 2 * kld, 0.0) and not math.isnan(kld)
