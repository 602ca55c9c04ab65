"""How figures are written for people: sizes, intervals, percentages, speeds. Pure, plain text."""

from __future__ import annotations

import math


def size(n_bytes: int) -> str:
    """Decimal units with two or three significant digits, as the Hub shows sizes: ``2.5 MB``, ``18 GB``."""
    value = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            break
        value, unit = value / 1000, {"B": "kB", "kB": "MB", "MB": "GB", "GB": "TB"}[unit]
    return f"{value:.0f} {unit}" if unit == "B" or value >= 99.5 else f"{value:.1f} {unit}"


def with_interval(value: float, half: float, *, most: int = 5) -> str:
    """``value ± half`` with as many decimals as give the half-width two digits (at most ``most``).

    A half-width that is not a number is left out rather than shown as 0.
    """
    if not math.isfinite(half):
        return significant(value)
    if half <= 0:
        return f"{_plain(value, most)} ± {0:.{most}f}"
    decimals = min(most, max(0, 1 - math.floor(math.log10(half))))
    return f"{_plain(value, decimals)} ± {half:.{decimals}f}"


def _plain(value: float, decimals: int) -> str:
    """``decimals`` decimals and never a minus before a zero."""
    text = f"{value:.{decimals}f}"
    return text.lstrip("-") if float(text) == 0 else text


def significant(value: float, digits: int = 3) -> str:
    """``digits`` significant digits without an exponent, at most six decimals."""
    if not math.isfinite(value):
        return str(value)
    if abs(value) <= 5e-7:
        return "0"
    decimals = max(0, min(6, digits - 1 - math.floor(math.log10(abs(value)))))
    return _plain(value, decimals)


def percent(value: float, digits: int = 1) -> str:
    """A fraction as percent: ``95.0 %``."""
    return f"{_plain(100 * value, digits)} %"


def speed(value: float, spread: float | None = None) -> str:
    """Tokens per second: three digits and more without decimals, thousands set off; ± the repetitions' spread."""
    digits = 0 if value >= 99.5 else 1
    return f"{value:,.{digits}f}" + (f" ± {spread:,.{digits}f}" if spread is not None else "")


def duration(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3 h``, ``5 d``: how long something takes, roughly."""
    for unit, length, up_to in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 36)):
        if seconds / length < up_to:
            return f"{max(seconds / length, 0):.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"
