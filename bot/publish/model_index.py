"""``model-index`` entries in a card's front matter, where its owner asked for them. Pure; no YAML round trips.

Ours stand between two YAML comments right before the ``---`` that closes the front matter. Everything else stays byte
for byte, and means what it meant: both are checked before the new card is given out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from bot.publish import card as cards
from bot.publish.render import distinct_labels, rank
from core.dataset import DatasetRow
from core.protocol import WIKITEXT2_TEST

BEGIN = "# quantcard:begin"
END = "# quantcard:end"
VERSION = 1
KEY = "model-index"
#: YAML is slow to read: a longer front matter is left alone.
_LIMIT = 256 << 10
_MAX_VARIANTS = 40
_MAX_TEXT = 100
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\n|\r|\Z)")
_MARKED = re.compile(r"\bkey=([0-9a-f]{6,64})\b")
_URL = re.compile(r"https?://[^\s\"\\]{1,500}")

_Event = tuple[object, ...]


class MetadataError(cards.CardError):
    """The front matter can't take our entries; the sentence says why. The card is left as it is."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """A card with our entries put in or taken out; ``note``: why they were asked for and are not there."""

    card: str
    note: str | None = None


def splice_metadata(
    card: str, rows: Sequence[DatasetRow], *, key: str, enabled: bool, source_url: str = ""
) -> Metadata:
    """The card with our ``model-index`` entries (``enabled``), in place of those it has, or without them.

    Args:
        rows: of one repo; told is what may be ranked together, and nothing that was imported.
        key: of the figures, noted in the begin marker.
        source_url: where the figures come from, for their ``source``.

    Where they can't be, the card comes back as it is but for entries of ours that can be taken out, with the reason.
    """
    try:
        bare, at = _without(card)
    except MetadataError as error:
        return Metadata(card, str(error))
    if not enabled:
        return Metadata(bare)
    lines = _entries(rows, source_url)
    if not lines:
        return Metadata(bare, "There is no quality figure for a model-index yet.")
    try:
        return Metadata(_with(bare, at, lines, key))
    except MetadataError as error:
        return Metadata(bare, str(error))


def remove_metadata(card: str) -> str:
    """The card without our entries, byte for byte as before; unchanged where they can't be taken out safely."""
    try:
        return _without(card)[0]
    except MetadataError:
        return card


def metadata_key(card: str) -> str | None:
    """The key in our begin marker, or None where the card has no entries of ours."""
    try:
        found = _ours(card)
    except MetadataError:
        return None
    marked = _MARKED.search(_LINE.match(card, found[0])[0]) if found else None  # type: ignore[index]
    return marked[1] if marked else None


def _ours(card: str) -> tuple[int, int] | None:
    """(start, end) of our lines in the front matter, or None."""
    span = cards.front_matter_span(card)
    if span is None:
        return None
    found: list[tuple[str, int, int]] = []
    for line in _LINE.finditer(card, *span):
        if line[0].startswith(BEGIN):
            found.append((BEGIN, line.start(), line.end()))
        elif line[0].rstrip() == END:
            found.append((END, line.start(), line.end()))
    if not found:
        return None
    if [name for name, _, _ in found] != [BEGIN, END]:
        raise MetadataError("The quantcard markers in the card's front matter are damaged; remove or restore them.")
    return found[0][1], found[1][2]


def _without(card: str) -> tuple[str, int | None]:
    """(the card without our entries, where they stood), once it is sure that nothing else changes with them."""
    found = _ours(card)
    if found is None:
        return card, None
    bare = card[: found[0]] + card[found[1] :]
    if [pair for pair in _pairs(card) if pair[0] != KEY] != [pair for pair in _pairs(bare) if pair[0] != KEY]:
        raise MetadataError("The quantcard markers in the card's front matter hold more than a model-index.")
    return bare, found[0]


def _with(bare: str, at: int | None, lines: Sequence[str], key: str) -> str:
    span = cards.front_matter_span(bare)
    if span is None:
        raise MetadataError("The card has no front matter to put a model-index into.")
    before = _pairs(bare)
    if any(name == KEY for name, _ in before):
        raise MetadataError("The card has a model-index of its own; it is left alone.")
    at = span[1] if at is None else at
    newline = "\r\n" if bare[:at].endswith("\r\n") else bare[at - 1]
    text = newline.join([f"{BEGIN} v={VERSION} key={key}", *lines, END, ""])
    new = bare[:at] + text + bare[at:]
    ours = _read("\n".join([*lines, ""]))
    after = _pairs(new)
    if [pair for pair in after if pair[0] != KEY] != before or [pair for pair in after if pair[0] == KEY] != ours:
        raise MetadataError("A model-index can't be added to this front matter without changing the rest of it.")
    return new


