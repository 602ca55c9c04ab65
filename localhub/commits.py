"""A commit request: its newline-separated JSON, and what it does to a tree."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from . import card, gitobj
from .errors import BadRequest, EntryNotFound, TooLarge, Unprocessable
from .gitobj import Entry, Tree
from .names import RepoType, check_path, is_sha256
from .store import RepoStore
from .trees import path_clashes

MAX_REGULAR_FILE = 10 * 1024 * 1024
MAX_COMMIT_BODY = 200 * 1024 * 1024
_MAX_OPERATIONS = 25_000
_MAX_TITLE = 500
_MAX_MESSAGE = 65_536


@dataclass(frozen=True)
class Operation:
    """One line of the request: what to do with a path."""

    key: str
    path: str
    value: dict[str, Any]
    content: bytes = b""


@dataclass
class CommitRequest:
    """A parsed request."""

    title: str
    message: str
    parent: str | None
    operations: list[Operation] = field(default_factory=list)


def _content(value: dict[str, Any], path: str) -> bytes:
    content, encoding = value.get("content"), value.get("encoding", "utf-8")
    if not isinstance(content, str):
        raise BadRequest(f"{path}: the content is missing")
    if len(content) > MAX_REGULAR_FILE * 4 // 3 + 8:
        raise TooLarge(f"{path}: files over 10 MiB must be uploaded with LFS")
    try:
        data = base64.b64decode(content, validate=True) if encoding == "base64" else content.encode("utf-8")
    except (binascii.Error, ValueError):
        raise BadRequest(f"{path}: the content is not valid {encoding}") from None
    if len(data) > MAX_REGULAR_FILE:
        raise TooLarge(f"{path}: files over 10 MiB must be uploaded with LFS")
    return data


def _header(value: dict[str, Any]) -> CommitRequest:
    title, message, parent = value.get("summary"), value.get("description") or "", value.get("parentCommit")
    if not isinstance(title, str) or not title.strip() or len(title) > _MAX_TITLE:
        raise BadRequest("The commit's summary must be a non-empty string of at most 500 characters")
    if not isinstance(message, str) or len(message) > _MAX_MESSAGE:
        raise BadRequest("The commit's description must be a string of at most 65536 characters")
    if parent is not None and not isinstance(parent, str):
        raise BadRequest("parentCommit must be a commit id")
    return CommitRequest(title=title, message=message, parent=parent)


_OPERATIONS = ("file", "lfsFile", "deletedFile", "deletedEntry", "deletedFolder", "copyFile")


def parse(lines: Iterable[bytes]) -> CommitRequest:
    """Read the request; the first line is the header."""
    request: CommitRequest | None = None
    for line in lines:
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            key, value = item["key"], item["value"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise BadRequest("Every line must be a JSON object with a key and a value") from None
        if not isinstance(value, dict):
            raise BadRequest("The value of a line must be an object")
        if key == "header" and request is None:
            request = _header(value)
            continue
        if request is None or key not in _OPERATIONS:
            raise BadRequest(f"Unexpected line: {str(key)[:40]!r}")
        raw = value.get("path")
        path = check_path(raw.rstrip("/") if isinstance(raw, str) and key.startswith("deleted") else raw)
        content = _content(value, path) if key == "file" else b""
        slim = {name: item for name, item in value.items() if name != "content"}
        request.operations.append(Operation(key, path, slim, content))
        if len(request.operations) > _MAX_OPERATIONS:
            raise BadRequest("Too many operations in one commit")
    if request is None or not request.operations:
        raise BadRequest("A commit needs a header and at least one operation")
    return request


def _lfs(store: RepoStore, operation: Operation) -> Entry:
    oid, size = operation.value.get("oid"), operation.value.get("size")
    if operation.value.get("algo") != "sha256" or not isinstance(oid, str) or not is_sha256(oid):
        raise BadRequest(f"{operation.path}: an LFS file needs algo sha256 and an oid")
    stored = store.lfs_size(oid)
    if stored is None or size not in (None, stored):
        raise Unprocessable(f"{operation.path}: LFS object {oid} was not uploaded, or has another size")
    return gitobj.lfs_entry(oid, stored)


def _copy(store: RepoStore, tree: Tree, operation: Operation) -> Entry:
    source = check_path(operation.value.get("srcPath"))
    revision = operation.value.get("srcRevision")
    origin = store.tree(store.resolve(revision)) if isinstance(revision, str) else tree
    if source not in origin:
        raise EntryNotFound(f"Cannot copy {source}: A file with this name doesn't exist")
    return origin[source]


def apply(store: RepoStore, base: Tree, request: CommitRequest, repo_type: RepoType) -> dict[str, Entry]:
    """The tree after the request; its files are kept in the store."""
    tree = dict(base)
    for operation in request.operations:
        path = operation.path
        if operation.key in ("deletedFile", "deletedEntry"):
            if tree.pop(path, None) is None:
                raise EntryNotFound("A file with this name doesn't exist")
        elif operation.key == "deletedFolder":
            inside = [name for name in tree if name.startswith(f"{path}/")]
            if not inside:
                raise EntryNotFound("A folder with this name doesn't exist")
            for name in inside:
                del tree[name]
        else:
            if operation.key == "lfsFile":
                entry = _lfs(store, operation)
            elif operation.key == "copyFile":
                entry = _copy(store, tree, operation)
            else:
                _check_card(path, operation.content, repo_type)
                entry = store.put_blob(operation.content)
            tree[path] = entry
    clashes = path_clashes(tree)
    if clashes:
        raise BadRequest(f"{min(clashes)} cannot be a file and a folder at once")
    return tree


def _check_card(path: str, content: bytes, repo_type: RepoType) -> None:
    if path != "README.md":
        return
    findings = card.validate(content.decode("utf-8", "replace"), repo_type)
    if findings.errors:
        raise BadRequest("Invalid metadata in README.md: " + "; ".join(findings.errors))
