"""Whether the text that a variant's importance matrix was made from is the one that it is measured on."""

from __future__ import annotations

import re
from collections.abc import Sequence

from core.inspection import Flag, Inspection
from core.protocol import CORPUS_SOURCES, WIKITEXT2_TEST, Corpus, Source

#: llama.cpp keeps strings of its own making in a header to this many bytes.
_CUT = 127
_OTHER_SPLITS = frozenset({"train", "training", "trn", "valid", "validation", "val", "dev", "calib", "calibration"})
#: Words beside 'wiki' and 'test' that make no other text of it.
_PLAIN = frozenset(
    {"wiki", "wikitext", "wikitest", "test", "raw", "v", "tokens", "txt", "text", "md", "gz", "zip", "parquet", "arrow"}
    | {"json", "jsonl", "of", "split", "en", "full"}
)


def overlap_flag(found: Inspection, corpus: Corpus, source: Source | None = None) -> Flag | None:
    """A flag when the text that a variant's imatrix was made from looks like the one that it is measured on.

    The header holds a name only (a path as somebody typed it, perhaps cut short), so this goes by names: the corpus'
    own, its file's, and for wikitext's test split the many that it goes by. What is cut too short is not flagged.

    Args:
        source: where the corpus is taken from; default: where the built-in one of this sha256 is.
    """
    dataset = found.imatrix.dataset if found.imatrix else None
    if not dataset:
        return None
    source = source or CORPUS_SOURCES.get(corpus.sha256)
    names = [corpus.name, *([source.basename] if source else [])]
    cut = len(dataset.encode("utf-8", "replace")) >= _CUT
    path = [part for part in re.split(r"[/\\]+", dataset.lower().strip()) if part]
    wiki = corpus.sha256 == WIKITEXT2_TEST.sha256 or any(_is_wikitext_test([name.lower()]) for name in names)
    if not (wiki and _is_wikitext_test(path)) and not any(_same_name(path, name.lower(), cut=cut) for name in names):
        return None
    return Flag(
        code="imatrix-overlap",
        detail=f"Its imatrix was made, by its file's name, from the text it is measured on ({corpus.name}), so its "
        "figures flatter it.",
    )


def flags_under(found: Inspection, corpus: Corpus, source: Source | None = None) -> list[Flag]:
    """A variant's flags where it is measured on ``corpus``: those of its header, and the overlap with its imatrix."""
    overlap = overlap_flag(found, corpus, source)
    return [*found.flags, *([overlap] if overlap else [])]


def _same_name(path: Sequence[str], name: str, *, cut: bool) -> bool:
    """Whether a path's last part is ``name``, or (either way round) that without its ending."""
    last = path[-1] if path else ""
    stem = name.rpartition(".")[0] or name
    if last in (name, stem) or (last.rpartition(".")[0] or last) == name:
        return True
    return cut and last.startswith(f"{stem}.") and name.startswith(last)


def _is_wikitext_test(path: Sequence[str]) -> bool:
    """Whether a path (lower case) is wikitext's test split, which wikitext-2 and wikitext-103 share."""
    last = path[-1] if path else ""
    words = set(re.findall(r"[a-z]+", last))
    foreign = {word for word in words - _PLAIN if len(word) == 2}  # wikitext_ja.test: another language's
    if words & _OTHER_SPLITS or foreign or not words & {"test", "wikitest"}:
        return False
    if "wikitext" in words or re.search(r"wiki[._ -]?test[._ -](raw|tokens)", last):
        return True
    folders = {word for part in path[:-1] for word in re.findall(r"[a-z]+", part)}
    return words <= _PLAIN and bool({"wiki", "wikitest"} & words or "wikitext" in folders)
