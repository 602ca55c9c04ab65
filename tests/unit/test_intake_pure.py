"""What is read from strangers: cards, wishes, names; what the Hub's refusals mean."""

from __future__ import annotations

import errno

import pytest
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import httpx
from hypothesis import given
from hypothesis import strategies as st

from bot.hub.translate import translate
from bot.intake.card_meta import base_model_of, front_matter, parse_config
from bot.intake.requests import parse_repo_id
from core.errors import (
    HubAuthError,
    HubConflictError,
    HubError,
    HubGatedError,
    HubNotFoundError,
    HubRateLimitError,
    HubUnreachableError,
    StorageError,
)


@pytest.mark.parametrize(
    ("card", "base"),
    [
        ("---\nbase_model: a/b\n---\n", "a/b"),
        ("\ufeff---\r\nbase_model:\r\n- a/b\r\n- c/d\r\n---\r\n", "a/b"),
        ("---\nbase_model: |\n  a/b\n---\n", None),
        ("---\nbase_model: ../..\n---\n", None),
        ("---\nbase_model: [[a/b]]\n---\n", None),
        ("---\nbase_model: {a: b}\n---\n", None),
        ("---\nx: [\n---\n", None),
        ("---\nx: !!bool maybe\nbase_model: a/b\n---\n", None),
        ("---\nx: !!timestamp soon\n---\n", None),
        ("---\nx: !!int ''\n---\n", None),
        ("---\n" + "a: b\n" * 100_000 + "---\n", None),
        ("no front matter\n---\nbase_model: a/b\n---\n", None),
        ("", None),
    ],
)
def test_base_model_of(card: str, base: str | None) -> None:
    assert base_model_of(card) == base


@given(st.text(max_size=200))
def test_no_front_matter_breaks_us(text: str) -> None:
    assert isinstance(front_matter(f"---\n{text}\n---\n"), dict)
    assert parse_config(text.encode("utf-8", "surrogatepass")).position in ("end", "top")


@pytest.mark.parametrize(
    ("data", "enabled", "position", "problem"),
    [
        (None, True, "end", None),
        (b"", True, "end", None),
        (b"enabled: false", False, "end", None),
        (b"position: top", True, "top", None),
        (b"position: middle", False, "end", "position"),
        (b"position: [top]", False, "end", "position"),
        (b"enabled: 1", False, "end", "enabled"),
        (b"- a", False, "end", "mapping"),
        (b"a: [", False, "end", "YAML"),
        (b"\xff\xfe", False, "end", "YAML"),
        (b"enabled: !!bool maybe", False, "end", "YAML"),
    ],
)
def test_parse_config(data: bytes | None, enabled: bool, position: str, problem: str | None) -> None:
    found = parse_config(data)
    assert (found.enabled, found.position) == (enabled, position)
    assert (problem is None) == (found.problem is None) and (problem or "") in (found.problem or "")


@pytest.mark.parametrize(
    ("text", "repo"),
    [
        ("a/b", "a/b"),
        ("  https://huggingface.co/a/b.c/tree/main?x=1#y ", "a/b.c"),
        ("hf.co/a/b", "a/b"),
        ("huggingface.co/a/b/", "a/b"),
        ("http://127.0.0.1:8790/a/b", "a/b"),
        ("https://huggingface.co/datasets/a/b", None),
        ("spaces/a", None),
        ("a", None),
        ("a/../b", None),
        ("../b", None),
        ("a/b--c", None),
        ("a/b.", None),
        ("a/b c", None),
        ("ä/b", None),
        ("", None),
        ("a/" + "b" * 97, None),
    ],
)
def test_parse_repo_id(text: str, repo: str | None) -> None:
    assert parse_repo_id(text) == repo


def answered(status: int, kind: type[HfHubHTTPError] = HfHubHTTPError) -> HfHubHTTPError:
    response = httpx.Response(status, request=httpx.Request("GET", "http://hub/x"))
    return kind("said", response=response)


def hidden(error: Exception) -> LocalEntryNotFoundError:
    outer = LocalEntryNotFoundError("no connection?")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (answered(401), HubAuthError),
        (answered(403), HubAuthError),
        (answered(403, GatedRepoError), HubGatedError),
        (answered(404, RepositoryNotFoundError), HubNotFoundError),
        (answered(404), HubNotFoundError),
        (EntryNotFoundError("x"), HubNotFoundError),
        (HFValidationError("a--b"), HubNotFoundError),
        (answered(409), HubConflictError),
        (answered(412), HubConflictError),
        (answered(429), HubRateLimitError),
        (answered(408), HubUnreachableError),
        (answered(500), HubUnreachableError),
        (answered(503), HubUnreachableError),
        (answered(418), HubError),
        (hidden(answered(429)), HubRateLimitError),
        (hidden(httpx.ConnectError("x")), HubUnreachableError),
        (httpx.ReadTimeout("x"), HubUnreachableError),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), HubUnreachableError),
        (OSError(-2, "Name or service not known"), HubUnreachableError),
        (TimeoutError(errno.ETIMEDOUT, "timed out"), HubUnreachableError),
        (OfflineModeIsEnabled("x"), HubUnreachableError),
        (OSError(errno.ENOSPC, "No space left on device"), StorageError),
        (KeyError("sha"), HubUnreachableError),
        (ValueError("Invalid metadata in README.md"), HubError),
        (HubConflictError("ours"), HubConflictError),
    ],
)
def test_translate(error: Exception, kind: type[Exception]) -> None:
    ours = translate(error, doing="the list", endpoint="http://hub")
    assert type(ours) is kind
    assert str(ours) == "ours" or ("the list" in str(ours) and str(ours).endswith("."))
