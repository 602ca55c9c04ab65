"""How sure a row's figures are: their 95 % intervals, by chunk where those were stored, else from llama.cpp's ±. Pure.

Tokens of one chunk are correlated, so that the ± of llama-perplexity, which takes them for independent, is too narrow.
"""

from __future__ import annotations

import json
import math
from typing import Any

from bot.publish.verdict import Figure, Rate
from core.dataset import DatasetRow
from core.intervals import t_quantile
from core.verdict import Z95


class Spread:
    """The intervals of one row's figures; None where it has not the figure."""

    def __init__(self, row: DatasetRow) -> None:
        self._row = row
        stored = json.loads(row.quality_json) if row.quality_json else {}
        found = stored.get("intervals") if isinstance(stored, dict) else None
        self._chunks: dict[str, Any] = found if isinstance(found, dict) else {}

    @property
    def by_chunk(self) -> bool:
        """Whether they are by chunk."""
        return bool(self._chunks)

    @property
    def kld(self) -> Figure | None:
        """Mean KLD, nats."""
        return self._figure(self._row.kld_mean, "kld_mean", self._row.kld_stderr)

    @property
    def tail(self) -> Figure | None:
        """99.9 % KLD, nats; None also where its interval is not known."""
        value = self._row.kld_p99_9
        return None if value is None or "kld_p99_9" not in self._chunks else self._figure(value, "kld_p99_9", None)

    @property
    def top(self) -> Figure | None:
        """Same top p, a fraction; where no error was stored, that of so many draws."""
        value, n_tokens = self._row.same_top, self._row.n_tokens
        stderr = self._row.same_top_stderr
        if stderr is None and value is not None and n_tokens:
            stderr = math.sqrt(max(value * (1 - value), 0.0) / n_tokens)
        return self._figure(value, "same_top", stderr)

    @property
    def ppl_ratio(self) -> Figure | None:
        """PPL ratio."""
        value = self._row.ppl_ratio
        found = self._chunks.get("ln_ppl_ratio")
        if value is None or found is None or not value > 0:
            return self._figure(value, "", self._row.ppl_ratio_stderr)
        # By chunk the interval is one of the logarithm, of a comparison that the base file may clip: its width counts.
        half = (found["high"] - found["low"]) / 2
        return Figure(value, value * math.exp(-half), value * math.exp(half))

    def _figure(self, value: float | None, name: str, stderr: float | None) -> Figure | None:
        if value is None or not math.isfinite(value):
            return None
        if found := self._chunks.get(name):
            return Figure(value, min(found["low"], value), max(found["high"], value))
        return around(value, stderr)


def around(value: float | None, stderr: float | None) -> Figure | None:
    """A figure with the interval that its standard error makes; without one, of no width."""
    if value is None or not math.isfinite(value):
        return None
    half = Z95 * (stderr or 0.0)
    return Figure(value, value - half, value + half)


def rate(value: float | None, spread: float | None, n: int) -> Rate | None:
    """A speed with Student's 95 % interval over ``n`` repetitions; without an error for fewer than two."""
    if value is None or not math.isfinite(value):
        return None
    if n < 2 or spread is None or not math.isfinite(spread):
        return Rate(value, None)
    return Rate(value, t_quantile(n - 1) * spread / math.sqrt(n))
