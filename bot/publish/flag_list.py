"""What the headers of a repo's files give to say, each thing once for all files that it is true of. Pure."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence

from markupsafe import Markup

from bot.publish.markdown import file_url, link
from core.dataset import DatasetRow

#: Files that are named of one flag; the others are counted.
_MOST_NAMED = 6


def file_link(row: DatasetRow, endpoint: str) -> Markup:
    """A row's label, leading to its file."""
    return link(row.label, file_url(endpoint, row.repo_id, row.first_file or row.variant))


def flag_list(rows: Sequence[DatasetRow], endpoint: str) -> list[dict[str, str]]:
    """Flags as ``file`` (the files in words, with links) and ``detail``, in the order of the first file of each."""
    told: dict[str, list[DatasetRow]] = defaultdict(list)
    for row in rows:
        for flag in json.loads(row.flags):
            if row not in told[flag["detail"]]:
                told[flag["detail"]].append(row)
    return [{"file": _files(found, len(rows), endpoint), "detail": detail} for detail, found in told.items()]


def _files(found: Sequence[DatasetRow], n_rows: int, endpoint: str) -> Markup:
    if len(found) == n_rows and n_rows > 2:
        return Markup("All files")
    named = Markup(", ").join(file_link(row, endpoint) for row in found[:_MOST_NAMED])
    more = len(found) - _MOST_NAMED
    return named + Markup(f" and {more} more") if more > 0 else named
