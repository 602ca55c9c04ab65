"""Which file for whom: it fits, nobody is called better within the error, and every answer says why."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from core.picks import HARDWARE, TASKS, Option, Task, Wish, choose, need, tied

GB = 10**9


def option(name: str, size_gb: float, kld: float, **more: float) -> Option:
    known = {"kld_stderr": kld / 100, "kld_p99_9": 30 * kld, "same_top": max(0.5, 1 - 0.33 * kld**0.5), "tg": None}
    size = int(size_gb * GB)
    told = {**known, "memory_8k": size + GB, "kv_bytes_per_token": 100_000, "n_ctx_train": 32_768, **more}
    return Option(id=name, name=name, size_bytes=size, kld=kld, **told)  # type: ignore[arg-type]


LADDER = [
    option("Q8_0", 8, 0.001, tg=10.0),
    option("Q6_K", 6, 0.003, tg=13.0),
    option("Q5_K_M", 5, 0.008, tg=15.0),
    option("Q4_K_M", 4, 0.025, tg=19.0),
    option("Q2_K", 2, 0.3, tg=30.0),
]


def best(task: Task, memory_gb: float, **more: int) -> str | None:
    found = choose(LADDER, Wish(int(memory_gb * GB), task=task, **more)).best
    return found.name if found else None


def test_each_task_has_its_file() -> None:
    assert best("chat", 100) == "Q5_K_M"
    assert best("code", 100) == best("closeness", 100) == "Q8_0"
    assert best("speed", 100) == "Q4_K_M", "Q2_K is faster, but no longer close"
    assert [best("closeness", memory) for memory in (9.0, 8.99, 6.5, 5.0, 3.0, 2.9)] == [
        "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q2_K", None,
    ]  # fmt: skip


def test_more_context_takes_more() -> None:
    assert need(LADDER[0], 8192) == 9 * GB
    assert need(LADDER[0], 16_384) == 9 * GB + 8192 * 104_096
    assert best("closeness", 9, n_ctx=32_768) == "Q5_K_M"
    found = choose(LADDER, Wish(100 * GB, n_ctx=65_536))
    assert found.best and any("32,768" in note for note in found.notes)


def test_of_equal_files_the_smallest() -> None:
    twin = replace(LADDER[0], id="twin", name="twin", size_bytes=7 * GB, memory_8k=8 * GB, kld=0.00101)
    found = choose([*LADDER, twin], Wish(100 * GB, task="closeness"))
    assert found.best is twin and found.equal == ("Q8_0",) and "as close" in found.because
    assert found.runner_up and found.runner_up.name == "Q8_0" and "can't be told" in found.runner_up_because


def test_nothing_fits_and_nothing_is_there() -> None:
    small = choose(LADDER, Wish(GB))
    assert small.best is None and "Q2_K" in small.because and "3.0 GB" in small.because and small.n_fit == 0
    assert "measured yet" in choose([], Wish(GB)).because


def test_without_speeds_or_shapes_it_says_so() -> None:
    bare = [replace(one, tg=None, memory_8k=None) for one in LADDER]
    found = choose(bare, Wish(100 * GB, hardware="apple", task="speed"))
    assert found.best and found.best.name == "Q4_K_M"
    assert any("No speed" in note for note in found.notes) and any("header" in note for note in found.notes)


options = st.builds(
    Option,
    id=st.uuids().map(str), name=st.text(max_size=5), size_bytes=st.integers(0, 10**12), kld=st.floats(0, 20),
    kld_stderr=st.floats(0, 1), kld_p99_9=st.none() | st.floats(0, 50), same_top=st.floats(0, 1),
    memory_8k=st.none() | st.integers(0, 10**12), kv_bytes_per_token=st.none() | st.integers(0, 10**6),
    n_ctx_train=st.none() | st.integers(0, 10**6), tg=st.none() | st.floats(0, 1000),
)  # fmt: skip
wishes = st.builds(
    Wish, st.integers(0, 10**12), st.integers(1, 10**6), st.sampled_from(HARDWARE), st.sampled_from(get_args(Task))
)


@given(st.lists(options, max_size=12), wishes)
def test_whatever_is_given_the_best_fits_and_is_not_measurably_beaten(many: list[Option], wish: Wish) -> None:
    found = choose(many, wish)
    fits = [one for one in many if need(one, wish.n_ctx) <= wish.memory_bytes]
    assert (found.best is None) == (not fits) and found.because and found.n_fit == len(fits)
    if found.best is None:
        return
    assert found.best in fits and found.runner_up is not found.best and (found.runner_up is None) == (len(fits) < 2)
    if wish.task == "closeness":
        assert all(one.kld >= found.best.kld or tied(one, min(fits, key=lambda o: o.kld)) for one in fits)


def test_every_task_has_a_rule() -> None:
    assert all(choose(LADDER, Wish(100 * GB, task=task)).best for task in TASKS)
