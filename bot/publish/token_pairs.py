"""What the kept tokens of two files say of their KLDs, chunk by chunk: the paired test of :mod:`core.pairs`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from bot.publish.contest import Pairs, no_pairs
from core.dataset import DatasetRow
from core.errors import TokenFileError
from core.intervals import mean_interval
from core.pairs import ALPHA, sign_flip_p
from core.statistics import F64
from core.token_file import read_tokens

#: From here on (sum of differences)² / (sum of their squares) leaves no p above 0.05, whatever the flips, by
#: Hoeffding's bound 2 exp(-x / 2).
_SURE = 7.4


@dataclass(frozen=True, slots=True, eq=False)
class _Means:
    """Mean KLD of each chunk, and what must be equal for a comparison."""

    kld: F64
    same: tuple[object, ...]


@lru_cache(maxsize=4096)
def _means(path: Path, _size: int, _changed: int) -> _Means | None:
    try:
        found = read_tokens(path)
    except TokenFileError:
        return None
    against = found.meta.baseline_sha256 or found.meta.reference_sha256
    if against is None:
        return None
    tokens = hashlib.sha256(found.token.tobytes()).hexdigest()
    return _Means(found.kld.mean(axis=1, dtype="float64"), (found.meta.scoring, found.first, found.nll.shape, tokens,
                                                            against))  # fmt: skip


def token_pairs(folder: Path | None, rows: Sequence[DatasetRow]) -> Pairs:
    """The comparison by row ids, from the sidecars in ``folder`` (None: none are kept).

    A sidecar that is not there, is damaged or measured otherwise gives None: then the intervals decide.
    """
    if folder is None:
        return no_pairs
    paths = {row.id: path for row in rows if (path := _path(row, folder)) is not None}
    known: dict[tuple[str, str], int | None] = {}

    def compare(one: str, other: str) -> int | None:
        if one > other:
            turned = compare(other, one)
            return None if turned is None else -turned
        if (one, other) not in known:
            known[one, other] = _compared(paths.get(one), paths.get(other))
        return known[one, other]

    return compare


def _path(row: DatasetRow, folder: Path) -> Path | None:
    stored = json.loads(row.quality_json).get("tokens_path") if row.quality_json else None
    return folder / Path(stored).name if isinstance(stored, str) and Path(stored).name else None


def _compared(one: Path | None, other: Path | None) -> int | None:
    if one is None or other is None:
        return None
    try:
        found = [_means(path, (at := path.stat()).st_size, at.st_mtime_ns) for path in (one, other)]
    except OSError:
        return None
    a, b = found
    return None if a is None or b is None or a.same != b.same else paired_sign(a.kld - b.kld)


def paired_sign(differences: F64) -> int:
    """-1: the first is measurably lower, 1: higher, 0: neither; of differences by chunk (n_chunks,)."""
    interval = mean_interval(differences)
    if interval is None or interval.low <= 0 <= interval.high:
        return 0
    sign = -1 if interval.high < 0 else 1
    squares = float((differences**2).sum())
    if squares and float(differences.sum()) ** 2 / squares >= _SURE:
        return sign
    return sign if sign_flip_p(differences[None, :])[0] < ALPHA else 0
