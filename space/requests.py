"""What somebody typed into the request form, read as a repo id. Pure."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from core.errors import InputError

_HUB_HOSTS = frozenset({"huggingface.co", "www.huggingface.co", "hf.co"})
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,41}")


def repo_id_of(text: str, *, hub_url: str = "https://huggingface.co") -> str:
    """``owner/repo`` out of an id, a pasted page address, or llama.cpp's ``hf.co/owner/repo:Q4_K_M``.

    Raises :class:`InputError` with a sentence for the form.
    """
    given = text.strip()
    if not given:
        raise InputError("Write a repo as owner/name, or paste its address.")
    if len(given) > 400:
        raise InputError("That is too long to be a repo.")
    given = _path_of(given, hub_url)
    kind = given.split("/", 1)[0]
    if kind in {"datasets", "spaces", "buckets"}:
        raise InputError(f"That is one of the Hub's {kind}; only model repos with GGUF files can be measured.")
    parts = given.split("/")
    if len(parts) < 2 or not parts[1]:
        raise InputError("A repo is written owner/name, with one slash.")
    # A page of the repo ("/tree/main", "/blob/main/x.gguf") names the repo all the same, and so does a ":Q4_K_M".
    if len(parts) > 2 and parts[2] not in {"", "tree", "blob", "resolve", "discussions", "commits"}:
        raise InputError("A repo is written owner/name, with one slash.")
    repo_id = f"{parts[0]}/{parts[1].split(':', 1)[0]}"
    if not _ID.fullmatch(repo_id):
        raise InputError("A repo's name holds only letters, digits, '-', '_' and '.'.")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as refused:
        raise InputError("The Hub allows no such repo name.") from refused
    return repo_id


def _path_of(given: str, hub_url: str) -> str:
    """What stands behind the host of a pasted address; anything else unchanged."""
    scheme, mark, rest = given.partition("://")
    if mark and scheme == "hf":
        return rest
    try:
        address = urlsplit(given if mark else f"https://{given}")
    except ValueError as malformed:
        raise InputError("That is not an address on the Hub.") from malformed
    if address.netloc.lower() in _HUB_HOSTS | {urlsplit(hub_url).netloc.lower()}:
        return address.path.strip("/")
    if mark:
        raise InputError("That is not an address on the Hub.")
    return given


def user_of(text: str | None) -> str | None:
    """The name given with a request, or None; raises :class:`InputError` where it can't be a Hub user's."""
    name = (text or "").strip().lstrip("@")
    if not name:
        return None
    if not _NAME.fullmatch(name):
        raise InputError("That can't be a Hub user name; leave it empty if you like.")
    return name
