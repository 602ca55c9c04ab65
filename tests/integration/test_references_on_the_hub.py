"""References over the Hub's HTTP: proven by ranged reads, refused where a weight differs, kept, and looked at again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bot.intake.proof import LIMITS, RECHECK_S, prove_references
from bot.intake.view import view
from bot.intake.watch import poll
from bot.queue.plan import plan
from core.errors import HubUnreachableError
from core.gguf_header import read_file_header
from core.protocol import WIKITEXT2_TEST, Protocol
from localhub import seed
from tests.checkpoints import Checkpoint, safetensors
from tests.integration.proof_world import BASE, CARD, STRANGER, UPLOADER, World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as made:
        yield made


@pytest.mark.parametrize("kind", ["LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3MoeForCausalLM", "Gemma2ForCausalLM"])
def test_a_strangers_file_that_equals_the_base_models_weights_serves_everybody(world: World, kind: str) -> None:
    checkpoint = Checkpoint(kind)
    world.publish(checkpoint, world.gguf(checkpoint, "F16" if kind.startswith("Gemma") else "BF16"), shards=3)
    assert not poll(world.store, world.hub, now=world.now).errors
    assert world.choice().reference is None
    before = world.requests()
    [proof] = prove_references(world.store, world.hub, now=world.now, limit=5)
    assert (proof.verdict, proof.base_model) == ("proven", BASE), proof.detail
    assert 0 < world.requests() - before <= LIMITS.requests
    found = world.choice()
    assert found.kind == "proven" and found.reference and found.reference.repo_id == STRANGER
    assert world.choice(STRANGER).kind == "own"
    everybody = [pair for repo in (STRANGER, UPLOADER) for pair in view(world.store, trusted=()).of(repo)]
    jobs = plan(everybody, Protocol(corpus=WIKITEXT2_TEST))
    assert [job.kind for job in jobs].count("baseline") == 1 and [job.kind for job in jobs].count("quality") == 2
    assert UPLOADER in world.store.watching.to_plan()


def test_a_model_in_many_files_takes_no_more_requests(world: World) -> None:
    checkpoint = Checkpoint("Qwen3MoeForCausalLM", layers=12)
    folder = world.folder / "split"
    folder.mkdir()
    checkpoint.gguf(folder / "m-BF16.gguf", per_file=20)
    split = {path.name: path for path in folder.iterdir()}
    assert len(split) > 6
    world.upload(BASE, checkpoint.files(shards=10))
    world.upload(STRANGER, {**split, "README.md": CARD})
    world.upload(UPLOADER, {"m-Q4_0.gguf": world.gguf(checkpoint, "Q4_0"), "README.md": CARD})
    poll(world.store, world.hub, now=world.now)
    before = world.requests()
    [proof] = prove_references(world.store, world.hub, now=world.now, limit=5)
    assert proof.verdict == "proven", proof.detail
    assert world.requests() - before <= LIMITS.requests
    assert world.choice().kind == "proven"


def scaled(name: str) -> Callable[[dict[str, Any]], None]:
    def change(tensors: dict[str, Any]) -> None:
        tensors[name] = tensors[name] * 1.5

    return change


@pytest.mark.parametrize("name", ["token_embd.weight", "output_norm.weight", "output.weight"])
def test_a_file_with_other_weights_serves_nobody(world: World, name: str) -> None:
    checkpoint = Checkpoint()
    world.publish(checkpoint, world.gguf(checkpoint, change=scaled(name)))
    [proof] = world.prove()
    assert proof.verdict == "differs" and name in proof.detail
    assert world.choice().reference is None
    assert world.choice(STRANGER).kind == "own", "its own repo's figures are measured against it all the same"
    assert world.prove() == [], "a verdict stands"


def test_another_model_of_the_same_shape_differs(world: World) -> None:
    world.publish(Checkpoint(seed=1), world.gguf(Checkpoint(seed=2)))
    [proof] = world.prove()
    assert proof.verdict == "differs" and world.choice().reference is None


def test_the_same_weights_under_other_settings_differ(world: World) -> None:
    checkpoint = Checkpoint()
    world.publish(checkpoint, world.gguf(checkpoint, settings={"rope.freq_base": 10000.0}))
    [proof] = world.prove()
    assert proof.verdict == "differs" and "rope.freq_base" in proof.detail


def test_a_class_that_is_not_known_is_proven_only_where_nothing_was_reordered(world: World) -> None:
    checkpoint = Checkpoint("UnheardOfForCausalLM")
    world.publish(checkpoint, world.gguf(checkpoint))
    [proof] = world.prove()
    assert proof.verdict == "proven", proof.detail
    reordered = Checkpoint()
    reordered.config["architectures"] = ["UnheardOfForCausalLM"]
    world.upload(BASE, reordered.files())
    world.upload(STRANGER, {"m-BF16.gguf": world.gguf(reordered, metadata="another")})
    [proof] = world.prove(after=60)
    assert proof.verdict == "unprovable" and "not known here" in proof.detail


def hostile(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


GOOD = Checkpoint()


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"config.json": b"{}"},
        {"config.json": b"["},
        {"config.json": b"[" * 100_000},
        {"model.safetensors": b""},
        {"model.safetensors": (1 << 60).to_bytes(8, "little") + bytes(100)},
        {"model.safetensors": hostile(b"{" * 5000)},
        {"model.safetensors": GOOD.files()["model.safetensors"][:-70_000]},
        {"model.safetensors": safetensors({"model.norm.weight": GOOD.tensors["model.norm.weight"]})},
        {"model.safetensors.index.json": b'{"weight_map": {"a": "../../x.safetensors"}}'},
        {"model.safetensors.index.json": b'{"weight_map": {"model.norm.weight": "gone.safetensors"}}'},
        {"model.safetensors.index.json": json.dumps({"weight_map": {f"x{i}": "model.safetensors" for i in range(9)}})
            .encode()},
        {"config.json": json.dumps(GOOD.config | {"quantization_config": {"quant_method": "fp8"}}).encode()},
    ],
)  # fmt: skip
def test_a_base_model_that_can_not_be_read_or_lies_proves_nothing(world: World, files: dict[str, bytes]) -> None:
    whole = GOOD.files() if files else {"README.md": b"# Nothing\n"}
    reference = world.gguf(GOOD)
    world.upload(BASE, whole | files)
    world.upload(STRANGER, {reference.name: reference, "README.md": CARD})
    world.upload(UPLOADER, {"m-Q4_0.gguf": world.gguf(GOOD, "Q4_0"), "README.md": CARD})
    [proof] = world.prove()
    assert proof.verdict == "unprovable" and proof.detail.endswith("."), proof.detail
    assert world.choice().reference is None


def test_a_base_model_that_is_not_there_is_looked_for_again_a_week_later(world: World) -> None:
    checkpoint = Checkpoint()
    world.publish(checkpoint, world.gguf(checkpoint))
    seed.set_repo(world.root, BASE, private=True)
    [proof] = world.prove()
    assert (proof.verdict, proof.base_sha) == ("unprovable", None)
    seed.set_repo(world.root, BASE, private=False)
    assert world.prove(after=60) == []
    [proof] = world.prove(after=RECHECK_S)
    assert proof.verdict == "proven"


def test_a_proof_stands_until_the_base_model_changes(world: World) -> None:
    checkpoint = Checkpoint()
    world.publish(checkpoint, world.gguf(checkpoint))
    [first] = world.prove()
    assert world.prove() == []
    world.upload(BASE, {"README.md": b"# Another word\n"})
    assert world.prove(after=RECHECK_S + 1) == [], "the same weights in another commit"
    kept = world.store.proofs.proof(first.reference_key, BASE)
    assert kept and kept.verdict == "proven" and kept.base_sha != first.base_sha and kept.salt == first.salt
    world.upload(BASE, Checkpoint(seed=5).files())
    [again] = world.prove(after=RECHECK_S + 1)
    assert again.verdict == "differs" and again.base_sha not in (first.base_sha, kept.base_sha)
    assert world.choice().reference is None


def test_a_verdict_that_is_no_proof_takes_one_request_a_week(world: World) -> None:
    checkpoint = Checkpoint()
    world.publish(checkpoint, world.gguf(checkpoint, change=scaled("output.weight")))
    [proof] = world.prove()
    world.now += RECHECK_S + 1
    before = world.requests()
    assert prove_references(world.store, world.hub, now=world.now, limit=5) == []
    assert world.requests() - before == 1, "its base model's commit is asked for, and nothing else"
    kept = world.store.proofs.proof(proof.reference_key, BASE)
    assert kept and (kept.verdict, kept.at, kept.differed_at) == ("differs", world.now, proof.at)


def test_a_hub_that_is_away_leaves_no_verdict(world: World) -> None:
    checkpoint = Checkpoint()
    world.publish(checkpoint, world.gguf(checkpoint))
    for n in range(2):
        other, card = Checkpoint(seed=7 + n), f"---\nbase_model: org/base{n}\n---\n".encode()
        world.upload(f"stranger/b{n}-GGUF", {"b-BF16.gguf": world.gguf(other, name=str(n)), "README.md": card})
        world.upload(f"up/b{n}-GGUF", {"b-Q4_0.gguf": world.gguf(other, "Q4_0", name=str(n)), "README.md": card})
    poll(world.store, world.hub, now=world.now)
    world.server.stop()
    with pytest.raises(HubUnreachableError):
        prove_references(world.store, world.hub, now=world.now, limit=5)
    reference = view(world.store, trusted=()).of(STRANGER)[0][0]
    noted = world.store.proofs.proof(reference.key, BASE)
    assert noted and noted.verdict == "unasked" and noted.next_at > world.now


def test_nothing_is_proven_that_helps_nobody(world: World) -> None:
    checkpoint = Checkpoint()
    reference = world.gguf(checkpoint)
    world.upload(BASE, checkpoint.files())
    world.upload(STRANGER, {reference.name: reference, "README.md": CARD})
    assert world.prove() == [], "nobody else has files of this model"
    other = world.gguf(Checkpoint(vocab=1024), "Q4_0")
    world.upload(UPLOADER, {"m-Q4_0.gguf": other, "README.md": CARD})
    assert world.prove(after=60) == [], "the file is of another model than it says"
    world.upload("up/quant-GGUF", {"m-Q4_0.gguf": world.gguf(checkpoint, "Q4_0", name="2"), "README.md": CARD})
    assert len(world.prove(after=60, limit=0)) == 0
    assert [proof.verdict for proof in world.prove(after=60)] == ["proven"]


def test_the_teams_real_model_against_a_checkpoint_of_its_own_weights(world: World, shared: Path) -> None:
    """A trained model: its weights are written as a checkpoint by undoing llama.cpp's names and order."""
    import numpy as np

    path = shared / "data" / "models" / "stories260K-F16.gguf"
    header, raw = read_file_header(path), path.read_bytes()
    heads = {"attn_q": header.kv["llama.attention.head_count"], "attn_k": header.kv["llama.attention.head_count_kv"]}
    names = {
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }  # fmt: skip
    top = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    tensors = {}
    for tensor in header.tensors:
        at = header.data_start + tensor.offset
        kind = {"F16": np.float16, "F32": np.float32}[tensor.type_name]
        values = np.frombuffer(raw[at : at + tensor.n_bytes], kind).astype(np.float32).reshape(tensor.shape[::-1])
        parts = tensor.name.split(".")
        short = parts[2] if parts[0] == "blk" else parts[0]
        if short in heads:
            values = values.reshape(heads[short], -1, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        name = f"model.layers.{parts[1]}.{names[short]}" if parts[0] == "blk" else top[short]
        tensors[f"{name}.weight"] = values
    config = {"architectures": ["LlamaForCausalLM"], "num_attention_heads": heads["attn_q"]}
    config |= {"num_key_value_heads": heads["attn_k"], "num_hidden_layers": header.kv["llama.block_count"]}
    said = {
        "hidden_size": "embedding_length", "intermediate_size": "feed_forward_length", "vocab_size": "vocab_size",
        "rms_norm_eps": "attention.layer_norm_rms_epsilon", "max_position_embeddings": "context_length",
    }  # fmt: skip
    config |= {name: header.kv.get(f"llama.{key}") for name, key in said.items()}
    world.upload(
        BASE, {"config.json": json.dumps(config).encode(), "model.safetensors": safetensors(tensors, dtype="F32")}
    )
    world.upload(STRANGER, {path.name: path, "README.md": CARD})
    world.upload(UPLOADER, {"m-Q4_K_M.gguf": path.with_name("stories260K-Q4_K_M.gguf"), "README.md": CARD})
    [proof] = world.prove()
    assert proof.verdict == "proven", proof.detail
