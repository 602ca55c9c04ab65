"""Compares our figures with what llama-perplexity printed, in units of the last printed digit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

#: Decimals that llama-perplexity prints: six for most, and percent with two or three (fractions: four or five).
_DECIMALS = {"ppl_cor": 4, "delta_p": 5, "same_top": 5}


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> Iterator[tuple[str, float, float, float]]:
    """(field, ours, theirs, |difference| in units of the last printed digit) for every printed figure."""
    for name, expected in theirs.items():
        if name in ("n_chunks", "n_ctx"):
            continue
        decimals = _DECIMALS.get(name, 6)
        pairs = expected.items() if isinstance(expected, dict) else [("", expected)]
        for key, value in pairs:
            got = ours[name][key] if key else ours[name]
            # Half a unit is what rounding hides.
            units = max(0.0, abs(got - value) * 10**decimals - 0.5)
            yield (f"{name}.{key}" if key else name), got, value, units
