"""What comes between ``result_norm`` and the logits, by architecture; checked against llama.cpp itself with tiny
models in ``tests/integration/test_tiny_models.py``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from jobs.baseline.head_rules import HeadNotSupported, HeadRule, head_rule, head_tensor

TIED = ("token_embd.weight", "output_norm.weight")
UNTIED = (*TIED, "output.weight")
BIASED = (*UNTIED, "output.bias")


def rule(arch: str, names: tuple[str, ...] = UNTIED, **keys: Any) -> HeadRule:
    return head_rule({"general.architecture": arch} | {f"{arch}.{key}": value for key, value in keys.items()}, names)


@pytest.mark.parametrize(
    "arch",
    ["llama", "qwen2", "qwen3", "qwen3moe", "qwen35", "mistral3", "gemma", "gpt-oss", "deepseek2", "glm4moe", "mamba",
     "lfm2", "nemotron_h", "phi3", "hunyuan-dense", "made-up-tomorrow"],
)  # fmt: skip
def test_most_have_one_product_and_nothing_else(arch: str) -> None:
    assert rule(arch) == HeadRule(pre_scale=1.0, scale=1.0, bias=None, softcap=0.0)


@pytest.mark.parametrize("arch", ["llama", "qwen3", "gemma", "minicpm3", "phi2"])
def test_keys_that_llama_cpp_does_not_read_there_change_nothing(arch: str) -> None:
    found = rule(arch, logit_scale=8.0, final_logit_softcapping=30.0, embedding_length=256)
    assert found == HeadRule()


@pytest.mark.parametrize(
    ("arch", "keys", "scale"),
    [
        ("command-r", {"logit_scale": 0.0625}, 0.0625),
        ("command-r", {"logit_scale": 0.0}, 1.0),
        ("command-r", {}, 1.0),
        ("cohere2", {"logit_scale": 0.25}, 0.25),
        ("cohere2", {"logit_scale": 0.0}, 1.0),
        ("cohere2moe", {"logit_scale": 0.25}, 0.25),
        ("talkie", {"logit_scale": 2.5}, 2.5),
        ("talkie", {"logit_scale": 0.0}, 0.0),
        ("grok", {}, float(np.float32(1 / math.sqrt(3)))),
        ("grok", {"logit_scale": 0.5}, 0.5),
        ("granite", {"logit_scale": 8.0}, 0.125),
        ("granite", {"logit_scale": 6.0}, float(np.float32(1) / np.float32(6))),
        ("granite", {"logit_scale": 8}, 0.125),
        ("granitemoe", {"logit_scale": 8.0}, 0.125),
        ("granite_swa", {"logit_scale": 8.0}, 0.125),
        ("graniteswitch", {"logit_scale": 8.0}, 0.125),
        ("granitehybrid", {"logit_scale": 8.0}, 0.125),
        ("granitehybrid", {"logit_scale": 0.0}, 1.0),
        ("granitehybrid", {}, 1.0),
        ("minicpm", {"logit_scale": 9.0, "embedding_length": 2304}, float(np.float32(1) / np.float32(9))),
        # Files from before the key: llama.cpp takes 256/n_embd for it, and divides by that.
        ("minicpm", {"embedding_length": 2304}, 9.0),
        ("minicpm", {"embedding_length": 64}, 0.25),
    ],
)
def test_logit_scales(arch: str, keys: dict[str, Any], scale: float) -> None:
    assert rule(arch, **keys) == HeadRule(scale=scale)


@pytest.mark.parametrize(
    ("arch", "keys", "softcap"),
    [
        ("gemma2", {}, 30.0),
        ("gemma2", {"final_logit_softcapping": 20.0}, 20.0),
        ("gemma3", {}, 0.0),
        ("gemma3", {"final_logit_softcapping": 30.0}, 30.0),
        ("gemma3n", {}, 30.0),
        ("gemma3n", {"final_logit_softcapping": 20.0}, 30.0),
        ("gemma4", {}, 30.0),
        ("gemma4", {"final_logit_softcapping": 0.0}, 0.0),
        ("gemma4", {"final_logit_softcapping": 15.0}, 15.0),
    ],
)
def test_soft_caps(arch: str, keys: dict[str, Any], softcap: float) -> None:
    assert rule(arch, TIED, **keys) == HeadRule(softcap=softcap)


def test_scale_and_soft_cap_together() -> None:
    assert rule("grok", logit_scale=0.5, final_logit_softcapping=50.0) == HeadRule(scale=0.5, softcap=50.0)
    assert rule("muse-glimmer", logit_scale=0.5) == HeadRule(scale=0.5, softcap=30.0)
    assert rule("muse-glimmer", logit_scale=0.5, final_logit_softcapping=0.0) == HeadRule(scale=0.5)


def test_minicpm3_scales_before_the_head() -> None:
    assert rule("minicpm3", embedding_length=2560) == HeadRule(pre_scale=float(np.float32(256) / np.float32(2560)))


@pytest.mark.parametrize("arch", ["phi2", "phimoe", "qwen2", "phi3", "pangu-embedded"])
def test_biases_that_are_added(arch: str) -> None:
    assert rule(arch, BIASED) == HeadRule(bias="output.bias")
    assert rule(arch, UNTIED) == HeadRule()


@pytest.mark.parametrize("arch", ["qwen2vl", "dream", "llama"])
def test_biases_that_are_not(arch: str) -> None:
    assert rule(arch, BIASED) == HeadRule()


@pytest.mark.parametrize(
    ("arch", "why"),
    [
        ("bert", "encoder"), ("nomic-bert-moe", "encoder"), ("jina-bert-v3", "encoder"), ("modern-bert", "encoder"),
        ("t5encoder", "encoder"), ("gemma-embedding", "encoder"), ("llama-embed", "encoder"),
        ("t5", "encoder-decoder"), ("clip", "projector"), ("wavtokenizer-dec", "sound"), ("pockettts", "sound"),
        ("qwen3tts", "fewer rows"), ("chameleon", "masked in the first row"), ("cogvlm", "every token"),
        ("plamo3", "result_norm"), ("eagle3", "drafter"), ("dflash", "drafter"), ("gemma4-assistant", "drafter"),
    ],
)  # fmt: skip
def test_architectures_that_are_refused(arch: str, why: str) -> None:
    with pytest.raises(HeadNotSupported, match=f"^The architecture {arch} .*{why}.*\\.$"):
        rule(arch)


@pytest.mark.parametrize(
    ("names", "tensor"),
    [
        ((*UNTIED, "output.scale"), "output.scale"),
        ((*UNTIED, "output.input_scale"), "output.input_scale"),
        ((*TIED, "token_embd.scale"), "token_embd.scale"),
    ],
)
def test_scale_tensors_are_refused(names: tuple[str, ...], tensor: str) -> None:
    with pytest.raises(HeadNotSupported, match=tensor):
        rule("llama", names)


def test_scale_tensors_of_other_weights_are_not() -> None:
    assert rule("bitnet", (*TIED, "blk.0.attn_q.scale")) == HeadRule()


@pytest.mark.parametrize(
    ("arch", "keys", "why"),
    [
        ("cohere2", {}, "no key cohere2.logit_scale"),
        ("granite", {}, "no key granite.logit_scale"),
        ("talkie", {}, "no key talkie.logit_scale"),
        ("muse-glimmer", {}, "no key muse-glimmer.logit_scale"),
        ("granite", {"logit_scale": 0.0}, "which is 0"),
        ("granite", {"logit_scale": 1e-45}, "divides"),
        ("minicpm", {"logit_scale": 0.0, "embedding_length": 64}, "which is 0"),
        ("minicpm", {}, "embedding_length is None"),
        ("minicpm3", {"embedding_length": 0}, "embedding_length is 0"),
        ("minicpm3", {"embedding_length": True}, "embedding_length is True"),
        ("gemma2", {"final_logit_softcapping": 0.0}, "which is 0"),
        ("gemma3", {"final_logit_softcapping": "30"}, "'30'"),
        ("gemma3", {"final_logit_softcapping": True}, "True"),
        ("command-r", {"logit_scale": float("nan")}, "nan"),
        ("command-r", {"logit_scale": float("inf")}, "inf"),
        ("command-r", {"logit_scale": 1e300}, "1e\\+300"),
    ],
)
def test_keys_that_make_no_logits_are_refused(arch: str, keys: dict[str, Any], why: str) -> None:
    with pytest.raises(HeadNotSupported, match=why):
        rule(arch, **keys)


def test_an_architecture_is_needed() -> None:
    for metadata in ({}, {"general.architecture": 3}):
        with pytest.raises(HeadNotSupported, match="architecture"):
            head_rule(metadata, UNTIED)


def test_the_head_is_the_output_or_the_embeddings() -> None:
    assert head_tensor(UNTIED) == "output.weight"
    assert head_tensor({"output.weight"}) == "output.weight"  # codeshell has no embeddings of its own
    assert head_tensor(list(TIED)) == "token_embd.weight"
    with pytest.raises(HeadNotSupported, match="neither"):
        rule("llama", ("output_norm.weight",))
