"""What is read from strangers: cards, wishes, names, webhooks; which reference a variant gets; the plan."""

from __future__ import annotations

import errno
from typing import Any

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
from bot.intake.references import Choice, choose
from bot.intake.requests import parse_repo_id
from bot.queue.plan import jobs_for, plan
from bot.service import wakes
from bot.store.repos import Repo, Variant
from core.audit import Inspection, TypeShare
from core.errors import (
    HubAuthError,
    HubConflictError,
    HubError,
    HubNotFoundError,
    HubRateLimitError,
    HubUnreachableError,
    StorageError,
)
from core.gguf_files import RepoFile, label_of
from core.protocol import WIKITEXT2_TEST, Protocol

PROTOCOL = Protocol(corpus=WIKITEXT2_TEST)


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


def payload(scope: str, *, kind: str = "model", refs: Any = None) -> dict[str, Any]:
    return {"event": {"scope": scope}, "repo": {"type": kind}, "updatedRefs": refs}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (payload("repo.content", refs=[{"ref": "refs/heads/main"}]), True),
        (payload("repo.content", refs=[{"ref": "refs/pr/1"}]), False),
        (payload("repo.content", refs="refs/heads/main"), False),
        (payload("repo.content", refs=[1, None]), False),
        (payload("repo.content", refs=[{"ref": "refs/heads/main"}], kind="dataset"), False),
        (payload("repo"), True),
        (payload("discussion"), True),
        (payload("discussion.comment"), True),
        (payload("repo.config"), False),
        ({"event": 1, "repo": {"type": "model"}}, False),
        ({"event": {"scope": "repo"}, "repo": []}, False),
        ({}, False),
    ],
)
def test_wakes(body: dict[str, Any], expected: bool) -> None:
    assert wakes(body) is expected


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
        (answered(403, GatedRepoError), HubAuthError),
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


def variant(name: str, repo: str = "up/m", *, kind: str = "Q8_0", number: int = 1, **changed: Any) -> Variant:
    params = changed.pop("n_params", 1000)
    inspection = Inspection.model_construct(
        architecture=changed.pop("architecture", "llama"),
        n_params=params,
        n_vocab=changed.pop("n_vocab", 64),
        tensor_types={kind: TypeShare(count=1, params=params, bytes=1)},
    )
    key = f"{number:064x}"
    return Variant(
        number, repo, name, key, label_of(name), (RepoFile(name, 1, key),), 1, "rev", inspection, None, "current"
    )


def repo(name: str, base: str | None = "org/base") -> Repo:
    return Repo(name, "sha", "follow", None, base, {})


def chosen(target: Variant, *others: Variant, base: str | None = "org/base", trusted: tuple[str, ...] = ()) -> Choice:
    everything = [target, *others]
    repos = {v.repo_id: repo(v.repo_id, "Org/Base") for v in others} | {target.repo_id: repo(target.repo_id, base)}
    return choose(target, repos[target.repo_id], variants=everything, repos=repos, trusted=trusted)


def test_the_same_repo_comes_first_and_bf16_before_f16() -> None:
    own = variant("m-BF16.gguf", kind="BF16", number=2)
    f16 = variant("m-F16.gguf", kind="F16", number=3)
    foreign = variant("m-BF16.gguf", "org/x", kind="BF16", number=4)
    assert chosen(variant("m-Q8_0.gguf"), f16, own, foreign).reference == own
    assert chosen(own, f16).reference == own


def test_where_a_repo_holds_several_models_the_name_decides() -> None:
    a, b = variant("a-BF16.gguf", kind="BF16", number=2), variant("b-F16.gguf", kind="F16", number=3)
    assert chosen(variant("b-Q4_K_M.gguf"), a, b).reference == b
    assert chosen(variant("a-Q4_K_M.gguf"), a, b).reference == a


def test_a_label_does_not_make_a_reference() -> None:
    assert chosen(variant("m-Q8_0.gguf"), variant("m-BF16.gguf", kind="Q8_0", number=2)).reference is None


def test_others_serve_only_when_trusted_and_for_the_same_base() -> None:
    target = variant("m-Q8_0.gguf")
    for owner, trusted, expected in (("org", (), True), ("good", ("good",), True), ("stranger", (), False)):
        found = chosen(target, variant("m-F16.gguf", f"{owner}/x", kind="F16", number=2), trusted=trusted)
        assert (found.reference is not None) is expected
        assert f"{owner}/x" in found.reason if expected else "org/base" in found.reason
    assert "names no base_model" in chosen(target, base=None).reason
    assert chosen(target, variant("m-F16.gguf", "org/x", kind="F16", number=2), base="org/else").reference is None


@pytest.mark.parametrize("changed", [{"architecture": "qwen2"}, {"n_vocab": 65}, {"n_params": 1100}])
def test_another_model_is_no_reference(changed: dict[str, Any]) -> None:
    assert chosen(variant("m-Q8_0.gguf"), variant("m-F16.gguf", kind="F16", number=2, **changed)).reference is None


def test_what_has_no_architecture_is_nobodys_model() -> None:
    target = variant("m-Q8_0.gguf", architecture=None)
    assert chosen(target, variant("m-F16.gguf", kind="F16", number=2, architecture=None)).reference is None


def test_the_plan_has_each_job_once_and_dependencies_first() -> None:
    reference, quant = variant("m-F16.gguf", kind="F16", number=2), variant("m-Q8_0.gguf")
    twin = variant("m-Q8_0.gguf", "else/m", number=1)
    choice = Choice(reference, "")
    jobs = plan([(quant, choice), (twin, choice), (reference, choice)], PROTOCOL)
    keys = [job.key for job in jobs]
    assert [job.kind for job in jobs] == ["baseline", "quality", "speed", "quality", "speed"] and len(set(keys)) == 5
    assert all(keys.index(job.depends_on_key) < keys.index(job.key) for job in jobs if job.depends_on_key)
    assert [job.kind for job in jobs_for(quant, Choice(None, ""), PROTOCOL)] == ["speed"]
    other = PROTOCOL.model_copy(update={"n_ctx": 1024})
    assert not {job.key for job in plan([(quant, choice)], other)} & set(keys)


def test_what_can_not_be_measured_is_not_planned() -> None:
    from dataclasses import replace

    reference, quant = variant("m-F16.gguf", kind="F16", number=2), variant("m-Q8_0.gguf")
    assert jobs_for(replace(quant, note="1 of 2 shards are there."), Choice(reference, ""), PROTOCOL) == []
    unread = replace(reference, inspection=None)
    assert [job.kind for job in jobs_for(quant, Choice(unread, ""), PROTOCOL)] == ["speed"]
