"""Which file for this memory, context, machine and task, why, and what comes next. Pure; ties are honoured.

All options must be comparable: one base model, protocol and baseline. Nobody is called better within the error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from core.format import percent, significant, size, speed
from core.verdict import CLOSE, NEAR, Z95

#: ``chat``: the smallest file that is practically the original; ``code``: the fewest bad surprises (99.9 % KLD), as
#: where one wrong token breaks the answer; ``speed``: the fastest that is still close; ``closeness``: the closest.
Task = Literal["chat", "code", "speed", "closeness"]
#: Where the file is to run. Speeds are those measured on such a machine.
Hardware = Literal["any", "cpu", "gpu", "apple"]
TASKS: tuple[Task, ...] = get_args(Task)
HARDWARE: tuple[Hardware, ...] = get_args(Hardware)

#: Bytes of masks that each token of context takes beside the cache, at llama.cpp's default micro-batch of 512.
_MASKS_PER_TOKEN = 4096
#: Where the header told no shape: buffers and cache as a share of the file, as the queue's estimate takes them.
_BLIND = 0.25
#: Speeds closer than this share are never called different, nor are 99.9 % KLDs: loading anew moves the first as
#: much, and the second comes of few tokens.
SAME_SPEED, SAME_TAIL = 0.02, 0.05


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody has and wants: bytes of memory, tokens of context."""

    memory_bytes: int
    n_ctx: int = 8192
    hardware: Hardware = "any"
    task: Task = "chat"


@dataclass(frozen=True, slots=True)
class Option:
    """A measured quantized file. KLD in nats; ``tg``: tokens/s generated on the hardware wished for, if measured.

    ``memory_8k``: estimated bytes at 8,192 tokens; None where its header told no shape.
    """

    id: str
    name: str
    size_bytes: int
    kld: float
    kld_stderr: float
    kld_p99_9: float | None
    same_top: float
    memory_8k: int | None = None
    kv_bytes_per_token: int | None = None
    n_ctx_train: int | None = None
    tg: float | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """The answer: ``best`` and ``runner_up`` may be None, the sentences say why.

    ``equal``: names of other files that fit and can't be told from the best by the figure that decided.
    """

    best: Option | None
    because: str
    runner_up: Option | None
    runner_up_because: str
    need_bytes: int | None
    equal: tuple[str, ...]
    n_fit: int
    notes: tuple[str, ...]


def need(option: Option, n_ctx: int) -> int:
    """Estimated bytes to run a file with so much context and everything on one device."""
    if option.memory_8k is None:
        return int(option.size_bytes * (1 + _BLIND * max(1.0, n_ctx / 8192)))
    return option.memory_8k + (n_ctx - 8192) * ((option.kv_bytes_per_token or 0) + _MASKS_PER_TOKEN)


def choose(options: Sequence[Option], wish: Wish) -> Choice:
    """The best file for a wish. Of files that can't be told apart the smallest is taken."""
    notes = []
    enough = [one for one in options if not one.n_ctx_train or one.n_ctx_train >= wish.n_ctx]
    if len(enough) < len(options):
        most = max(one.n_ctx_train or 0 for one in options)
        notes.append(f"The model was trained on {most:,} tokens of context, fewer than the {wish.n_ctx:,} asked for.")
    fits = sorted((one for one in options if need(one, wish.n_ctx) <= wish.memory_bytes), key=_by_size)
    if not fits:
        return _nothing(options, wish, notes)
    if any(one.memory_8k is None for one in fits):
        notes.append("Of some files the header did not tell the cache: a quarter of their size is reckoned for it.")
    best, equal, because = _RULES[wish.task](fits)
    rest = [one for one in fits if one is not best]
    runner_up, why_next = None, "No other measured file fits."
    if rest:
        runner_up, _, _ = _RULES[wish.task](rest)
        why_next = _beside(runner_up, best)
    if wish.task == "speed" and best.tg is None:
        notes.append("No speed was measured on such a machine: the smallest file is taken for the fastest.")
    return Choice(
        best=best,
        because=because,
        runner_up=runner_up,
        runner_up_because=why_next,
        need_bytes=need(best, wish.n_ctx),
        equal=tuple(one.name for one in equal if one is not best),
        n_fit=len(fits),
        notes=tuple(notes),
    )


