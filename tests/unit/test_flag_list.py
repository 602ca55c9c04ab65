"""Flags on a card: each thing once, for all files that it is true of."""

from __future__ import annotations

import json

from rows import row

from bot.publish.flag_list import flag_list
from core.dataset import DatasetRow

SAME, OTHER = {"code": "a", "detail": "The same | of all."}, {"code": "b", "detail": "Of one."}


def files(n: int, *flags: dict[str, str], start: int = 0) -> list[DatasetRow]:
    return [
        row(label=f"Q{i}", variant=f"m-Q{i}.gguf", id=f"{i:016x}", flags=json.dumps(flags))
        for i in range(start, start + n)
    ]


def test_a_flag_of_several_files_is_told_once() -> None:
    found = flag_list([*files(2, SAME, SAME), *files(1, SAME, OTHER, start=2), *files(1, start=3)], "https://hub")
    assert [one["detail"] for one in found] == ["The same | of all.", "Of one."]
    assert [one["file"].count("](https://hub/") for one in found] == [3, 1]


def test_a_flag_of_all_files_names_none_and_many_are_counted() -> None:
    [found] = flag_list(files(5, SAME), "https://hub")
    assert found["file"] == "All files"
    [found] = flag_list([*files(9, SAME), *files(1, start=9)], "https://hub")
    assert found["file"].count("](https://hub/") == 6 and found["file"].endswith(" and 3 more")
    assert flag_list(files(3), "https://hub") == []