def _pairs(card: str) -> list[tuple[str, list[_Event]]]:
    """The front matter as (top-level key, events of its value), without building anything of it: aliases stay names."""
    span = cards.front_matter_span(card)
    text = card[span[0] : span[1]] if span else ""
    if len(text) > _LIMIT:
        raise MetadataError("The card's front matter is too long to be edited safely.")
    return _read(text)


def _read(text: str) -> list[tuple[str, list[_Event]]]:
    try:
        yaml.compose(text, Loader=yaml.SafeLoader)
        events = list(yaml.parse(text, Loader=yaml.SafeLoader))[1:-1]
    except Exception as error:  # PyYAML lets ValueError and IndexError through on odd escapes
        raise MetadataError("The card's front matter is not valid YAML, so nothing is added to it.") from error
    if not events:
        return []
    n_documents = sum(isinstance(event, yaml.DocumentStartEvent) for event in events)
    if n_documents != 1 or not isinstance(events[1], yaml.MappingStartEvent):
        raise MetadataError("The card's front matter is not a mapping of keys to values.")
    pairs: list[tuple[str, list[_Event]]] = []
    depth, is_key = 0, True
    for event in events[2:-2]:
        told = _told(event)
        if depth == 0 and is_key:
            pairs.append((str(told[1]) if isinstance(event, yaml.ScalarEvent) else "", [told]))
        else:
            pairs[-1][1].append(told)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth == 0:
            is_key = not is_key
    return pairs


def _told(event: yaml.Event) -> _Event:
    return type(event).__name__, *(
        getattr(event, name, None) for name in ("value", "anchor", "tag", "implicit", "style", "flow_style")
    )


def _entries(rows: Sequence[DatasetRow], source_url: str) -> list[str]:
    """The lines of the model-index; none where nothing may be told."""
    told = [row for row, _ in rank(distinct_labels(rows)).ranked if not row.is_reference]
    told = sorted(told, key=lambda row: (-row.size_bytes, row.variant))[:_MAX_VARIANTS]
    if not told:
        return []
    first = told[0]
    lines = [
        f"{KEY}:",
        f"- name: {_text(first.repo_id.split('/')[-1])}",
        "  results:",
        "  - task:",
        "      type: text-generation",
        "      name: Text Generation",
        "    dataset:",
        *(f"      {line}" for line in _dataset(first)),
        "    metrics:",
    ]
    for row in told:
        figures = (
            ("kl_divergence", "mean KLD", row.kld_mean),
            ("kl_divergence", "99.9 % KLD", row.kld_p99_9),
            ("same_top_p", "same top p", row.same_top),
            ("perplexity_ratio", "PPL ratio", row.ppl_ratio),
        )
        lines += [
            f"    - {{type: {kind}, name: {_text(f'{name} ({row.label})')}, value: {_number(value)}}}"
            for kind, name, value in figures
            if value is not None and abs(value) < 1e15
        ]
    if _URL.fullmatch(source_url):
        lines += ["    source:", "      name: quantcard", f'      url: "{source_url}"']
    return lines


def _dataset(row: DatasetRow) -> list[str]:
    protocol = json.loads(row.protocol_json)
    corpus = protocol["corpus"]
    if corpus["sha256"] == WIKITEXT2_TEST.sha256:
        lines = [
            "type: Salesforce/wikitext",
            'name: "WikiText-2 (raw), test"',
            "config: wikitext-2-raw-v1",
            "split: test",
        ]
    else:
        lines = ["type: text", f"name: {_text(corpus['name'])}"]
    args = [f"protocol: {_text(row.protocol_name)}", f"fingerprint: {_text(row.protocol_fingerprint[:12])}"]
    args += [f"{name}: {value}" for name in ("n_ctx", "n_chunks", "n_tokens") if (value := getattr(row, name))]
    return [*lines, f"args: {{{', '.join(args)}}}"]


def _number(value: float) -> str:
    """At most six decimals and never an exponent: YAML 1.1 takes ``1e-05`` for text."""
    text = f"{value:.6f}".rstrip("0")
    text = f"{text}0" if text.endswith(".") else text
    return "0.0" if text == "-0.0" else text


def _text(text: str) -> str:
    """A double-quoted YAML scalar on one line, whatever the text holds."""
    kept = "".join(c if c.isprintable() else " " for c in text)
    kept = " ".join(kept.split())[:_MAX_TEXT]
    return '"' + "".join(c if " " <= c <= "~" and c not in '"\\' else _escape(ord(c)) for c in kept) + '"'


def _escape(code: int) -> str:
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
