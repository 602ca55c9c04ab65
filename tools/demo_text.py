"""Gather the English text that the demonstration model is trained and measured on.

The text is what CPython ships with itself: the language reference in ``pydoc_data.topics``, the docstrings
and the prose comments of the standard library's modules, and the docstrings of its extension modules. One
module (or one topic) is one document. Whole documents are held out, chosen by the hash of their name, and
every paragraph of the training text that repeats something of the held-out text is dropped.

Only the standard library is needed here.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import io
import lzma
import re
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

DOCUMENT_BREAK = "\n\n\n"  # documents themselves never hold two blank lines in a row
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "config"}
HELD_OUT_CHARS = {"topic": 60_000, "module": 140_000, "extension": 25_000}
LARGEST_HELD_OUT = 24_000  # characters; a larger document always stays in the training text
SHINGLE = 6  # words
# Package registries and the paths of somebody's machine: paragraphs that name them are left out.
UNWANTED = re.compile(r"pypi|pythonhosted|/(tmp|root|work|home|Users)\b", re.IGNORECASE)
PLAIN = str.maketrans(
    {
        "\u2018": "'",
        "\u2019": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u2013": "-",
        "\u2014": "--",
        "\u2026": "...",
        "\u2022": "*",
        "\u00a0": " ",
        "\ufeff": "",
        "\u2192": "->",
    }
)


class Document(NamedTuple):
    """One document: a help topic, a module or an extension module."""

    kind: str
    name: str
    paragraphs: list[str]

    @property
    def text(self) -> str:
        """The document as it is written out."""
        return "\n\n".join(self.paragraphs)

    @property
    def rank(self) -> str:
        """The document's place in the shuffled but fixed order."""
        return hashlib.sha256(f"{self.kind}:{self.name}".encode()).hexdigest()


def normalise(text: str) -> list[str]:
    """Paragraphs in plain punctuation, with no tabs, trailing blanks or control characters."""
    text = text.translate(PLAIN).expandtabs(4).replace("\r\n", "\n")
    text = "".join(c for c in text if c == "\n" or c.isprintable())
    text = "\n".join(line.rstrip() for line in text.split("\n"))
    paragraphs = [p.strip("\n") for p in re.split(r"\n{2,}", text) if p.strip()]
    return [p for p in paragraphs if not UNWANTED.search(p)]


def is_prose(comment: str) -> bool:
    """Whether a block of comment lines reads as English rather than as code or a ruler."""
    words = re.findall(r"[A-Za-z]{2,}", comment)
    plain = sum(c.isalpha() or c.isspace() or c in ".,'\"-()" for c in comment)
    return len(words) >= 8 and plain / len(comment) > 0.92


def comment_blocks(source: str) -> Iterator[tuple[int, str]]:
    """Line number and text of each run of whole-line comments that is prose."""
    block: list[str] = []
    start = last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or token.line[: token.start[1]].strip():
            continue
        if block and token.start[0] != last + 1:
            yield start, "\n".join(block)
            block = []
        start = start if block else token.start[0]
        last = token.start[0]
        block.append(re.sub(r"^#+:? ?", "", token.string))
    if block:
        yield start, "\n".join(block)


def module_text(source: str) -> str:
    """Docstrings and prose comments of a module, in source order."""
    pieces: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if doc := ast.get_docstring(node):
            pieces.append((getattr(node, "lineno", 0), doc))
    pieces += [(line, text) for line, text in comment_blocks(source) if is_prose(text)]
    return "\n\n".join(text for _, text in sorted(pieces))


def module_documents(stdlib: Path) -> Iterator[Document]:
    """One document for each module of the standard library that is written in Python."""
    for path in sorted(stdlib.rglob("*.py")):
        parts = path.relative_to(stdlib).with_suffix("").parts
        if SKIPPED_FOLDERS.intersection(parts) or parts[0].startswith(("config-", "_sysconfigdata")):
            continue
        if parts[:1] == ("pydoc_data",):
            continue
        try:
            text = module_text(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, tokenize.TokenError):
            continue
        yield Document("module", ".".join(parts), normalise(text))


