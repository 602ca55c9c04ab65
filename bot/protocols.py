"""The protocols that can be chosen by name: the built-in ones, the operator's own (TOML), and variations of them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from core.canonical import sha256_file
from core.errors import SettingsError
from core.protocol import (
    CORPUS_SOURCES,
    PROTOCOLS,
    SCORING_VERSION,
    WIKITEXT2_TEST,
    Corpus,
    CorpusSource,
    LocalSource,
    Protocol,
    Source,
)
from core.repo_names import is_repo_id

#: Read in the working folder when no other file is set.
PROTOCOLS_NAME = "quantcard-protocols.toml"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
#: What variations are called (see :func:`varied`); a name must not say two things.
_OURS = re.compile(r"(wiki|custom)\d+(-\d+)?(-r\d+)?", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FIELDS = ("base", *(name for name in Protocol.model_fields if name != "name"))
_CORPUS_FIELDS = ("name", "sha256", "repo_id", "filename", "member", "path")
_LONGEST_NAME = 200


@dataclass(frozen=True, slots=True)
class Known:
    """A protocol that can be chosen by name: where its text is taken from (if that is known), and who defined it."""

    protocol: Protocol
    source: Source | None
    origin: str


def known_protocols(path: Path | None) -> dict[str, Known]:
    """The built-in protocols, then those of ``path`` (or, without one, of the file in the working folder, if any).

    Raises:
        SettingsError: the file is not there, or does not say what it should.
    """
    found = {
        name: Known(protocol, CORPUS_SOURCES.get(protocol.corpus.sha256), "built in")
        for name, protocol in PROTOCOLS.items()
    }
    if path is None:
        path = Path(PROTOCOLS_NAME)
        if not path.is_file():
            return found
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SettingsError(f"{path} (QUANTCARD_PROTOCOLS) does not exist. Check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        why = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise SettingsError(f"{path} can't be read ({why}).") from None
    return found | parse(text, file=path)


def parse(text: str, *, file: Path) -> dict[str, Known]:
    """The protocols that a TOML text defines; paths in it are relative to ``file``'s folder.

    Raises:
        SettingsError: naming the file, the table and the field.
    """
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{file} is not valid TOML: {error}.") from None
    for key in document:
        if key != "protocol":
            raise SettingsError(f"{file}: {key!r} is unknown here; write tables [protocol.NAME].")
    tables = document.get("protocol", {})
    if not isinstance(tables, dict):
        raise SettingsError(f"{file}: 'protocol' is not a table; write tables [protocol.NAME].")
    reader = _Reader(file, tables)
    return {name: reader.read(name) for name in tables}


class _Reader:
    """Reads the tables of one file; each once, whatever the order in which they name each other."""

    def __init__(self, file: Path, tables: Mapping[str, Any]) -> None:
        self._file, self._tables = file, tables
        self._done: dict[str, Known] = {}
        self._open: list[str] = []

    def read(self, name: str) -> Known:
        """The protocol of one table.

        Raises:
            SettingsError: what is wrong with it.
        """
        if name not in self._done:
            self._open.append(name)
            self._done[name] = self._read(name, self._tables[name])
            self._open.pop()
        return self._done[name]

    def _wrong(self, name: str, why: str, *, field: str = "") -> SettingsError:
        where = f"{self._file}, [protocol.{name}]{', ' + field if field else ''}"
        return SettingsError(f"{where}: {why}. See docs/measurements.md.")

    def _read(self, name: str, table: Any) -> Known:
        if not _NAME.fullmatch(name):
            raise self._wrong(name, "a protocol's name is letters, digits, '.', '_' and '-', at most 64")
        if name in PROTOCOLS or _OURS.fullmatch(name):
            raise self._wrong(name, "the name is one that quantcard gives itself; choose another")
        if not isinstance(table, dict):
            raise self._wrong(name, "this is not a table")
        for field in table:
            if field == "name":
                raise self._wrong(name, "the table's own name is the protocol's; leave this out", field=field)
            if field not in _FIELDS:
                raise self._wrong(name, f"there is no such field; there are {', '.join(_FIELDS)}", field=repr(field))
        values: dict[str, Any] = {}
        source: Source | None = None
        if "base" in table:
            base = self._base(name, table["base"])
            values, source = {field: getattr(base.protocol, field) for field in Protocol.model_fields}, base.source
        if "corpus" in table:
            values["corpus"], source = self._corpus(name, table["corpus"])
        elif "base" not in table:
            raise self._wrong(name, "say which text is measured on: corpus = { … }, or base = a protocol's name")
        own = {field: value for field, value in table.items() if field not in ("base", "corpus")}
        if own.get("scoring_version", SCORING_VERSION) != SCORING_VERSION:
            why = f"this quantcard scores by version {SCORING_VERSION}; it can't be another"
            raise self._wrong(name, why, field="scoring_version")
        try:
            protocol = Protocol.model_validate({**values, **own, "name": name}, strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise self._wrong(name, first["msg"].removeprefix("Value error, "), field=field) from None
        return Known(protocol, source, str(self._file))

    def _base(self, name: str, base: Any) -> Known:
        if isinstance(base, str) and base in PROTOCOLS:
            protocol = PROTOCOLS[base]
            return Known(protocol, CORPUS_SOURCES.get(protocol.corpus.sha256), "built in")
        if not isinstance(base, str) or base not in self._tables:
            why = f"{base!r} is neither built in ({', '.join(PROTOCOLS)}) nor a table of this file"
            raise self._wrong(name, why, field="base")
        if base in self._open:
            raise self._wrong(name, f"it is based on itself ({' → '.join([*self._open, base])})", field="base")
        return self.read(base)

    def _corpus(self, name: str, given: Any) -> tuple[Corpus, Source | None]:
        """A ``corpus = { … }`` as what a protocol holds of it, and where its text is taken from."""
        if not isinstance(given, dict):
            raise self._wrong(name, "this is not a table; write corpus = { name = …, sha256 = …, … }", field="corpus")
        for field, value in given.items():
            if field not in _CORPUS_FIELDS:
                why = f"there is no such field; there are {', '.join(_CORPUS_FIELDS)}"
                raise self._wrong(name, why, field=f"corpus.{field!r}")
            if not isinstance(value, str) or not value.strip() or not value.isprintable():
                raise self._wrong(name, "this must be printable text, and some", field=f"corpus.{field}")
        sha256 = given.get("sha256")
        if sha256 is not None and not _SHA256.fullmatch(sha256):
            why = "this is not 64 lower-case hex digits; 'sha256sum FILE' prints them"
            raise self._wrong(name, why, field="corpus.sha256")
        if len(given.get("name", "")) > _LONGEST_NAME:
            raise self._wrong(name, f"longer than {_LONGEST_NAME} characters", field="corpus.name")
        source = self._source(name, given)
        if isinstance(source, LocalSource):
            return self._local(name, source, called=given.get("name"), sha256=sha256), source
        if sha256 is None:
            raise self._wrong(name, "a text that is not on this machine is pinned by its sha256", field="corpus.sha256")
        if "name" not in given:
            raise self._wrong(name, "give the text a name for people", field="corpus.name")
        return Corpus(name=given["name"], sha256=sha256), source or CORPUS_SOURCES.get(sha256)

    def _source(self, name: str, given: Mapping[str, str]) -> Source | None:
        path, repo_id, filename, member = (given.get(field) for field in ("path", "repo_id", "filename", "member"))
        if path is not None:
            if repo_id or filename or member:
                raise self._wrong(name, "a text has either a path or a repo_id and filename", field="corpus")
            return LocalSource(path=str((self._file.parent / path).absolute()))
        if repo_id is None and filename is None and member is None:
            return None
        if repo_id is None or not is_repo_id(repo_id):
            raise self._wrong(name, "this is not a dataset repo on the Hub: owner/name", field="corpus.repo_id")
        if filename is None or PurePosixPath(filename).is_absolute() or ".." in PurePosixPath(filename).parts:
            raise self._wrong(name, "this is not the path of a file in that repo", field="corpus.filename")
        return CorpusSource(repo_id=repo_id, filename=filename, member=member)

    def _local(self, name: str, source: LocalSource, *, called: str | None, sha256: str | None) -> Corpus:
        path = Path(source.path)
        try:
            if not path.is_file():
                raise self._wrong(name, f"{path} does not exist, or is no file", field="corpus.path")
            got = sha256_file(path)
        except OSError as error:
            raise self._wrong(name, f"{path} can't be read ({error.strerror})", field="corpus.path") from None
        if sha256 is not None and sha256 != got:
            why = f"{path} is another text (sha256 {got[:12]}…); find the right one, or leave the sha256 out"
            raise self._wrong(name, why, field="corpus.sha256")
        return Corpus(name=called or path.name, sha256=got)


def varied(
    base: Protocol,
    *,
    corpus: Corpus | None = None,
    n_ctx: int | None = None,
    chunks: int | None = None,
    repetitions: int | None = None,
) -> Protocol:
    """``base`` with what is not None in place of its own, under a name that says so; ``base`` itself if all agrees.

    A corpus with the base's sha256 is the base's corpus, whatever it is called.

    Raises:
        SettingsError: the parts don't go together.
    """
    if corpus is None or corpus.sha256 == base.corpus.sha256:
        corpus = base.corpus
    asked = {"n_ctx": n_ctx, "chunks": chunks, "repetitions": repetitions}
    new = {field: value for field, value in asked.items() if value is not None and value != getattr(base, field)}
    if corpus == base.corpus and not new:
        return base
    values = {field: getattr(base, field) for field in Protocol.model_fields} | new | {"corpus": corpus}
    if corpus != base.corpus:
        name = f"custom{values['n_ctx']}" + _count(values["chunks"])
    elif base.name in PROTOCOLS and corpus == WIKITEXT2_TEST:
        name = f"wiki{values['n_ctx']}" + _count(values["chunks"])
    else:
        name = base.name
        name += f"-ctx{values['n_ctx']}" if "n_ctx" in new else ""
        name += (_count(values["chunks"]) or "-all") if "chunks" in new else ""
    name += f"-r{values['repetitions']}" if "repetitions" in new else ""
    try:
        return Protocol.model_validate({**values, "name": name})
    except ValidationError as error:
        why = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise SettingsError(f"The settings make no protocol of {base.name!r}: {why}. See docs/settings.md.") from None


def _count(chunks: int) -> str:
    return f"-{chunks}" if chunks > 0 else ""


def as_toml(protocol: Protocol, source: Source | None) -> str:
    """A protocol as the table that defines it."""
    corpus = {"name": protocol.corpus.name, "sha256": protocol.corpus.sha256}
    if isinstance(source, CorpusSource | LocalSource):
        corpus |= source.model_dump(exclude_none=True)
    bare = re.fullmatch(r"[A-Za-z0-9_-]+", protocol.name)
    lines = [f"[protocol.{protocol.name if bare else _text(protocol.name)}]"]
    for field in Protocol.model_fields:
        if field == "corpus":
            lines.append("corpus = { " + ", ".join(f"{key} = {_text(value)}" for key, value in corpus.items()) + " }")
        elif field != "name":
            value = getattr(protocol, field)
            lines.append(f"{field} = {_text(value) if isinstance(value, str) else value}")
    return "\n".join(lines) + "\n"


def _text(value: str) -> str:
    """A TOML basic string."""
    escaped = "".join(
        f"\\{c}" if c in '"\\' else f"\\u{ord(c):04X}" if ord(c) < 0x20 or ord(c) == 0x7F else c for c in value
    )
    return f'"{escaped}"'
