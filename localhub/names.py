"""What repo ids, file paths and ref names may look like. Pure; everything from outside passes here."""

from __future__ import annotations

import re
from typing import Final, Literal

from .errors import InvalidName

RepoType = Literal["model", "dataset", "space"]
REPO_TYPES: Final[tuple[RepoType, ...]] = ("model", "dataset", "space")

MAIN: Final = "refs/heads/main"

_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?")
_BRANCH_SEGMENT = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.+-]{0,98}[A-Za-z0-9_+-])?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_OID = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PR_REF = re.compile(r"refs/pr/([1-9][0-9]{0,8})")

# First path segments that mean something else, so that no user can hide a route.
_RESERVED_OWNERS: Final = frozenset(
    {
        "api",
        "buckets",
        "collections",
        "datasets",
        "spaces",
        "models",
        "settings",
        "resolve",
        "lfs-upload",
        "organizations",
        "users",
        "uploads",
        "xet",
    }
)
_MAX_PATH_BYTES: Final = 1024


def repo_type_of(kind: str) -> RepoType:
    """`models` (as in a URL) → `model`."""
    for repo_type in REPO_TYPES:
        if kind == f"{repo_type}s":
            return repo_type
    raise InvalidName(f"Invalid repo type: {kind[:40]!r}")


def check_repo_type(value: object) -> RepoType:
    """`model`, `dataset` or `space`; `None` means model, as for the client."""
    if value is None:
        return "model"
    for repo_type in REPO_TYPES:
        if value == repo_type:
            return repo_type
    raise InvalidName(f"Invalid repo type: {str(value)[:40]!r}")


def _valid_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and "--" not in name and ".." not in name and not name.endswith(".git")


def check_owner(name: object) -> str:
    """A user or organisation name."""
    if not isinstance(name, str) or not _valid_name(name) or name.lower() in _RESERVED_OWNERS:
        raise InvalidName(f"Invalid user or organization name: {str(name)[:100]!r}")
    return name


def check_repo_id(repo_id: object) -> str:
    """`owner/name`, by the client's own rules; nothing in it can leave the folder."""
    if not isinstance(repo_id, str) or repo_id.count("/") != 1:
        raise InvalidName(f"Invalid repo id: {str(repo_id)[:200]!r}. It must be 'owner/name'.")
    owner, name = repo_id.split("/")
    check_owner(owner)
    if not _valid_name(name):
        raise InvalidName(f"Invalid repo id: {repo_id[:200]!r}")
    return repo_id


def check_path(path: object) -> str:
    """A file path: relative, with `/`, without empty, `.`, `..` or `.git` segments or control characters."""
    if not isinstance(path, str) or not path:
        raise InvalidName("A file path must be a non-empty string")
    try:
        size = len(path.encode("utf-8"))
    except UnicodeEncodeError:
        raise InvalidName("A file path must be valid Unicode") from None
    bad_segment = any(part in ("", ".", "..") or part.lower() == ".git" for part in path.split("/"))
    if size > _MAX_PATH_BYTES or bad_segment or "\\" in path or _CONTROL.search(path):
        raise InvalidName(f"Invalid file path: {path[:200]!r}")
    return path


def check_branch(name: object) -> str:
    """A branch or tag name; `refs/...` and things that look like a commit are refused."""
    if not isinstance(name, str) or len(name) > 200:
        raise InvalidName("Invalid reference name")
    parts = name.split("/")
    shape = all(_BRANCH_SEGMENT.fullmatch(part) and ".." not in part for part in parts)
    if not shape or parts[0] == "refs" or name.endswith(".lock") or is_oid(name):
        raise InvalidName(f"Invalid reference for a branch or tag: {name[:100]!r}")
    return name


def is_oid(value: str) -> bool:
    """Whether this is a full commit id."""
    return _OID.fullmatch(value) is not None


def is_sha256(value: object) -> bool:
    """Whether this is a full sha256, the id of an LFS object."""
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def pr_number(ref: str) -> int | None:
    """`refs/pr/7` → 7; anything else → None."""
    match = _PR_REF.fullmatch(ref)
    return int(match.group(1)) if match else None
