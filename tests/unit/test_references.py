"""Which reference a variant gets, from whom, and why none; what is planned; one baseline for all uploaders."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bot.intake.base_models import Base, base_of, is_derivative
from bot.intake.references import Choice, Offers, Shared
from bot.intake.view import View, view
from bot.publish.rows import current_rows, settled
from bot.publish.states import state_of
from bot.publish.told import told_rows
from bot.queue.plan import jobs_for, plan
from bot.store import Store
from bot.store.proofs import Proof
from bot.store.repos import Repo, Variant
from core.audit import BaseModelRef, Inspection, TypeShare
from core.gguf_files import RepoFile, VariantFiles, label_of
from core.protocol import WIKITEXT2_TEST, Protocol

PROTOCOL = Protocol(corpus=WIKITEXT2_TEST)
ORG = Base("org/base")


def inspection(kind: str = "Q4_K", **changed: Any) -> Inspection:
    params = changed.get("n_params", 1000)
    bits = {"BF16": 16.0, "F16": 16.0, "F32": 32.0, "Q8_0": 8.5}.get(kind, 4.5)
    known: dict[str, Any] = {
        "architecture": "llama", "n_params": params, "size_bytes": 1, "bpw": bits, "file_type": kind, "n_tensors": 1,
        "tensor_types": {kind: TypeShare(count=1, params=params, bytes=1)}, "groups": {}, "imatrix": None,
        "base_models": [], "shards": 1, "chat_template_sha256": None, "n_vocab": 64, "n_ctx_train": 512, "flags": [],
    }  # fmt: skip
    return Inspection(**(known | changed))


def variant(name: str, repo: str = "up/m", *, kind: str = "Q4_K", number: int = 1, **changed: Any) -> Variant:
    key = f"{number:064x}"
    files = (RepoFile(name, 1, key),)
    found = inspection(kind, **changed)
    return Variant(number, repo, name, key, label_of(name), files, 1, "rev", found, None, "current")


def choose(target: Variant, *, own: list[Variant], shared: list[Shared], base: Base) -> Choice:
    return Offers(own=own, shared=shared, base=base).choice(target)


def own(target: Variant, *others: Variant, base: Base = ORG) -> Choice:
    """The choice among files of one repo."""
    return choose(target, own=[target, *others], shared=[], base=base)


# Within a repo


def test_the_same_repo_comes_first_and_bf16_before_f16() -> None:
    bf16 = variant("m-BF16.gguf", kind="BF16", number=2)
    f16 = variant("m-F16.gguf", kind="F16", number=3)
    foreign = Shared(variant("m-BF16.gguf", "org/x", kind="BF16", number=4), "base-owner")
    target = variant("m-Q4_K_M.gguf")
    found = choose(target, own=[target, f16, bf16], shared=[foreign], base=ORG)
    assert (found.reference, found.kind) == (bf16, "own")
    assert choose(bf16, own=[f16, bf16], shared=[foreign], base=ORG).reference == bf16


def test_where_a_repo_holds_several_models_the_name_decides() -> None:
    a, b = variant("a-BF16.gguf", kind="BF16", number=2), variant("b-F16.gguf", kind="F16", number=3)
    assert own(variant("b-Q4_K_M.gguf"), a, b).reference == b
    assert own(variant("a-Q4_K_M.gguf"), a, b).reference == a


def test_a_label_does_not_make_a_reference() -> None:
    assert own(variant("m-Q4_K_M.gguf"), variant("m-BF16.gguf", kind="Q5_K", number=2)).reference is None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"architecture": "qwen2"}, "F16 of this repo is of another model"),
        ({"n_params": 1100}, "F16 of this repo is of another model"),
        ({"n_vocab": 65}, "F16 of this repo has another vocabulary (65 tokens, this file 64)"),
    ],
)
def test_another_model_is_no_reference_and_that_is_said(changed: dict[str, Any], said: str) -> None:
    found = own(variant("m-Q4_K_M.gguf"), variant("m-F16.gguf", kind="F16", number=2, **changed))
    assert found.reference is None and said in found.reason


def test_what_has_no_architecture_is_nobodys_model() -> None:
    target = variant("m-Q4_K_M.gguf", architecture=None)
    assert own(target, variant("m-F16.gguf", kind="F16", number=2, architecture=None)).reference is None


def test_a_reference_with_missing_shards_is_none() -> None:
    half = replace(variant("m-F16.gguf", kind="F16", number=2), note="1 of 2 shards are there.")
    assert own(variant("m-Q4_K_M.gguf"), half).reference is None


def test_of_many_variants_few_are_considered_and_the_right_ones_are_found() -> None:
    many = [variant(f"m{n:04}-BF16.gguf", kind="BF16", number=n + 2) for n in range(600)]
    alike = variant("zz-F16.gguf", kind="F16", number=900)
    other = [variant(f"o{n:04}-BF16.gguf", kind="BF16", number=n + 1000, n_vocab=7) for n in range(50)]
    eight = [variant(f"q{n:04}-Q8_0.gguf", kind="Q8_0", number=n + 2000, architecture="qwen2") for n in range(200)]
    shared = [Shared(variant("m-F16.gguf", f"a{n}/x", kind="F16", number=3000 + n), "proven") for n in range(200)]
    offers = Offers(own=[*many, alike, *other, *eight], shared=shared, base=ORG)
    target = variant("zz-Q4_K_M.gguf", number=1)
    assert offers.choice(target).reference == alike, "the one whose name is like its own"
    assert offers.choice(variant("else-Q4_K_M.gguf", number=1)).reference == many[0]
    assert (
        offers.choice(replace(target, name="o0049-Q4_K_M.gguf", inspection=inspection(n_vocab=7))).reference
        == other[-1]
    )
    assert offers.choice(eight[-1]).kind == "q8_0"
    for one in (target, *eight, *other, *many):
        assert len(offers._unquantized.of(one)) + len(offers._q8_0.of(one)) <= 6 * 32


# A Q8_0, as a last resort


def test_a_q8_0_is_the_last_resort_and_says_that_figures_flatter() -> None:
    eight = variant("m-Q8_0.gguf", kind="Q8_0", number=2)
    target = variant("m-Q4_K_M.gguf")
    found = own(target, eight)
    assert (found.reference, found.kind) == (eight, "q8_0") and "flatter" in found.reason
    assert own(eight, target).reference == eight
    proven = Shared(variant("m-F16.gguf", "x/y", kind="F16", number=3), "proven")
    found = choose(target, own=[target, eight], shared=[proven], base=ORG)
    assert (found.reference, found.kind) == (proven.variant, "proven")


def test_a_q8_0_alone_is_not_measured_against_itself() -> None:
    eight = variant("m-Q8_0.gguf", kind="Q8_0")
    assert own(eight).reference is None
    shared = Shared(variant("m-Q8_0.gguf", "org/y", kind="Q8_0", number=3), "base-owner")
    assert choose(eight, own=[eight], shared=[shared], base=ORG).reference == shared.variant


def test_a_strangers_q8_0_serves_nobody() -> None:
    target, stranger = variant("m-Q4_K_M.gguf"), variant("m-Q8_0.gguf", "x/y", kind="Q8_0", number=2)
    assert choose(target, own=[target], shared=[Shared(stranger, "proven")], base=ORG).reference is None
    found = choose(target, own=[target], shared=[Shared(stranger, "trusted")], base=ORG)
    assert (found.reference, found.kind) == (stranger, "q8_0") and "x/y" in found.reason


# Vocabularies


def test_another_vocabulary_is_refused_before_anything_is_queued() -> None:
    reference = variant("m-F16.gguf", kind="F16", number=2, vocab_sha256="a")
    target = variant("m-Q4_K_M.gguf", vocab_sha256="b")
    found = own(target, reference)
    assert found.reference == reference and found.refused and "vocabulary differs from the reference's" in found.refused
    assert [job.kind for job in jobs_for(target, found, PROTOCOL)] == ["speed"]
    assert state_of(target, found, has_quality=False, has_speed=True, jobs={}) == ("failed", found.refused)
    unknown = variant("m-Q4_K_M.gguf", vocab_sha256=None)
    assert own(unknown, reference).refused is None, "what an older audit did not note is found out when measuring"


def test_a_reference_with_the_same_vocabulary_goes_before_one_that_only_lies_nearer() -> None:
    other, same = (variant("m-F16.gguf", kind="F16", number=n, vocab_sha256=v) for n, v in ((2, "a"), (3, "b")))
    shared = Shared(replace(same, repo_id="org/x"), "base-owner")
    target = variant("m-Q4_K_M.gguf", vocab_sha256="b")
    found = choose(target, own=[target, other], shared=[shared], base=ORG)
    assert (found.reference, found.refused) == (shared.variant, None)


# Which base model


def repo(name: str = "up/m", base: str | None = "org/base", **config: Any) -> Repo:
    return Repo(name, "sha", "follow", None, base, config)


def headed(*names: str) -> list[Variant]:
    return [variant("m-Q4_K_M.gguf", base_models=[BaseModelRef(repo_id=name) for name in names])]


@pytest.mark.parametrize(
    ("card", "header", "base", "said"),
    [
        (["org/base"], [], "org/base", None),
        (["org/base"], ["Org/Base"], "org/base", None),
        (["org/tuned"], ["org/base"], "org/tuned", "names org/tuned, its header org/base"),
        ([], [], None, "names no base_model."),
        ([], ["org/base"], None, "its header names org/base, which may be what the model was tuned from"),
        (["a/x", "b/y"], [], None, "names 2 base models (a/x, b/y), so none of them is its original"),
        (["a/x", "b/y"], ["B/Y"], "a/x", "by its header it was made from b/y"),
        (["a/x", "b/y", "c/z"], ["b/y"], None, "3 base models"),
        (["a/x", "a/x"], [], "a/x", None),
        (["a/X-AWQ"], [], None, "a/X-AWQ, which is a quantized model itself"),
        (["a/X-GGUF"], [], None, "a/X-GGUF, which is a quantized model itself"),
        (["up/Known-GGUF"], [], "org/base", "up/Known-GGUF, a GGUF repo itself, whose own card names org/base"),
        (["up/Merge-GGUF"], [], None, "up/Merge-GGUF, which is a quantized model itself"),
        (["../x", 5, "org/base"], [], "org/base", None),
    ],
)
def test_base_models(card: list[str], header: list[str], base: str | None, said: str | None) -> None:
    others = {"up/known-gguf": repo(base_models=["org/base"]), "up/merge-gguf": repo(base_models=["a/x", "b/y"])}
    found = base_of(repo(base_models=card), headed(*header), known=lambda name: others.get(name.lower()))
    assert found.id == base
    assert (found.reason is None) if said is None else said in (found.reason or "")
    assert found.reason is None or found.reason.endswith(".")


@pytest.mark.parametrize(
    ("name", "derivative"),
    [
        ("a/Model-7B", False), ("a/Model-7B-GGUF", True), ("a/Model-i1-gguf", True), ("a/Model-AWQ", True),
        ("a/Model-GPTQ-Int4", True), ("a/Model-bnb-4bit", True), ("a/Model-FP8", True), ("a/Model-4bit-mlx", True),
        ("a/Model-4.0bpw-exl2", True), ("a/Model-Q4_K_M", True), ("gguf/Model", False), ("a/Bitnet-8B", False),
        ("a/Model-w4a16", True), ("a/phi-4", False), ("a/Mixtral-8x7B", False),
    ],
)  # fmt: skip
def test_derivatives_by_name(name: str, derivative: bool) -> None:
    assert is_derivative(name) is derivative


# Across repos, by the store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "bot.db") as opened:
        yield opened


def add(store: Store, repo_id: str, files: dict[str, Any], *, base: str | None = "org/base", **config: Any) -> None:
    """A repo with files: by name, the number that makes the key, and its inspection (None: not read yet)."""
    store.repos.save_repo(
        repo_id, sha="s", last_modified=None, source="follow", note=None, base_model=base, config=config, now=1.0
    )
    found = [
        (VariantFiles(name, (RepoFile(name, 1, f"{number:064x}"),), 1), inspected, None)
        for name, (number, inspected) in files.items()
    ]
    store.repos.save_variants(repo_id, found, revision="rev", now=1.0)


def prove(store: Store, number: int, verdict: Any, base: str = "org/base") -> None:
    store.proofs.save(Proof(f"{number:064x}", base, "sha", verdict, "Said.", "salt", 1.0))


def choice(store: Store, repo_id: str = "up/m", *, trusted: tuple[str, ...] = ()) -> Choice:
    [(_, found)] = [pair for pair in view(store, trusted=trusted).of(repo_id) if "Q4_K_M" in pair[0].name]
    return found


QUANT = {"m-Q4_K_M.gguf": (1, inspection())}
F16 = {"m-F16.gguf": (2, inspection("F16"))}


@pytest.mark.parametrize(
    ("home", "trusted", "verdict", "kind"),
    [
        ("org/x", (), None, "base-owner"),
        ("ORG/x", (), None, "base-owner"),
        ("good/x", ("Good",), None, "trusted"),
        ("stranger/x", (), "proven", "proven"),
        ("stranger/x", (), None, "none"),
        ("stranger/x", (), "differs", "none"),
        ("stranger/x", (), "unprovable", "none"),
    ],
)
def test_others_serve_only_when_trusted_or_proven(
    store: Store, home: str, trusted: tuple[str, ...], verdict: str | None, kind: str
) -> None:
    add(store, "up/m", QUANT)
    add(store, home, F16, base="Org/Base")
    if verdict:
        prove(store, 2, verdict)
    found = choice(store, trusted=trusted)
    assert found.kind == kind
    assert (home if kind != "none" else "none of org/base by its owner or a trusted one") in found.reason


def test_a_proof_is_for_one_base_model(store: Store) -> None:
    add(store, "up/m", QUANT)
    add(store, "stranger/x", F16)
    prove(store, 2, "proven", base="org/other")
    assert choice(store).kind == "none"


def test_who_serves_must_be_of_that_model_alone(store: Store) -> None:
    add(store, "up/m", QUANT)
    add(store, "org/merge", F16, base_models=["org/base", "org/other"])
    assert choice(store).kind == "none"
    add(store, "org/base", F16, base="org/older")
    assert choice(store).kind == "base-owner", "a file in the base model's own repo needs no card to say so"


def test_an_own_reference_serves_its_repo_whatever_was_found_of_it(store: Store) -> None:
    add(store, "up/m", {**QUANT, **F16})
    prove(store, 2, "differs")
    assert choice(store).kind == "own"


def test_of_several_the_most_trusted_then_the_best_type_then_the_first_seen(store: Store) -> None:
    add(store, "up/m", QUANT)
    for n, (home, kind) in enumerate([("a/x", "F16"), ("b/x", "BF16"), ("c/x", "BF16")], start=10):
        add(store, home, {"m.gguf": (n, inspection(kind))})
        prove(store, n, "proven")
    assert choice(store).reference.repo_id == "b/x"  # type: ignore[union-attr]
    add(store, "org/x", F16)
    assert choice(store).reference.repo_id == "org/x"  # type: ignore[union-attr]


def test_an_unquantized_reference_takes_a_q8_0s_place_and_is_measured_against_anew(store: Store) -> None:
    eight = {"m-Q8_0.gguf": (3, inspection("Q8_0"))}
    add(store, "up/m", {**QUANT, **eight})
    before = plan(view(store, trusted=()).of("up/m"), PROTOCOL)
    assert choice(store).kind == "q8_0"
    add(store, "up/m", {**QUANT, **eight, **F16})
    after = plan(view(store, trusted=()).of("up/m"), PROTOCOL)
    assert choice(store).kind == "own"
    keys = [{job.key for job in jobs if job.kind == "quality"} for jobs in (before, after)]
    assert len(keys[0]) == 2 and len(keys[1]) == 3 and not keys[0] & keys[1]


def test_one_baseline_serves_all_uploaders(store: Store) -> None:
    add(store, "org/x", F16)
    for n, name in enumerate(["up/m", "other/m", "third/m"], start=10):
        add(store, name, {"m-Q4_K_M.gguf": (n, inspection())})
    jobs = plan(view(store, trusted=()).choices, PROTOCOL)
    assert [job.kind for job in jobs].count("baseline") == 1
    assert [job.kind for job in jobs].count("quality") == 4
    [baseline] = [job for job in jobs if job.kind == "baseline"]
    assert {job.depends_on_key for job in jobs if job.kind == "quality"} == {baseline.key}
    assert store.jobs.add(jobs, now=1.0) == 9
    add(store, "late/m", {"m-Q4_K_M.gguf": (20, inspection())})
    assert store.jobs.add(plan(view(store, trusted=()).of("late/m"), PROTOCOL), now=2.0) == 2


def test_the_view_goes_repo_by_repo_and_keeps_few(store: Store) -> None:
    for n in range(100):
        add(store, f"up/m{n:03}", {"m-Q4_K_M.gguf": (n, inspection())}, base=f"org/base{n}")
    seen = view(store, trusted=())
    assert len(seen.repos) == 100 and seen.repos["up/m007"].base_model == "org/base7"
    assert len(list(seen.choices)) == 100
    assert max(len(seen._choices), len(seen._shared)) <= 64
    assert seen.of("nobody/x") == [] and "nobody/x" not in seen.repos


def test_states_of_what_has_no_reference_and_of_what_was_not_read(store: Store) -> None:
    add(store, "up/m", {**QUANT, "m-Q5_K_M.gguf": (5, None)}, base=None)
    seen = view(store, trusted=())
    rows = {row.label: row for row in current_rows(store, seen, PROTOCOL, repo_id="up/m")}
    assert (rows["Q5_K_M"].state, rows["Q5_K_M"].reason) == ("waiting", "Its header was not read yet.")
    row = rows["Q4_K_M"]
    assert (row.state, row.reference_kind, row.reason) == ("no-reference", "none", row.reference_reason)
    assert "names no base_model" in (row.reason or "")
    store.jobs.add(plan(seen.choices, PROTOCOL), now=1.0)
    store.db.conn.execute("UPDATE jobs SET state = 'dead', error = 'It died.'")
    assert not settled(store, seen, PROTOCOL, "up/m"), "a header still waits to be read"
    [dead] = [row for row in told_rows(store, seen, PROTOCOL) if row.label == "Q4_K_M"]
    assert dead.state == "no-reference" and "No speed: It died." in (dead.reason or "")
    add(store, "up/m", QUANT, base=None)
    assert settled(store, View(store, trusted=()), PROTOCOL, "up/m")


# The plan


def test_the_plan_has_each_job_once_and_dependencies_first() -> None:
    reference, quant = variant("m-F16.gguf", kind="F16", number=2), variant("m-Q8_0.gguf")
    twin = variant("m-Q8_0.gguf", "else/m", number=1)
    found = Choice(reference, "", "own")
    jobs = plan([(quant, found), (twin, found), (reference, found)], PROTOCOL)
    keys = [job.key for job in jobs]
    assert [job.kind for job in jobs] == ["baseline", "quality", "speed", "quality", "speed"] and len(set(keys)) == 5
    assert all(keys.index(job.depends_on_key) < keys.index(job.key) for job in jobs if job.depends_on_key)
    assert [job.kind for job in jobs_for(quant, Choice(None, ""), PROTOCOL)] == ["speed"]
    other = PROTOCOL.model_copy(update={"n_ctx": 1024})
    assert not {job.key for job in plan([(quant, found)], other)} & set(keys)


def test_what_can_not_be_measured_is_not_planned() -> None:
    reference, quant = variant("m-F16.gguf", kind="F16", number=2), variant("m-Q8_0.gguf")
    assert jobs_for(replace(quant, note="1 of 2 shards are there."), Choice(reference, ""), PROTOCOL) == []
    unread = replace(reference, inspection=None)
    assert [job.kind for job in jobs_for(quant, Choice(unread, ""), PROTOCOL)] == ["speed"]
