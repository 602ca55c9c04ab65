"""Model and dataset cards: their front matter, what is wrong with it, the tags that the Hub derives. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import yaml

from .names import RepoType

_FRONT = re.compile(r"\A(?:\ufeff)?\s*---[ \t]*\r?\n(.*?)(?:\r?\n)?^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_ARXIV = re.compile(r"arxiv\.org/(?:abs|pdf)/(\d{4}\.\d{4,5})")
_MAX_FRONT = 512 * 1024
_MAX_ALIASES = 50
_MODEL_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?")

# Files that name a library, as on the Hub.
_LIBRARY_FILES = ((".gguf", "gguf"), (".safetensors", "safetensors"), (".onnx", "onnx"))
_DATA_FORMATS = ((".parquet", "parquet"), (".csv", "csv"), (".jsonl", "json"), (".json", "json"))
_TEXTS = ("license", "license_name", "license_link", "library_name", "pipeline_tag", "base_model_relation")
EMPTY_WARNING = "empty or missing yaml metadata in repo card"


class CardError(ValueError):
    """The front matter of a card cannot be read, or says something of the wrong type."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a card with many aliases: a few lines of those unfold into gigabytes."""

    aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > _MAX_ALIASES:
                raise CardError("too many YAML aliases")
        return super().compose_node(parent, index)


# JSON has no dates and the Hub keeps them as text.
_Loader.yaml_implicit_resolvers = {
    key: [(tag, regexp) for tag, regexp in rules if tag != "tag:yaml.org,2002:timestamp"]
    for key, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@dataclass(frozen=True)
class Findings:
    """What validate-yaml answers."""

    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def front_matter(text: str) -> str | None:
    """The YAML between the first two `---` lines, or None."""
    match = _FRONT.match(text)
    return match.group(1) if match else None


def _plain(value: Any, depth: int = 0) -> Any:
    """As JSON can carry it."""
    if depth > 40:
        raise CardError("the metadata is nested too deeply")
    if isinstance(value, dict):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return str(value)


def parse(text: str) -> dict[str, Any]:
    """The card's metadata; `{}` without front matter; `CardError` where it is broken."""
    front = front_matter(text)
    if front is None:
        return {}
    if len(front) > _MAX_FRONT:
        raise CardError("the metadata is too long")
    try:
        data = yaml.load(front, Loader=_Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CardError(str(error) or type(error).__name__) from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise CardError("the metadata must be a mapping of keys to values")
    return dict(_plain(data))


def parse_or_empty(text: str) -> dict[str, Any]:
    """The card's metadata, `{}` where it is broken."""
    try:
        return parse(text)
    except CardError:
        return {}


def as_list(value: Any) -> list[str]:
    """Cards write one thing or a list of things."""
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, str) and item]


def _type_errors(data: dict[str, Any]) -> Iterable[str]:
    for key in _TEXTS:
        value = data.get(key)
        if value is not None and not isinstance(value, str) and not (key == "license" and as_list(value)):
            yield f'"{key}" must be a string'
    for key in ("tags", "language", "datasets", "base_model", "metrics"):
        value = data.get(key)
        if value is None or isinstance(value, str):
            continue
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            yield f'"{key}" must be a string or an array of strings'
    for base in as_list(data.get("base_model")):
        if not _MODEL_ID.fullmatch(base):
            yield f'"base_model" with value "{base}" is not valid. Use a model id from the Hub.'
    index = data.get("model-index")
    if index is not None:
        yield from _index_errors(index)


def _index_errors(index: Any) -> Iterable[str]:
    if not isinstance(index, list):
        yield '"model-index" must be an array'
        return
    for number, item in enumerate(index):
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            yield f'"model-index[{number}].name" is required'
        results = item.get("results") if isinstance(item, dict) else None
        if not isinstance(results, list):
            yield f'"model-index[{number}].results" must be an array'
            continue
        for place, result in enumerate(results):
            for key in ("task", "metrics"):
                if not isinstance(result, dict) or not result.get(key):
                    yield f'"model-index[{number}].results[{place}].{key}" is required'


def validate(text: str, repo_type: RepoType) -> Findings:
    """What the Hub would refuse or remark in this README."""
    try:
        data = parse(text)
    except CardError as error:
        return Findings(errors=(str(error),))
    if not data:
        return Findings(warnings=(EMPTY_WARNING,))
    if repo_type == "space" and not isinstance(data.get("sdk", ""), str):
        return Findings(errors=('"sdk" must be a string',))
    return Findings(errors=tuple(_type_errors(data)))


@dataclass(frozen=True)
class CardFacts:
    """What a repo's listing says, computed from its files and card."""

    data: dict[str, Any]
    tags: tuple[str, ...]
    library: str | None
    pipeline: str | None
    base_models: tuple[str, ...]


def _relation(data: dict[str, Any], paths: tuple[str, ...]) -> str:
    declared = data.get("base_model_relation")
    if isinstance(declared, str) and declared:
        return declared
    if any(path.endswith(".gguf") for path in paths):
        return "quantized"
    if "adapter_config.json" in paths:
        return "adapter"
    return "finetune"


def _model_tags(text: str, data: dict[str, Any], paths: tuple[str, ...], library: str | None) -> Iterable[str]:
    if library:
        yield library
    for suffix, name in _LIBRARY_FILES:
        if any(path.endswith(suffix) for path in paths):
            yield name
    yield from as_list(data.get("pipeline_tag"))
    yield from as_list(data.get("tags"))
    yield from as_list(data.get("language"))
    yield from (f"dataset:{name}" for name in as_list(data.get("datasets")))
    yield from (f"arxiv:{number}" for number in _ARXIV.findall(text))
    bases = as_list(data.get("base_model"))
    yield from (f"base_model:{base}" for base in bases)
    yield from (f"base_model:{_relation(data, paths)}:{base}" for base in bases)
    yield from (f"license:{name}" for name in as_list(data.get("license")))


def _dataset_tags(data: dict[str, Any], paths: tuple[str, ...]) -> Iterable[str]:
    keys = ("task_categories", "task_ids", "language", "license", "multilinguality", "size_categories")
    for key in (*keys, "annotations_creators", "language_creators"):
        yield from (f"{key}:{value}" for value in as_list(data.get(key)))
    for suffix, name in _DATA_FORMATS:
        if any(path.endswith(suffix) for path in paths):
            yield f"format:{name}"
    yield from as_list(data.get("tags"))


def facts(text: str, paths: tuple[str, ...], repo_type: RepoType) -> CardFacts:
    """The tags and the rest, as the Hub derives them."""
    data = parse_or_empty(text)
    library = data.get("library_name") if isinstance(data.get("library_name"), str) else None
    if repo_type == "model":
        if library is None and any(path.endswith(".gguf") for path in paths):
            library = "gguf"
        tags = list(_model_tags(text, data, paths, library))
    elif repo_type == "dataset":
        tags = list(_dataset_tags(data, paths))
    else:
        tags = [*as_list(data.get("sdk")), *as_list(data.get("tags"))]
    pipeline = data.get("pipeline_tag") if isinstance(data.get("pipeline_tag"), str) else None
    return CardFacts(
        data=data,
        tags=tuple(dict.fromkeys([*tags, "region:us"])),
        library=library,
        pipeline=pipeline,
        base_models=tuple(as_list(data.get("base_model"))),
    )
