"""Whether the Hub is away, or only fails at one thing: then that is put off and the others go on. Pure."""

from __future__ import annotations

#: Different things in a row that fail before the Hub counts as away.
MOST = 3
#: Seconds until something is tried again for which the Hub gave no answer, and for which it gave a bad one.
NO_ANSWER_S, REFUSED_S = 300.0, 3600.0
#: No wait is longer.
LONGEST_S = 86_400.0


class Patience:
    """Counts failures in a row."""

    def __init__(self) -> None:
        self._row = 0

    def failed(self) -> bool:
        """Count a failure; whether the Hub is away."""
        self._row += 1
        return self._row >= MOST

    def well(self) -> None:
        """Something went well."""
        self._row = 0


def wait(tries: int, *, first: float) -> float:
    """Seconds until the next try, after ``tries`` (from 0) that failed: doubled each time."""
    return float(min(first * 2 ** min(tries, 20), LONGEST_S))
