"""Proofs that a hostile uploader, a bad Hub or a kill would like to go otherwise: turns, what is missing, who waits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bot.hub.budget import HubBudgetError
from bot.intake.proof import LIMITS, RECHECK_S, prove, prove_references
from bot.intake.proof_reads import Limits
from bot.intake.watch import poll
from bot.store.proofs import DISTRUST_S, Proof
from bot.store.repos import Variant
from bot.store.watching import Watching
from core.errors import HubError
from core.tensor_proof import Seen
from tests.checkpoints import Checkpoint
from tests.integration.proof_world import BASE, CARD, STRANGER, UPLOADER, World

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as made:
        yield made


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.hub.base._PAUSES", (0.01,))


def without(*ends: str) -> Change:
    def change(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.endswith(ends)]:
            del tensors[name]

    return change


def negated(*starts: str) -> Change:
    def change(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.startswith(starts)]:
            tensors[name] = -tensors[name]

    return change


def stranger(world: World) -> Variant:
    assert not poll(world.store, world.hub, now=world.now).errors
    return world.store.repos.variants(STRANGER)[0]


def to_the_end(world: World, limits: Limits = LIMITS) -> tuple[Proof, int]:
    """A proof with all its turns, and how many they were."""
    variant = stranger(world)
    proof, turns = prove(world.hub, variant, BASE, now=world.now, limits=limits), 1
    while proof.verdict == "partly":
        before = world.requests()
        proof, turns = prove(world.hub, variant, BASE, now=world.now, before=proof, limits=limits), turns + 1
        assert world.requests() - before <= limits.requests
    return proof, turns


# What is missing, and settings


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("Qwen2ForCausalLM", lambda t: t.pop("output.weight"), "It lacks output.weight"),
        ("Qwen2ForCausalLM", without(".bias"), "It lacks blk.0.attn_q.bias"),
        ("LlamaForCausalLM", without("blk.3.attn_q.weight"), "It lacks blk.3.attn_q.weight"),
    ],
)
def test_what_a_file_lacks_is_noticed(world: World, kind: str, change: Change, said: str) -> None:
    checkpoint = Checkpoint(kind, layers=6)
    world.publish(checkpoint, world.gguf(checkpoint, change=change))
    proof, _ = to_the_end(world)
    assert proof.verdict == "differs" and said in proof.detail and proof.differed_at is None


def test_factors_that_the_config_asks_for_must_be_there(world: World) -> None:
    checkpoint = Checkpoint()
    checkpoint.config["rope_scaling"] = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 256}
    world.publish(checkpoint, world.gguf(checkpoint))
    proof, _ = to_the_end(world)
    assert proof.verdict == "differs" and "rope_freqs.weight" in proof.detail


def test_a_header_that_sets_what_nobody_knows_is_not_proven(world: World) -> None:
    checkpoint = Checkpoint("Qwen3MoeForCausalLM")
    world.publish(checkpoint, world.gguf(checkpoint, settings={"expert_weights_scale": 0.0}))
    proof, _ = to_the_end(world)
    assert proof.verdict == "unprovable" and "expert_weights_scale" in proof.detail


def test_a_vocabulary_of_another_size_than_the_embeddings_is_not_proven(world: World) -> None:
    checkpoint = Checkpoint()
    tokens, checkpoint.vocab = checkpoint.vocab, checkpoint.vocab - 8
    reference = world.gguf(checkpoint, settings={"vocab_size": tokens})
    world.publish(Checkpoint(), reference)
    proof, _ = to_the_end(world)
    assert proof.verdict == "unprovable" and "vocabulary" in proof.detail


# The sample


def test_a_tensor_that_was_changed_is_found_with_every_lot(world: World) -> None:
    checkpoint = Checkpoint(layers=16)
    world.publish(checkpoint, world.gguf(checkpoint, change=negated("blk.11.ffn_down")))
    variant = stranger(world)
    for salt in "abcde":
        proof = prove(world.hub, variant, BASE, now=world.now, salt=salt)
        assert proof.verdict == "differs" and "blk.11.ffn_down.weight" in proof.detail


def sharded(world: World, checkpoint: Checkpoint, change: Change | None = None) -> None:
    folder = world.folder / "split"
    folder.mkdir()
    checkpoint.gguf(folder / "m-BF16.gguf", per_file=11, change=change)
    world.upload(BASE, checkpoint.files(shards=10))
    world.upload(STRANGER, {**{path.name: path for path in folder.iterdir()}, "README.md": CARD})
    world.upload(UPLOADER, {"m-Q4_0.gguf": world.gguf(checkpoint, "Q4_0"), "README.md": CARD})


def test_two_layers_of_a_model_in_many_files_are_found_in_one_of_the_turns(world: World) -> None:
    checkpoint = Checkpoint("Qwen3MoeForCausalLM", layers=12)
    sharded(world, checkpoint, negated("blk.5.", "blk.6."))
    limits = Limits(requests=60)
    found = [to_the_end(world, limits) for _ in range(4)]
    assert {proof.verdict for proof, _ in found} == {"differs"} and max(turns for _, turns in found) > 1


def test_a_proof_takes_as_many_turns_as_it_needs_and_serves_nobody_before(world: World) -> None:
    sharded(world, Checkpoint("Qwen3MoeForCausalLM", layers=12))
    limits = Limits(requests=50)
    assert not poll(world.store, world.hub, now=world.now).errors
    verdicts, done = [], [0]
    while not verdicts or verdicts[-1] == "partly":
        before = world.requests()
        [proof] = prove_references(world.store, world.hub, now=world.now, limit=1, limits=limits)
        assert world.requests() - before <= limits.requests
        verdicts.append(proof.verdict)
        done.append(len(Seen.of(proof.seen).tensors))
        assert world.choice().kind == ("proven" if proof.verdict == "proven" else "none")
    assert verdicts[-1] == "proven" and len(verdicts) > 2 and done == sorted(set(done))
    assert len(Seen.of(proof.seen).files) == 10
    assert prove_references(world.store, world.hub, now=world.now, limit=1) == []


def test_what_is_proven_is_sampled_anew_every_week_and_the_sample_grows(world: World) -> None:
    checkpoint = Checkpoint()
    world.publish(checkpoint, world.gguf(checkpoint))
    [first] = world.prove()
    values = [Seen.of(first.seen).values]
    for _ in range(2):
        assert world.prove(after=RECHECK_S + 1) == []
        kept = world.store.proofs.proof(first.reference_key, BASE)
        assert kept and kept.verdict == "proven" and kept.salt == first.salt
        values.append(Seen.of(kept.seen).values)
    assert values == [values[0], 2 * values[0], 3 * values[0]]


def test_a_week_later_a_change_that_the_first_lot_missed_may_be_found(world: World) -> None:
    def one_value(tensors: dict[str, Any]) -> None:
        tensors["blk.2.ffn_up.weight"] = tensors["blk.2.ffn_up.weight"].copy()
        tensors["blk.2.ffn_up.weight"].reshape(-1)[5] *= -1

    checkpoint = Checkpoint()
    world.publish(checkpoint, world.gguf(checkpoint, change=one_value))
    variant = stranger(world)
    salts = (str(n) for n in range(100))
    missed = next(
        proof for salt in salts if (proof := prove(world.hub, variant, BASE, now=1.0, salt=salt)).verdict == "proven"
    )
    world.store.proofs.save(missed)
    verdicts = []
    for _ in range(40):
        verdicts += [proof.verdict for proof in world.prove(after=RECHECK_S + 1)]
        if verdicts:
            break
    assert verdicts == ["differs"] and world.choice().kind == "none"


def test_a_base_model_that_hides_its_weights_keeps_what_was_proven(world: World) -> None:
    checkpoint = Checkpoint()
    world.publish(checkpoint, world.gguf(checkpoint))
    assert [proof.verdict for proof in world.prove()] == ["proven"]
    world.faults.fail(r"/org/base/resolve/", status=403, times=10**6)
    assert world.prove(after=RECHECK_S + 1) == []
    assert world.choice().kind == "proven"


# Who failed once


def test_an_owner_whose_file_differed_gets_no_further_lot_for_90_days(world: World) -> None:
    checkpoint = Checkpoint()
    world.publish(checkpoint, world.gguf(checkpoint, change=negated("output.weight")))
    [first] = world.prove()
    assert first.verdict == "differs" and first.differed_at == world.now
    world.upload(STRANGER, {"m-BF16.gguf": world.gguf(checkpoint, metadata="right this time")})
    [second] = world.prove(after=60)
    assert second.verdict == "unprovable" and "stranger" in second.detail and "differed" in second.detail
    assert "until" in second.detail and world.choice().kind == "none"
    assert world.prove(after=RECHECK_S + 1) == []
    [third] = world.prove(after=DISTRUST_S)
    assert third.verdict == "proven", third.detail


def test_other_owners_and_other_weights_are_not_held_against_anybody(world: World) -> None:
    checkpoint = Checkpoint()
    world.publish(checkpoint, world.gguf(checkpoint, change=negated("output.weight")))
    assert [proof.verdict for proof in world.prove()] == ["differs"]
    world.store.repos.follow("honest", consented=False, now=world.now)
    world.upload("honest/m-GGUF", {"m-BF16.gguf": world.gguf(checkpoint, name="h"), "README.md": CARD})
    assert [proof.verdict for proof in world.prove(after=60)] == ["proven"]
    anew = Checkpoint(seed=9)
    world.upload(BASE, anew.files())
    world.upload(STRANGER, {"m-BF16.gguf": world.gguf(anew, name="n")})
    verdicts = {proof.verdict for _ in range(2) for proof in world.prove(after=RECHECK_S + 1)}
    assert "proven" in verdicts and world.choice().reference.repo_id == STRANGER  # type: ignore[union-attr]


# Who waits


def useless(world: World, n: int) -> None:
    """Base models with an unquantized file each that fits nobody's quant."""
    other = world.gguf(Checkpoint(layers=8), "Q4_0", name="big")
    for i in range(n):
        card = f"---\nbase_model: aaa/base{i:02}\n---\n".encode()
        small = world.gguf(Checkpoint(layers=1, vocab=64, seed=100 + i), name=str(i))
        world.upload(f"stranger/a{i:02}-GGUF", {"m-BF16.gguf": small, "README.md": card})
        world.upload(f"up/a{i:02}-GGUF", {"big-Q4_0.gguf": other, "README.md": card})


