"""A repo's ``.quantcard.yml``: its owner's wishes, read strictly and in bounds. Pure.

The file is a stranger's: its size, depth and number of values are bounded before anything is built of it, and there
are no anchors, aliases or tags. A file that can't be understood counts as ``enabled: false``, with a sentence for each
error.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

CONFIG_FILE = ".quantcard.yml"
CONFIG_LIMIT = 64 << 10

Position = Literal["end", "top", "after"]
Data = Literal["comment", "file", "none"]
Plots = bool | Literal["others"]
Column = Literal["bpw", "size", "kld", "kld-99.9", "same-top", "ppl-ratio", "pp", "tg", "memory", "tasks"]
COLUMNS: tuple[str, ...] = get_args(Column)

_MAX_DEPTH, _MAX_EVENTS = 4, 500
_MAX_NAMES, _MAX_NAME = 16, 64
_MAX_HEADING = 200
_MAX_ERRORS, _MAX_PROBLEM = 5, 900

#: What each key takes, as its error says it.
ALLOWED = {
    "enabled": "true or false",
    "protocols": f"a list of up to {_MAX_NAMES} names of protocols, such as [wiki512]",
    "columns": f"a list of some of {', '.join(COLUMNS)}",
    "plots": "true, false or others",
    "position": "end, top, or {after: the text of a heading}",
    "data": "comment, file or none",
    "metadata": "true or false",
}


@dataclass(frozen=True, slots=True)
class RepoConfig:
    """What a repo's owner wishes.

    Args:
        protocols: only figures of these are published there; empty: of all.
        columns: what the section's table has besides the name; empty: everything that was measured.
        plots: whether plots go with the section; ``others``: with other uploaders' files of the base model in grey.
        position: where a new section goes: the card's end, its top, or ``after`` the part under a heading.
        data: where the figures stand as JSON.
        metadata: whether the front matter gets a ``model-index``.
        problem: why the file can't be followed, in sentences; then nothing is written.
        digest: 12 hex digits of the file that has the problem.
    """

    enabled: bool = True
    protocols: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    plots: Plots = True
    position: Position = "end"
    after: str | None = None
    data: Data = "comment"
    metadata: bool = False
    problem: str | None = None
    digest: str | None = None

    def as_json(self) -> dict[str, Any]:
        """What is stored of it; :meth:`from_json` reads it back."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> RepoConfig:
        """What was stored, by this version or an older one: what is missing or unknown is the default."""
        known: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in stored.items()
            if _fits(name, value)
        }
        return cls(**known)


def _fits(name: str, value: Any) -> bool:
    """Whether a stored value is one of ours."""
    match name:
        case "enabled" | "metadata":
            return isinstance(value, bool)
        case "plots":
            return isinstance(value, bool) or value == "others"
        case "protocols" | "columns":
            return isinstance(value, list) and all(isinstance(item, str) for item in value)
        case "position":
            return value in get_args(Position)
        case "data":
            return value in get_args(Data)
    return name in {field.name for field in fields(RepoConfig)} and (value is None or isinstance(value, str))


class _Refused(Exception):
    """The file is not taken; the text says why."""


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _After(_Model):
    after: Annotated[str, Field(min_length=1, max_length=_MAX_HEADING, pattern=r"\S")]


class _File(_Model):
    """The file's own shape."""

    enabled: bool = True
    protocols: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=_MAX_NAME)]], Field(min_length=1, max_length=_MAX_NAMES)
    ] = Field(default=[])
    columns: Annotated[list[Column], Field(min_length=1, max_length=4 * len(COLUMNS))] = Field(default=[])
    plots: Plots = True
    position: Literal["end", "top"] | _After = "end"
    data: Data = "comment"
    metadata: bool = False


def parse_config(data: bytes | None) -> RepoConfig:
    """The wishes in the file; None (there is none) or an empty one wishes nothing."""
    if data is None:
        return RepoConfig()
    try:
        if len(data) > CONFIG_LIMIT:
            raise _Refused(f"{CONFIG_FILE} is larger than {CONFIG_LIMIT >> 10} KiB.")
        value = _load(data)
        if value is None:
            return RepoConfig()
        if not isinstance(value, dict):
            raise _Refused(f"{CONFIG_FILE} is not a mapping of keys to values, such as 'enabled: true'.")
        read = _File.model_validate(value)
    except ValidationError as error:
        return _invalid(data, " ".join(_sentences(error)))
    except _Refused as error:
        return _invalid(data, str(error))
    except Exception:
        # Whatever a stranger's bytes make of a parser ("\UFFFFFFFF" is an OverflowError) ends here.
        return _invalid(data, f"{CONFIG_FILE} is not valid YAML in UTF-8.")
    after = read.position.after if isinstance(read.position, _After) else None
    return RepoConfig(
        enabled=read.enabled,
        protocols=tuple(dict.fromkeys(read.protocols)),
        columns=tuple(name for name in COLUMNS if name in read.columns),
        plots=read.plots,
        position="after" if isinstance(read.position, _After) else read.position,
        after=after,
        data=read.data,
        metadata=read.metadata,
    )


