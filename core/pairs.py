"""Two variants on the same tokens: what differs, how sure that is, and the sentence that says it. Pure.

Pairing takes out what is hard or easy about the text itself, so far smaller differences show than between two
separate intervals. Chunks are the sample, as in :mod:`core.intervals`.
"""

from __future__ import annotations

import math

import numpy as np
from pydantic import Field

from core.contract import Scoring
from core.errors import NotComparableError
from core.figures import Figures, Interval
from core.format import percent
from core.intervals import mean_interval
from core.statistics import F64
from core.token_file import TokenFile, TokenMeta

#: From which p on we speak of no measurable difference.
ALPHA = 0.05
#: Fewer chunks than this can't give a p below ALPHA, whatever they hold.
FEWEST_CHUNKS = 6
#: Up to this many chunks every flip of signs is looked at.
_ALL_FLIPS = 16
_RANDOM_FLIPS = 100_000
_SEED = 20240301
#: Of a protocol, what can't move a quality figure on the same tokens and baseline, or is compared by itself.
_NO_MATTER = {
    "name", "version", "fingerprint", "corpus", "corpus_sha256", "baseline", "reference_sha256", "chunks", "scoring",
    "n_prompt", "n_gen", "n_depth", "repetitions",
}  # fmt: skip
#: Signs in one work array at most.
_CELLS = 1 << 21


class Side(Figures):
    """One of the two files; ``name`` for people, the rest to know it again."""

    name: str
    model_sha256: str | None
    environment: str | None = Field(description="fingerprint")


class Difference(Figures):
    """One figure of both, and A − B by chunk: mean, Student's 95 % interval, two-sided p of a sign-flip test."""

    a: float
    b: float
    difference: float
    interval: Interval | None = Field(description="none for a single chunk")
    p_value: float

    @property
    def measurable(self) -> bool:
        """Whether both the test and the interval rule out 0."""
        found = self.interval
        return found is not None and self.p_value < ALPHA and (found.low > 0 or found.high < 0)


class Comparison(Figures):
    """A against B. KLD and ln PPL in nats (lower: closer to the reference, less surprised), same top p a fraction."""

    a: Side
    b: Side
    scoring: Scoring
    n_chunks: int
    n_tokens: int
    kld_mean: Difference
    ln_ppl: Difference
    same_top: Difference
    notes: list[str] = Field(description="what to know besides: other machines, other settings, the same file")


def compare(a: TokenFile, b: TokenFile) -> Comparison:
    """A paired with B, chunk by chunk. Comparing B with A gives the same with all signs turned.

    Raises:
        NotComparableError: other tokens, another baseline or another scoring.
    """
    names = _names(a.meta, b.meta)
    _check_comparable(a, b, names)
    values = np.array([[_chunk_means(side, name) for name in ("kld", "nll", "same_top")] for side in (a, b)])
    by_chunk = values[0] - values[1]
    kld, ln_ppl, same_top = (
        Difference(
            a=float(both[0].mean()),
            b=float(both[1].mean()),
            difference=float(difference.mean()),
            interval=mean_interval(difference),
            p_value=p_value,
        )
        for both, difference, p_value in zip(values.swapaxes(0, 1), by_chunk, sign_flip_p(by_chunk), strict=True)
    )
    sides = [
        Side(name=name, model_sha256=side.meta.model_sha256, environment=side.meta.environment)
        for name, side in zip(names, (a, b), strict=True)
    ]
    return Comparison(
        a=sides[0],
        b=sides[1],
        scoring=a.meta.scoring,
        n_chunks=a.n_chunks,
        n_tokens=a.nll.size,
        kld_mean=kld,
        ln_ppl=ln_ppl,
        same_top=same_top,
        notes=_notes(a, b, names),
    )