def member_docs(owner: ModuleType | type, depth: int = 0) -> Iterator[str]:
    """Docstrings of a module or class and of its own members."""
    if isinstance(owner.__doc__, str):
        yield owner.__doc__
    for name, value in sorted(vars(owner).items()):
        if isinstance(value, type) and depth == 0 and value.__module__ in {owner.__name__, "builtins"}:
            yield from member_docs(value, 1)
        elif isinstance(value, type | ModuleType) or name.startswith("__"):
            continue
        elif callable(value) or hasattr(value, "__objclass__"):
            doc = getattr(value, "__doc__", None)
            if isinstance(doc, str):
                yield doc


def extension_documents(stdlib: Path) -> Iterator[Document]:
    """One document for each module that is written in C."""
    names = {path.name.split(".")[0] for path in (stdlib / "lib-dynload").glob("*.so")}
    names.update(sys.builtin_module_names)
    for name in sorted(n for n in names if "test" not in n and not n.startswith("xx")):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        yield Document("extension", name, normalise("\n\n".join(member_docs(module))))


def topic_documents() -> Iterator[Document]:
    """One document for each help topic."""
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    for name, text in sorted(topics.items()):
        yield Document("topic", name, normalise(text))


def key_of(paragraph: str) -> str:
    """What two paragraphs share that differ in blanks, case and numbers only."""
    return re.sub(r"\d+", "0", " ".join(paragraph.lower().split()))


def without_repeats(documents: Iterable[Document]) -> list[Document]:
    """Drop each paragraph of some length that was seen before, then the documents left all but empty."""
    seen: set[str] = set()
    kept = []
    for document in documents:
        paragraphs = []
        for paragraph in document.paragraphs:
            key = key_of(paragraph)
            if len(key) < 40 or key not in seen:
                paragraphs.append(paragraph)
            seen.add(key)
        kept.append(document._replace(paragraphs=paragraphs))
    return [d for d in kept if len(d.text) >= 200]


def shingles(paragraph: str) -> set[str]:
    """All runs of six words."""
    words = re.findall(r"[a-z0-9_]+", paragraph.lower())
    return {" ".join(words[i : i + SHINGLE]) for i in range(len(words) - SHINGLE + 1)}


def split(documents: list[Document]) -> tuple[list[Document], list[Document]]:
    """Training and held-out documents: whole documents, no passage of the second left in the first."""
    held: list[Document] = []
    for kind, wanted in HELD_OUT_CHARS.items():
        size = 0
        for document in documents:
            if document.kind == kind and size < wanted and len(document.text) <= LARGEST_HELD_OUT:
                held.append(document)
                size += len(document.text)
    held.sort(key=lambda d: d.rank)
    names = {(d.kind, d.name) for d in held}
    held_paragraphs = [p for d in held for p in d.paragraphs]
    held_shingles = {s for p in held_paragraphs for s in shingles(p)}
    held_lines = {line.strip() for p in held_paragraphs for line in p.split("\n") if len(line.strip()) >= 50}

    def is_new(paragraph: str) -> bool:
        own = shingles(paragraph)
        shared = len(own & held_shingles)
        repeats = any(line.strip() in held_lines for line in paragraph.split("\n"))
        return not repeats and shared <= 0.15 * len(own)

    train = [
        d._replace(paragraphs=[p for p in d.paragraphs if is_new(p)])
        for d in documents
        if (d.kind, d.name) not in names
    ]
    return [d for d in train if len(d.text) >= 200], held


def gather(out: Path) -> None:
    """Write ``train.txt.xz`` and ``heldout.txt`` from the running Python's own text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated modules, odd escapes in old sources
        stdlib = Path(sysconfig.get_path("stdlib"))
        documents = [*topic_documents(), *module_documents(stdlib), *extension_documents(stdlib)]
    documents = without_repeats(sorted(documents, key=lambda d: d.rank))
    train, held = split(documents)
    train_text = DOCUMENT_BREAK.join(d.text for d in train) + "\n"
    held_text = DOCUMENT_BREAK.join(d.text for d in held) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    (out / "train.txt.xz").write_bytes(lzma.compress(train_text.encode(), preset=9 | lzma.PRESET_EXTREME))
    (out / "heldout.txt").write_bytes(held_text.encode())
    for title, part in (("training", train), ("held out", held)):
        sizes = {kind: sum(len(d.text) for d in part if d.kind == kind) for kind in HELD_OUT_CHARS}
        print(f"{title}: {len(part)} documents, characters by kind {sizes}")