def test_files_that_help_nobody_do_not_keep_others_waiting(world: World) -> None:
    useless(world, 20)
    checkpoint = Checkpoint()
    world.publish(checkpoint, world.gguf(checkpoint))
    seen = [proof.base_model for _ in range(3) for proof in world.prove(limit=1, after=60)]
    assert seen == [BASE] and world.choice().kind == "proven"
    noted = world.store.db.conn.execute("SELECT count(*) FROM proofs WHERE verdict = 'unasked'").fetchone()
    assert noted == (20,)


def test_what_helps_nobody_is_asked_again_once_somebody_came(world: World) -> None:
    useless(world, 1)
    assert world.prove() == []
    card = b"---\nbase_model: aaa/base00\n---\n"
    small = Checkpoint(layers=1, vocab=64, seed=100)
    world.upload("aaa/base00", small.files())
    world.upload("up/late-GGUF", {"m-Q4_0.gguf": world.gguf(small, "Q4_0"), "README.md": card})
    assert [proof.base_model for proof in world.prove(after=60)] == ["aaa/base00"]


@pytest.mark.parametrize("status", [500, 451])
def test_a_base_model_that_the_hub_refuses_does_not_keep_others_waiting(world: World, status: int) -> None:
    bad, card = Checkpoint(seed=9), b"---\nbase_model: aaa/bad\n---\n"
    world.upload("aaa/bad", bad.files())
    world.upload("stranger/a-GGUF", {"t-BF16.gguf": world.gguf(bad, name="2"), "README.md": card})
    world.upload("up/a-GGUF", {"t-Q4_0.gguf": world.gguf(bad, "Q4_0", name="2"), "README.md": card})
    checkpoint = Checkpoint()
    world.publish(checkpoint, world.gguf(checkpoint))
    world.faults.fail(r"/api/models/aaa/bad$", status=status, times=10**6)
    assert [proof.base_model for proof in world.prove()] == [BASE]
    waits = []
    for _ in range(3):
        [(at, until)] = world.store.db.conn.execute("SELECT at, next_at FROM proofs WHERE verdict = 'unasked'")
        waits.append(until - at)
        assert world.prove() == []
        world.now = until
        assert world.prove() == []
    assert waits[0] < waits[1] < waits[2], "asked ever more seldom"
    world.faults.clear()
    assert [proof.base_model for proof in world.prove(after=86400)] == ["aaa/bad"]