def sign_flip_p(differences: F64) -> list[float]:
    """Two-sided p of each row's mean (n_figures, n_chunks) under flips of the chunks' signs.

    Were the variants equal, a chunk's difference could as well have come with the other sign. p is the share of flips
    whose mean is at least as far from 0: of all of them up to 16 chunks; beyond, of 100,000 drawn ones (the same each
    time), the true signs counted in, so that p is never 0.
    """
    n_chunks = differences.shape[1]
    # Sums that are equal but for the order of adding must count as equal.
    bound = np.abs(differences.sum(axis=1)) - 1e-12 * np.abs(differences).sum(axis=1)
    hits = np.zeros(len(differences), dtype=np.int64)
    block = max(1, _CELLS // n_chunks)
    if n_chunks <= _ALL_FLIPS:
        # A flip and its opposite are equally far: half of them will do, those that leave the last sign.
        total = 1 << (n_chunks - 1)
        for start in range(0, total, block):
            numbers = np.arange(start, min(total, start + block))
            flipped = numbers[:, None] >> np.arange(n_chunks) & 1
            hits += _as_far(flipped, differences, bound)
        return [float(count) / total for count in hits]
    # Raw words, which NumPy promises never to change: 64 signs each.
    random, words = np.random.PCG64(_SEED), -(-n_chunks // 64)
    for start in range(0, _RANDOM_FLIPS, block):
        rows = min(block, _RANDOM_FLIPS - start)
        raw = random.random_raw(rows * words).astype("<u8").view(np.uint8).reshape(rows, 8 * words)
        hits += _as_far(np.unpackbits(raw, axis=1, count=n_chunks), differences, bound)
    return [float(count + 1) / (_RANDOM_FLIPS + 1) for count in hits]


def _as_far(flipped: np.ndarray, differences: F64, bound: F64) -> np.ndarray:
    """For each figure how many of these flips (1: turned) bring its sum at least as far from 0 as ``bound``."""
    sums = (1.0 - 2.0 * flipped) @ differences.T
    return (np.abs(sums) >= bound).sum(axis=0)


def _chunk_means(tokens: TokenFile, name: str) -> F64:
    means: F64 = getattr(tokens, name).mean(axis=1, dtype=np.float64)
    return means


def _readable(name: str) -> str:
    """A name from a file, safe to print."""
    return "".join(c if c.isprintable() else "\ufffd" for c in name) or "?"


def _names(a: TokenMeta, b: TokenMeta) -> tuple[str, str]:
    one, other = _readable(a.model), _readable(b.model)
    return (f"{one} (A)", f"{other} (B)") if one == other else (one, other)


def _check_comparable(a: TokenFile, b: TokenFile, names: tuple[str, str]) -> None:
    one, other = names
    if a.meta.scoring != b.meta.scoring:
        raise NotComparableError(
            f"{one} was scored '{a.meta.scoring}', {other} '{b.meta.scoring}': their KLDs are not the same figure. "
            "Measure both the same way."
        )
    if a.n_chunks != b.n_chunks:
        raise NotComparableError(
            f"{one} was measured on {a.n_chunks} chunks, {other} on {b.n_chunks}. Measure both on the same ones."
        )
    if (a.rows_per_chunk, a.first) != (b.rows_per_chunk, b.first):
        raise NotComparableError(
            f"{one} was measured in chunks of {a.first + a.rows_per_chunk + 1} tokens, "
            f"{other} of {b.first + b.rows_per_chunk + 1}. Measure both with the same context size."
        )
    if (differ := a.token != b.token).any():
        raise NotComparableError(
            f"{one} and {other} were not measured on the same tokens ({percent(float(differ.mean()))} of them differ): "
            "the corpus or the vocabulary is another."
        )
    if not _same_baseline(a, b):
        raise NotComparableError(
            f"{one} and {other} were measured against different baselines. Measure both against the same one."
        )


def _same_baseline(a: TokenFile, b: TokenFile) -> bool:
    for name in ("baseline_sha256", "reference_sha256"):
        one, other = getattr(a.meta, name), getattr(b.meta, name)
        if one is not None and other is not None:
            return bool(one == other)
    # No hash to go by: then by what the baseline says, which another machine may round otherwise.
    return np.allclose(a.nll_base, b.nll_base, rtol=0, atol=1e-3)


def _notes(a: TokenFile, b: TokenFile, names: tuple[str, str]) -> list[str]:
    one, other = names
    notes = []
    if a.meta.model_sha256 is not None and a.meta.model_sha256 == b.meta.model_sha256:
        notes.append(f"{one} and {other} are the same model file (the same sha256).")
    if all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("nll", "kld", "same_top")):
        notes.append("Every token's figures are the same in both.")
    if a.meta.environment is None or b.meta.environment is None:
        notes.append("It is not known whether they were measured in the same environment.")
    elif a.meta.environment != b.meta.environment:
        notes.append("They were measured in different environments: part of the difference may come from there.")
    keys = (a.meta.protocol.keys() & b.meta.protocol.keys()) - _NO_MATTER
    settings = sorted(key for key in keys if a.meta.protocol[key] != b.meta.protocol[key])
    if settings:
        named = ", ".join(_readable(key) for key in settings)
        notes.append(f"They were measured with different settings ({named}): the difference is of these too.")
    return notes


def sentence(comparison: Comparison) -> str:
    """The comparison in plain words."""
    one, other = comparison.a.name, comparison.b.name
    kld, n = comparison.kld_mean, comparison.n_chunks
    chunks = chunks_text(n)
    if kld.measurable and kld.interval is not None:
        better, worse = (one, other) if kld.difference < 0 else (other, one)
        low, high = sorted((abs(kld.interval.low), abs(kld.interval.high)))
        amount, low_text, high_text = _numbers((high - low) / 2, abs(kld.difference), low, high)
        text = (
            f"{better} is closer to the reference than {worse}: its mean KLD is {amount} lower "
            f"(95 % interval {low_text} to {high_text}, {p_text(kld.p_value)}, {chunks})."
        )
        return text + _but(comparison, better)
    if kld.interval is None:
        text = f"No measurable difference: {one} and {other} were compared on {chunks} only."
    else:
        half = (kld.interval.high - kld.interval.low) / 2
        amount, low_text, high_text = _numbers(half, kld.difference, kld.interval.low, kld.interval.high)
        text = (
            f"No measurable difference: the mean KLD of {one} less that of {other} is {amount} "
            f"(95 % interval {low_text} to {high_text}, {p_text(kld.p_value)}, {chunks})."
        )
    if n < FEWEST_CHUNKS:
        least = 2.0 ** (1 - n)
        text += (
            f" With {chunks} p can't be below {least:.2g}, whatever they hold: measure on more, "
            f"at least {FEWEST_CHUNKS} and better hundreds."
        )
    return text


def _but(comparison: Comparison, better: str) -> str:
    """What speaks against the one that is closer, where that can be told."""
    top = comparison.same_top
    if not top.measurable or (top.difference > 0) == (better == comparison.a.name):
        return ""
    mine, others = (top.a, top.b) if better == comparison.a.name else (top.b, top.a)
    return f" Yet it picks the reference's top token less often: {percent(mine, 2)} against {percent(others, 2)}."


def p_text(p: float) -> str:
    """``p = 0.012``; very small ones as ``p < 0.001``."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def chunks_text(n: int) -> str:
    """``1 chunk``, ``20 chunks``."""
    return f"{n:,} chunk{'' if n == 1 else 's'}"


def number(value: float, half: float) -> str:
    """``value`` with as many decimals as give an interval's half-width two digits; an exponent below a millionth."""
    return _numbers(half, value)[0]


def _numbers(half: float, *values: float) -> list[str]:
    scale = half if half > 0 else max(map(abs, values)) / 10
    if scale == 0:
        return ["0"] * len(values)
    decimals = max(0, 1 - math.floor(math.log10(scale)))
    texts = [f"{value:.{decimals}f}" if decimals <= 7 else f"{value:.1e}" for value in values]
    return [text.lstrip("-") if float(text) == 0 else text for text in texts]