def _nothing(options: Sequence[Option], wish: Wish, notes: Sequence[str]) -> Choice:
    if not options:
        text = "No quantized file of this model has been measured yet."
    else:
        least = min(options, key=lambda one: need(one, wish.n_ctx))
        text = (
            f"None of the {len(options):,} measured files fits into {size(wish.memory_bytes)} at {wish.n_ctx:,} tokens "
            f"of context: the smallest, {least.name}, needs about {size(need(least, wish.n_ctx))}."
        )
    return Choice(None, text, None, "", None, (), 0, tuple(notes))


def _by_size(one: Option) -> tuple[int, float, str]:
    return one.size_bytes, one.kld, one.id


def tied(a: Option, b: Option) -> bool:
    """Whether two mean KLDs can't be told apart, as :func:`core.verdict.tied`."""
    return abs(a.kld - b.kld) <= Z95 * (a.kld_stderr**2 + b.kld_stderr**2) ** 0.5


def _within(one: Option, limits: tuple[float, float]) -> bool:
    return one.kld <= limits[0] and one.same_top >= limits[1]


_Ruled = tuple[Option, list[Option], str]


def _closest(fits: Sequence[Option]) -> _Ruled:
    least = min(fits, key=lambda one: one.kld)
    equal = [one for one in fits if one is least or tied(one, least)]
    best = equal[0]
    text = f"it has the lowest mean KLD of the files that fit, {significant(best.kld)}"
    if best is not least:
        text = (
            f"no file that fits is measurably closer, and of those that are as close ({len(equal)}) it is the smallest"
        )
    return best, equal, text


def _chat(fits: Sequence[Option]) -> _Ruled:
    near = [one for one in fits if _within(one, NEAR)]
    if not near:
        best, equal, text = _closest(fits)
        return best, equal, f"no file that fits is practically the original; {text}"
    best = near[0]
    equal = [one for one in near if tied(one, best)]
    return (
        best,
        equal,
        f"it is the smallest file that is practically the original: mean KLD {significant(best.kld)}, the same top "
        f"token {percent(best.same_top)} of the time",
    )


def _code(fits: Sequence[Option]) -> _Ruled:
    known = [one for one in fits if one.kld_p99_9 is not None]
    if not known:
        best, equal, text = _closest(fits)
        return best, equal, f"no 99.9 % KLD is known here; {text}"
    least = min(one.kld_p99_9 or 0.0 for one in known)
    equal = [one for one in known if (one.kld_p99_9 or 0.0) <= least * (1 + SAME_TAIL)]
    best = equal[0]
    return (
        best,
        equal,
        f"one token in a thousand is off by more than {significant(best.kld_p99_9 or 0.0)} nats, the least of the "
        "files that fit",
    )


def _speed(fits: Sequence[Option]) -> _Ruled:
    close = [one for one in fits if _within(one, CLOSE)]
    if not close:
        best, equal, text = _closest(fits)
        return best, equal, f"no file that fits stays close to the original; {text}"
    timed = [one for one in close if one.tg is not None]
    if not timed:
        return close[0], close[:1], "it is the smallest file that is still close to the original"
    most = max(one.tg or 0.0 for one in timed)
    fast = [one for one in timed if (one.tg or 0.0) >= most * (1 - SAME_SPEED)]
    # Of files as fast as each other, the closest; of those, the smallest.
    best, _, _ = _closest(fast)
    return best, fast, f"it generates {speed(best.tg or 0.0)} tokens/s, and no file that is still close is faster"


_RULES: dict[Task, Callable[[Sequence[Option]], _Ruled]] = {
    "chat": _chat,
    "code": _code,
    "speed": _speed,
    "closeness": _closest,
}


def _beside(other: Option, best: Option) -> str:
    """What the runner-up is beside the best, as a sentence."""
    share = other.size_bytes / best.size_bytes if best.size_bytes else 1.0
    if 0.995 <= share <= 1.005:
        how = "as large"
    else:
        how = f"{abs(share - 1):.0%} {'larger' if share > 1 else 'smaller'}"
    if tied(other, best):
        return f"It is {how}, and its mean KLD can't be told from that of {best.name}."
    closer = "closer to the original" if other.kld < best.kld else "further from the original"
    return f"It is {how} and measurably {closer}: mean KLD {significant(other.kld)} against {significant(best.kld)}."