def test_an_old_proof_that_the_hub_refuses_to_look_at_stays_and_others_go_on(world: World) -> None:
    checkpoint = Checkpoint()
    world.publish(checkpoint, world.gguf(checkpoint))
    assert [proof.verdict for proof in world.prove()] == ["proven"]
    other, card = Checkpoint(seed=9), b"---\nbase_model: org/base2\n---\n"
    world.upload("org/base2", other.files())
    world.upload("stranger/two-GGUF", {"t-BF16.gguf": world.gguf(other, name="2"), "README.md": card})
    world.upload("up/two-GGUF", {"t-Q4_0.gguf": world.gguf(other, "Q4_0", name="2"), "README.md": card})
    world.faults.fail(r"/api/models/org/base$", status=451, times=10**6)
    assert [proof.base_model for proof in world.prove(after=RECHECK_S + 1)] == ["org/base2"]
    assert world.choice().kind == "proven"


def test_a_spent_budget_stops_all_and_notes_nothing(world: World) -> None:
    checkpoint = Checkpoint()
    world.publish(checkpoint, world.gguf(checkpoint))
    poll(world.store, world.hub, now=world.now)
    world.faults.fail(r"/api/models/org/base", status=429, times=10**6)
    with pytest.raises(HubError) as raised:
        prove_references(world.store, world.hub, now=world.now, limit=5)
    assert isinstance(raised.value, HubBudgetError) or "rate limit" in str(raised.value)
    assert world.store.db.conn.execute("SELECT count(*) FROM proofs").fetchone() == (0,)


