"""A repo's rows as the verdict's entries: with intervals, comparable speeds and memory at a context. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

from bot.publish.method import repetitions, speed_environment
from bot.publish.ranking import Ranking
from bot.publish.spread import Spread, rate
from bot.publish.verdict import Entry, Figure
from core.dataset import DatasetRow

#: Where nothing is known of the same top p: neither above nor below any limit.
_UNKNOWN = Figure(0.5, 0.0, 1.0)


def entries(ranking: Ranking, *, label: Callable[[str], str] = str) -> list[Entry]:
    """The quantized files that may be ranked together; ``label`` makes a name fit for the texts."""
    rows = [row for row, _ in ranking.ranked if not row.is_reference and math.isfinite(row.kld_mean or 0.0)]
    places = Counter(place for row in rows if (place := speed_environment(row)))
    place = min(places, key=lambda one: (-places[one], one)) if places else None
    return [_entry(row, label(row.label), timed=place is not None and speed_environment(row) == place) for row in rows]


def _entry(row: DatasetRow, label: str, *, timed: bool) -> Entry:
    spread = Spread(row)
    kld, top = spread.kld, spread.top
    assert kld is not None, "only what has a mean KLD is ranked"
    n_prompt, n_gen = (repetitions(row, prompt=prompt) for prompt in (True, False))
    return Entry(
        key=row.id,
        label=label,
        size_bytes=row.size_bytes,
        kld=kld,
        top=top or _UNKNOWN,
        tail=spread.tail,
        prompt=rate(row.pp_ts, row.pp_ts_stddev, n_prompt) if timed else None,
        gen=rate(row.tg_ts, row.tg_ts_stddev, n_gen) if timed else None,
        need=row.memory_8k_bytes,
    )