def with_known(config: RepoConfig, protocols: Collection[str]) -> RepoConfig:
    """The wishes, or where they name protocols that are none of ``protocols``, the problem that this is."""
    unknown = [name for name in config.protocols if name not in protocols]
    if not unknown or not config.enabled:
        return config
    there = ", ".join(protocols)
    problem = " ".join(
        f"{CONFIG_FILE}: 'protocols' has no {_shown(name)}{_nearest(name, tuple(protocols))}; there are {there}."
        for name in unknown[:_MAX_ERRORS]
    )
    # Of the names alone: what protocols there are may change, and is no reason to say it again.
    digest = hashlib.sha256("\n".join(sorted(unknown)).encode()).hexdigest()[:12]
    return replace(config, enabled=False, problem=problem[:_MAX_PROBLEM], digest=digest)


def _invalid(data: bytes, problem: str) -> RepoConfig:
    return RepoConfig(enabled=False, problem=problem[:_MAX_PROBLEM], digest=hashlib.sha256(data).hexdigest()[:12])


class _Loader(yaml.SafeLoader):
    """Mappings without merge keys or duplicates; of the words only true, false and null are no text."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _Refused(f"{CONFIG_FILE}: a key on line {key.start_mark.line + 1} is not a word.")
            if key.value == "<<" or key.value in seen:
                what = "has a merge key (<<)" if key.value == "<<" else f"has {_shown(key.value)} twice"
                raise _Refused(f"{CONFIG_FILE} {what}, on line {key.start_mark.line + 1}.")
            seen.add(key.value)
        return dict(super().construct_mapping(node, deep=deep))


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag.endswith((":bool", ":null"))]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _load(data: bytes) -> Any:
    try:
        text = data.decode("utf-8-sig")
        for _ in _checked(yaml.parse(text, Loader=_Loader)):
            pass
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise _Refused(f"{CONFIG_FILE} is not valid YAML{where}.") from None


def _checked(events: Iterator[yaml.Event]) -> Iterator[yaml.Event]:
    """The events while they are within bounds; nothing has been built of them yet."""
    refused = f"{CONFIG_FILE} is not valid YAML as quantcard reads it:"
    depth = documents = 0
    for number, event in enumerate(events):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _Refused(f"{refused} it has anchors or aliases (& or *).")
        if getattr(event, "tag", None) is not None:
            raise _Refused(f"{refused} it has tags (!).")
        documents += isinstance(event, yaml.DocumentStartEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if documents > 1:
            raise _Refused(f"{refused} it holds more than one document.")
        if depth > _MAX_DEPTH or number > _MAX_EVENTS:
            raise _Refused(f"{refused} it is {'nested too deeply' if depth > _MAX_DEPTH else 'too long'}.")
        yield event


def _sentences(error: ValidationError) -> list[str]:
    """A sentence for each key that is wrong, with what it takes."""
    found: dict[str, str] = {}
    for one in error.errors(include_url=False, include_context=False):
        place = one["loc"]
        key = str(place[0]) if place else ""
        if key in found:
            continue
        if key not in ALLOWED:
            found[key] = f"{_shown(key)} is no key{_nearest(key, tuple(ALLOWED))}; there are {', '.join(ALLOWED)}."
        elif key == "columns" and len(place) == 2 and isinstance(one["input"], str):
            name = one["input"]
            found[key] = f"'columns' has no {_shown(name)}{_nearest(name, COLUMNS)}; it takes {ALLOWED[key]}."
        else:
            found[key] = f"'{key}' takes {ALLOWED[key]}, not {_shown(one['input'])}."
    sentences = [f"{CONFIG_FILE}: {sentence}" for sentence in list(found.values())[:_MAX_ERRORS]]
    return [*sentences, *([f"There are {len(found) - _MAX_ERRORS} more."] if len(found) > _MAX_ERRORS else [])]


def _nearest(word: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(word[:_MAX_NAME].lower(), known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _shown(value: Any) -> str:
    """A stranger's value in a sentence, cut."""
    text = "nothing" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"
