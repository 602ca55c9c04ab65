"""What a file takes in memory at a context, estimated from its header as for the queue (:mod:`core.sizes`). Pure."""

from __future__ import annotations

import json
from functools import lru_cache

from pydantic import ValidationError

from core.dataset import DatasetRow
from core.inspection import Inspection
from core.protocol import WIKITEXT2_TEST, Protocol
from core.sizes import estimate


@lru_cache(maxsize=512)
def _read(text: str) -> Inspection | None:
    try:
        # Flags have a column of their own.
        found: Inspection = Inspection.model_validate({"flags": [], **json.loads(text)})
    except (ValidationError, TypeError, ValueError):
        return None
    return found


def inspection_of(row: DatasetRow) -> Inspection | None:
    """What its header holds; None where no header was read, or an older quantcard stored another shape of it."""
    return _read(row.inspection_json) if row.inspection_json else None


def memory_at(row: DatasetRow, n_ctx: int) -> int | None:
    """Bytes of weights, f16 KV cache and buffers with everything on one device; None where the header tells no shape.

    Whoever measures takes more: the baseline and the measuring process itself are left out.
    """
    found = inspection_of(row)
    if found is None or found.shape is None:
        return None
    need = estimate(found, Protocol(corpus=WIKITEXT2_TEST, n_prompt=n_ctx, n_gen=0), "speed", on_gpu=True)
    return need.weights + need.kv_cache + need.logits + need.compute
