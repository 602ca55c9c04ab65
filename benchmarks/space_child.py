"""In a process of its own: the dataset of a folder is loaded and asked, as a page would; times and sizes as JSON."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.picks import HARDWARE, TASKS, Wish
from space.data import LocalSource, Results
from space.filters import SORTS, Filters
from space.pairing import Pairing
from space.queries import Queries

QUESTIONS = 100


def main(folder: Path) -> dict[str, Any]:
    """Load, ask, and tell how long it took and how much came."""
    begun = time.perf_counter()
    results = Results(LocalSource(folder))
    results.refresh()
    if results.error:
        raise SystemExit(results.error)
    loaded = time.perf_counter() - begun
    queries, pairing = Queries(results), Pairing(results)
    models = [row.model for row in queries.models(per_page=100).rows]
    owners = [one.key for one in queries.facets().owners]
    draw = random.Random(3)
    times: dict[str, list[float]] = {}
    sizes: dict[str, int] = {}

    def ask(name: str, question: Callable[[], Any]) -> None:
        before = time.perf_counter()
        answer = question()
        times.setdefault(name, []).append(time.perf_counter() - before)
        parts = answer if isinstance(answer, list) else [answer]
        size = sum(len(part.model_dump_json().encode()) for part in parts if part is not None)
        sizes[name] = max(sizes.get(name, 0), size)

    for _ in range(QUESTIONS if models else 40):
        sort = draw.choice(["", "-"]) + draw.choice(list(SORTS))
        page = draw.choice([1, 1, 1, 2, 40])
        search = draw.choice(["", "", "q4_k_m", "unsloth model-7", "nothing like it"])
        chosen = Filters(
            search=search,
            owner=draw.choice(["", "", *owners[:3]]),
            label=draw.choice(["", "Q4_K_M"]),
            max_bytes=draw.choice([None, 12_000_000_000]),
            show=draw.choice(["all", "all", "front"]),
        )
        ask("all variants", lambda: queries.variants(chosen, sort, page))  # noqa: B023
        ask("base models", lambda: queries.models(search, draw.choice(["", "kld", "-newest"]), page))  # noqa: B023
        ask("facets", lambda: queries.facets(chosen))  # noqa: B023
        ask("plot", lambda: queries.points(chosen))  # noqa: B023
        ask("search", lambda: queries.search(search))  # noqa: B023
        if models:
            model = draw.choice(models)
            ask("model page", lambda: queries.model(model, Filters(), sort))  # noqa: B023
            ask("uploader page", lambda: queries.owner(draw.choice(owners), Filters(), sort))  # noqa: B023
            wish = Wish(draw.choice([8, 16, 24]) * 10**9, 8192, draw.choice(HARDWARE), draw.choice(TASKS))
            ask("pick for me", lambda: queries.pick(model, wish))  # noqa: B023
            found = queries.variants(Filters(model=model)).rows
            ask("measurement", lambda: queries.measurement(draw.choice(found).id))  # noqa: B023
            if len(found) > 1:
                ask("compare", lambda: pairing.compare(*(row.id for row in draw.sample(found, 2))))  # noqa: B023
    return {"loaded_s": loaded, "times_s": times, "bytes": sizes, "rows": results.snapshot.n_rows}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
