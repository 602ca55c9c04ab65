"""Where a header says that a file comes from, and where it contradicts itself."""

from __future__ import annotations

from typing import Any

import pytest

from core.audit import base_models, repo_id_of
from core.provenance import contradiction, source_of


@pytest.mark.parametrize(
    ("url", "repo"),
    [
        ("https://huggingface.co/Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ("https://huggingface.co/Qwen/Qwen3-0.6B/", "Qwen/Qwen3-0.6B"),
        ("https://huggingface.co/Qwen/Qwen3.5/tree/main", "Qwen/Qwen3.5"),
        ("https://huggingface.co/Qwen/Qwen3?x=1", "Qwen/Qwen3"),
        ("http://127.0.0.1:8000/a/b", "a/b"),
        ("https://huggingface.co/datasets/a/b", None),
        ("https://github.com/a/b", None),
        ("https://huggingface.co/Qwen", None),
        ("Qwen/Qwen3", None),
        ("https://huggingface.co/a b/c", None),
        ("", None),
        (None, None),
    ],
)
def test_repos_of_addresses(url: str | None, repo: str | None) -> None:
    assert repo_id_of(url) == repo


def test_base_models_are_what_the_header_claims() -> None:
    kv: dict[str, Any] = {
        "general.base_model.count": 2, "general.base_model.0.name": "A", "general.base_model.0.organization": "Org",
        "general.base_model.0.repo_url": "https://huggingface.co/Org/A", "general.base_model.1.name": 7,
    }  # fmt: skip
    first, second = base_models(kv)
    assert (first.name, first.organization, first.repo_id) == ("A", "Org", "Org/A")
    assert second.name is None
    assert len(base_models({"general.base_model.count": 10**9})) == 16
    assert base_models({"general.base_model.count": "2"}) == base_models({}) == []


def test_a_page_counts_as_a_repo_only_on_the_hub() -> None:
    kv: dict[str, Any] = {"general.base_model.count": 1, "general.base_model.0.url": "https://huggingface.co/Org/A"}
    assert base_models(kv)[0].repo_id == "Org/A"
    assert base_models(kv | {"general.base_model.0.url": "https://arxiv.org/abs/2407.1"})[0].repo_id is None


def test_the_source_is_what_was_converted() -> None:
    assert source_of({}) is None
    found = source_of({"general.source.repo_url": "https://huggingface.co/me/tuned"})
    assert found and found.repo_id == "me/tuned"
    older = source_of({"general.source.huggingface.repository": "me/tuned"})
    assert older and older.repo_id == "me/tuned"
    assert source_of({"general.source.huggingface.repository": "not a repo"}) is None


BASE = {"general.base_model.count": 1, "general.base_model.0.repo_url": "https://huggingface.co/Qwen/Qwen3-0.6B"}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, None),
        # the ways in which converters write one and the same model
        ({"general.base_model.0.name": "Qwen3 0.6B", "general.base_model.0.organization": "Qwen"}, None),
        ({"general.base_model.0.name": "Qwen3 0.6B Instruct", "general.base_model.0.organization": "QwenLM"}, None),
        ({"general.base_model.0.name": "Qwen3", "general.base_model.0.organization": "Alibaba"}, None),
        ({"general.base_model.0.url": "https://huggingface.co/qwen/qwen3-0.6b/"}, None),
        ({"general.base_model.0.url": "https://qwen.ai/blog/qwen3"}, None),
        # of a fine-tune: converted from the tuned model, made from the base model
        ({"general.source.repo_url": "https://huggingface.co/me/tuned"}, None),
        ({"general.base_model.count": 2, "general.base_model.1.name": "B"}, None),
        ({"general.base_model.0.name": 7, "general.source.url": 3}, None),
        # contradictions
        ({"general.base_model.0.url": "https://huggingface.co/meta/Llama"}, "meta/Llama by its url"),
        ({"general.base_model.0.name": "Llama 3", "general.base_model.0.organization": "Meta"}, "Meta/Llama 3 by name"),
        ({"general.base_model.1.name": "B"}, "count says 1, but 2 are named"),
        ({"general.base_model.count": 0}, "count says 0, but 1 are named"),
        (
            {
                "general.source.repo_url": "https://huggingface.co/me/tuned",
                "general.source.huggingface.repository": "you/other",
            },
            "from me/tuned and from you/other",
        ),
    ],
)
def test_claims_that_contradict_each_other(more: dict[str, Any], said: str | None) -> None:
    found = contradiction(BASE | more)
    assert (found is None) if said is None else (found is not None and said in found)
