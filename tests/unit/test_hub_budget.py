"""The request budget: read from headers, kept for what is more urgent, whole again with the next window."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.hub.budget import API, FILES, RESERVE, Budget, HubBudgetError, Urgency, resource_of, urgency
from core.errors import HubRateLimitError


class Ticks:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def told(remaining: int, *, limit: int | None = 1000, seconds: int = 100, resource: str = API) -> dict[str, str]:
    headers = {"ratelimit": f'"{resource}";r={remaining};t={seconds}'}
    if limit is not None:
        headers["ratelimit-policy"] = f'"fixed window";"{resource}";q={limit};w=300'
    return headers


def allowed(budget: Budget, value: Urgency, resource: str = API) -> bool:
    try:
        with urgency(value):
            budget.check(resource, doing="a test")
    except HubBudgetError:
        return False
    return True


def test_nothing_is_known_before_the_first_answer() -> None:
    budget = Budget()
    assert all(allowed(budget, value) for value in Urgency)
    budget.note("GET", "/api/models", {})
    assert all(allowed(budget, value) for value in Urgency)
    assert budget.told() == {"windows": {}, "requests": {"api": 1}}


@pytest.mark.parametrize(
    ("remaining", "may"),
    [
        (401, {Urgency.POLL, Urgency.LOOK, Urgency.MEASURE, Urgency.PUBLISH}),
        (400, {Urgency.LOOK, Urgency.MEASURE, Urgency.PUBLISH}),
        (250, {Urgency.MEASURE, Urgency.PUBLISH}),
        (100, {Urgency.PUBLISH}),
        (1, {Urgency.PUBLISH}),
        (0, set()),
    ],
)
def test_publishing_comes_before_measuring_before_looking_before_polling(remaining: int, may: set[Urgency]) -> None:
    budget = Budget(clock=Ticks())
    budget.note("GET", "/api/models", told(remaining))
    assert {value for value in Urgency if allowed(budget, value)} == may


def test_a_window_ends_and_the_refusal_says_when() -> None:
    ticks = Ticks()
    budget = Budget(clock=ticks)
    budget.note("GET", "/api/models", told(0, seconds=42))
    with pytest.raises(HubRateLimitError, match=r"stopped the list: it is spent\. It is whole .* 42 s") as error:
        budget.check(API, doing="the list")
    assert isinstance(error.value, HubBudgetError) and error.value.seconds == 42
    assert budget.told()["windows"] == {"api": {"limit": 1000, "remaining": 0, "resets_in_s": 42}}
    ticks.now = 42.0
    assert allowed(budget, Urgency.POLL) and budget.told()["windows"] == {}


def test_files_and_the_api_are_counted_apart() -> None:
    budget = Budget(clock=Ticks())
    budget.note("GET", "/o/r/resolve/main/x.gguf", told(0, resource=FILES))
    assert not allowed(budget, Urgency.PUBLISH, FILES) and allowed(budget, Urgency.POLL, API)
    assert resource_of("/api/models/o/r") == API and resource_of("/o/r/resolve/main/x") == FILES


def test_a_limit_that_is_told_once_is_remembered() -> None:
    budget = Budget(clock=Ticks())
    budget.note("GET", "/api/models", told(900))
    budget.note("GET", "/api/models", told(300, limit=None))
    assert not allowed(budget, Urgency.POLL) and allowed(budget, Urgency.LOOK)


def test_the_urgency_ends_with_its_block() -> None:
    budget = Budget(clock=Ticks())
    budget.note("GET", "/api/models", told(1))
    with pytest.raises(HubBudgetError), urgency(Urgency.POLL):
        budget.check(API, doing="polling")
    budget.check(API, doing="publishing")


@given(st.text(max_size=60), st.text(max_size=60))
def test_whatever_the_headers_say_it_is_counted(limit: str, policy: str) -> None:
    budget = Budget()
    budget.note("GET", "/api/models", {"ratelimit": limit, "ratelimit-policy": policy})
    assert budget.requests == {"api": 1}


def test_what_is_kept_back_falls_with_urgency() -> None:
    kept = [RESERVE[value] for value in Urgency]
    assert kept == sorted(kept, reverse=True) and kept[-1] == 0