# Kills


def test_a_kill_between_a_proof_and_what_follows_from_it_loses_neither(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Kill(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Kill

    checkpoint = Checkpoint()
    world.publish(checkpoint, world.gguf(checkpoint))
    poll(world.store, world.hub, now=world.now)
    for repo_id in world.store.watching.to_plan():
        world.store.watching.planned(repo_id)
    with monkeypatch.context() as patched:
        patched.setattr(Watching, "want_plan_of_base", killed)
        with pytest.raises(Kill):
            prove_references(world.store, world.hub, now=world.now, limit=5)
    assert world.choice().kind == "none" and world.store.watching.to_plan() == []
    assert [proof.verdict for proof in world.prove()] == ["proven"]
    assert set(world.store.watching.to_plan()) == {STRANGER, UPLOADER}


def test_an_index_or_a_config_of_no_sense_takes_a_verdict_and_no_more(world: World) -> None:
    checkpoint = Checkpoint()
    world.publish(checkpoint, world.gguf(checkpoint))
    huge = json.dumps(checkpoint.config | {"hidden_size": 10**400, "head_dim": 0, "rope_theta": -1.0}).encode()
    world.upload(BASE, {"config.json": huge})
    proof, _ = to_the_end(world)
    assert proof.verdict in ("unprovable", "differs") and proof.detail.endswith(".")
