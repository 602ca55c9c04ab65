"""Sizes from headers, and where they fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.audit import inspect
from core.gguf_header import GGUFHeader, Tensor
from core.inspection import AUDIT_VERSION, Inspection
from core.model_shape import shape_of
from core.need import Capacity, Need, Placement
from core.placing import TooLarge, on_each_gpu, place
from core.protocol import PROTOCOLS
from core.sizes import compare, corrected, estimate

GIB = 1 << 30
WIKI = PROTOCOLS["wiki512"]


def tensor(name: str, *shape: int, kind: str = "F16", width: float = 2) -> Tensor:
    elements = 1
    for size in shape:
        elements *= size
    return Tensor(name, shape, kind, 0, int(elements * width))


def header(kv: dict[str, object], tensors: list[Tensor], arch: str = "llama") -> GGUFHeader:
    named = {f"{arch}.{name}": value for name, value in kv.items()}
    return GGUFHeader(3, {"general.architecture": arch, **named}, tuple(tensors), 0)


def seven_b(**kv: object) -> GGUFHeader:
    """Llama 2 7B's shape."""
    tensors = [tensor("token_embd.weight", 4096, 32_000), tensor("output.weight", 4096, 32_000)]
    for n in range(32):
        tensors += [tensor(f"blk.{n}.attn_{name}.weight", 4096, 4096) for name in ("q", "k", "v", "output")]
        tensors += [tensor(f"blk.{n}.ffn_{name}.weight", 4096, 11_008) for name in ("gate", "up")]
        tensors += [tensor(f"blk.{n}.ffn_down.weight", 11_008, 4096)]
    usual = {"block_count": 32, "embedding_length": 4096, "attention.head_count": 32, "context_length": 4096}
    return header({**usual, **kv}, tensors)


def inspection(found: GGUFHeader) -> Inspection:
    return inspect([found], size_bytes=sum(t.n_bytes for t in found.tensors) + 1000, name="m-F16.gguf")


def test_the_known_figures_of_a_known_model() -> None:
    found = inspection(seven_b())
    assert found.audit_version == AUDIT_VERSION and found.shape is not None
    assert (found.shape.n_layers, found.shape.k_width, found.shape.v_width) == (32, 32 * 4096, 32 * 4096)
    need = estimate(found, WIKI, "quality")
    # Published: 512 KiB of f16 cache a token; four chunks of 512 at once.
    assert need.kv_cache == 2048 * 512 * 1024
    assert need.weights == found.shape.weights == 2 * 6_738_149_376
    assert need.logits == 512 * 32_000 * 4
    assert need.largest_layer * 32 + need.outside_layers == need.weights
    speed = estimate(found, WIKI.model_copy(update={"n_depth": 3456}), "speed")
    assert speed.kv_cache == 4096 * 512 * 1024 and speed.baseline == 0 and speed.logits == 4 * 32_000
    assert need.disk > found.size_bytes == speed.disk


def test_a_quantized_cache_is_smaller_and_a_reference_is_recorded_with_f16() -> None:
    found = inspection(seven_b())
    protocol = WIKI.model_copy(update={"type_k": "q8_0", "type_v": "q4_0"})
    whole = estimate(found, WIKI, "quality").kv_cache
    assert estimate(found, protocol, "quality").kv_cache == whole // 2 * 34 // 64 + whole // 2 * 18 // 64
    assert estimate(found, protocol, "baseline").kv_cache == whole
    # On a GPU the next group is decoded while one is scored.
    assert estimate(found, WIKI, "quality", on_gpu=True).kv_cache == 2 * whole
    assert estimate(found, WIKI, "baseline", on_gpu=True).kv_cache == whole


def test_caches_follow_the_layers_that_are_there() -> None:
    def width(*tensors: Tensor, **kv: object) -> tuple[int, int, int]:
        keys = {"embedding_length": 64, "attention.head_count": 4, **{k.replace("__", "."): v for k, v in kv.items()}}
        found = shape_of([header(keys, list(tensors))])
        assert found is not None
        return found.k_width, found.v_width, found.state_values

    k, v = tensor("blk.0.attn_k.weight", 64, 32), tensor("blk.0.attn_v.weight", 64, 16)
    fused = tensor("blk.1.attn_qkv.weight", 64, 96)
    assert width(k, v) == (32, 16, 0)
    assert width(k) == (32, 32, 0)
    assert width(k, v, fused, attention__head_count_kv=[2, 1]) == (32 + 16, 16 + 16, 0)
    assert width(fused, attention__key_length=24, attention__value_length=8) == (96, 32, 0)
    # A latent cache where the file has its halves apart, every head's own where it has not.
    latent, half = tensor("blk.0.attn_kv_a_mqa.weight", 64, 40), tensor("blk.0.attn_k_b.weight", 16, 32, 4)
    assert width(latent, half) == (40, 40, 0)
    assert width(latent, attention__key_length=24, attention__value_length=16) == (96, 64, 0)
    mamba = tensor("blk.0.ssm_in.weight", 64, 256)
    state = {"ssm__inner_size": 128, "ssm__state_size": 16, "ssm__conv_kernel": 4, "ssm__group_count": 1}
    assert width(mamba, **state) == (0, 0, 128 * 16 + 3 * (128 + 32))
    assert width(tensor("blk.0.shortconv.conv.weight", 3, 64), shortconv__l_cache=3) == (0, 0, 128)
    assert width(tensor("blk.0.time_mix_key.weight", 64, 64), wkv__head_size=16) == (0, 0, 64 * 18)


def test_only_the_experts_that_are_used_make_a_layer_wide() -> None:
    experts = tensor("blk.0.ffn_up_exps.weight", 64, 100, 128)
    keys = {"embedding_length": 64, "attention.head_count": 4}
    found = shape_of([header({**keys, "expert_used_count": 8}, [experts])])
    assert found is not None and found.widest == 800 and found.largest_layer == experts.n_bytes
    unsaid = shape_of([header(keys, [experts])])
    assert unsaid is not None and unsaid.widest == 12_800


def test_the_copies_that_a_cpu_makes_count_to_the_peak_alone() -> None:
    quantized = replace(seven_b(), tensors=tuple(replace(t, type_name="Q4_K") for t in seven_b().tensors))
    need = estimate(inspection(quantized), WIKI, "speed")
    embeddings = 4096 * 32_000 * 2
    assert need.reclaimable == need.weights - embeddings and need.peak == need.memory + need.reclaimable
    assert estimate(inspection(seven_b()), WIKI, "speed").reclaimable == 0


def test_what_an_older_audit_saw_is_still_estimated() -> None:
    old = inspection(seven_b()).model_copy(update={"shape": None, "audit_version": 2})
    assert old.outdated
    need = estimate(old, WIKI, "quality")
    assert need.memory > need.weights == 2 * 6_738_149_376 and need.n_layers == 0
    assert isinstance(place(need, Capacity(memory=16 * GIB)), TooLarge)
    assert place(need, Capacity(memory=32 * GIB, vram=(8 * GIB,))) == Placement(0, 0, memory=need.memory, vram=0)
    assert shape_of([header({}, [tensor("token_embd.weight", 8, 8)])]) is None
    assert shape_of([GGUFHeader(3, {}, (tensor("blk.0.attn_k.weight", 8, 8),), 0)]) is None


NUMBERS = st.one_of(
    st.integers(-5, 300), st.integers(0, 2**64), st.text(max_size=2), st.lists(st.integers(), max_size=3)
)
KEYS = st.dictionaries(
    st.sampled_from(
        [
            "embedding_length", "attention.head_count", "attention.head_count_kv", "attention.key_length",
            "attention.value_length", "ssm.inner_size", "ssm.state_size", "ssm.conv_kernel", "wkv.head_size",
            "shortconv.l_cache", "expert_used_count", "block_count",
        ]
    ),
    NUMBERS,
)  # fmt: skip
NAMES = st.sampled_from(
    [
        "token_embd.weight", "output.weight", "blk.0.attn_k.weight", "blk.0.attn_qkv.weight", "blk.1.ssm_in.weight",
        "blk.2.time_mix_key.weight", "blk.3.ffn_up_exps.weight", "blk.999999.attn_kv_a_mqa.weight", "blk.0.attn_norm",
        "enc.blk.0.attn_v.weight", "blk.4.shortconv.conv.weight",
    ]
)  # fmt: skip
SHAPES = st.lists(st.integers(0, 2**40), max_size=4).map(tuple)


@given(KEYS, st.lists(st.tuples(NAMES, SHAPES), max_size=8, unique_by=lambda pair: pair[0]))
def test_no_header_makes_an_estimate_fail(kv: dict[str, object], tensors: list[tuple[str, tuple[int, ...]]]) -> None:
    found = inspection(header(kv, [Tensor(name, shape, "Q8_0", 0, 7) for name, shape in tensors]))
    assert Inspection.model_validate_json(found.model_dump_json()) == found
    for kind in ("baseline", "quality", "speed"):
        need = estimate(found, WIKI, kind)
        assert all(getattr(need, name) >= 0 for name in Need.__slots__)
        placed = place(need, Capacity(memory=64 * GIB, vram=(24 * GIB, 8 * GIB)))
        assert isinstance(placed, TooLarge) or placed.memory <= 64 * GIB


NEED = Need(
    weights=40 * GIB, kv_cache=4 * GIB, logits=GIB, compute=GIB, baseline=0, disk=41 * GIB, n_layers=40,
    largest_layer=GIB, outside_layers=0, process=GIB,
)  # fmt: skip


def test_one_gpu_before_several_before_a_part_before_the_cpu() -> None:
    def placed(memory: int, *vram: int) -> Placement | TooLarge:
        return place(NEED, Capacity(memory=memory * GIB, vram=tuple(size * GIB for size in vram)))

    one = placed(64, 24, 80)
    assert one == Placement(-1, 1, memory=3 * GIB, vram=44 * GIB + on_each_gpu(NEED))
    two = placed(64, 24, 24, 24)
    assert isinstance(two, Placement) and (two.n_gpu_layers, two.n_gpus) == (-1, 3)
    assert 44 * GIB // 3 < two.vram <= 24 * GIB
    part = placed(64, 24)
    assert isinstance(part, Placement) and part.n_gpus == 1 and 0 < part.n_gpu_layers < 40
    # 0.95 x 24 GiB, less what each GPU takes beside the layers, in layers of 1.1 GiB.
    assert part.n_gpu_layers == int((0.95 * 24 * GIB - on_each_gpu(NEED)) / (1.1 * GIB))
    assert part.memory == NEED.memory - part.n_gpu_layers * (GIB + NEED.kv_cache // 40)
    assert placed(64) == placed(64, 1) == Placement(0, 0, memory=NEED.memory, vram=0)
    # With little main memory a GPU that holds most of it still does; with a small one nothing does.
    assert (
        isinstance(placed(32, 24), Placement)
        and isinstance(placed(32), TooLarge)
        and isinstance(placed(8, 24), TooLarge)
    )
    assert place(NEED, Capacity(memory=None)) == Placement(0, 0, memory=NEED.memory, vram=0)


def test_what_fits_nowhere_is_told_with_figures() -> None:
    found = place(replace(NEED, baseline=GIB), Capacity(memory=16 * GIB, vram=(8 * GIB, 12 * GIB)))
    assert isinstance(found, TooLarge)
    assert found.reason == (
        "It takes 51.5 GB of memory (weights 42.9 GB, KV cache 4.3 GB, buffers 3.2 GB, the baseline's head 1.1 GB); "
        "the largest machine has 17.2 GB of memory and 2 GPUs with 12.9 GB and 8.6 GB. Add a runner with a larger one."
    )
    full = place(NEED, Capacity(memory=64 * GIB, disk=40 * GIB))
    assert full == TooLarge("It takes 44.0 GB on disk; 42.9 GB is what there is.")


NEEDS = st.builds(
    Need,
    weights=st.integers(1, 100).map(lambda n: n * GIB), kv_cache=st.integers(0, 20).map(lambda n: n * GIB),
    logits=st.integers(0, GIB), compute=st.integers(0, GIB), baseline=st.integers(0, GIB), disk=st.just(0),
    n_layers=st.integers(1, 100), process=st.just(GIB),
).map(lambda need: replace(need, largest_layer=-(-need.weights // need.n_layers)))  # fmt: skip


@given(NEEDS, st.integers(1, 200), st.lists(st.integers(1, 80), max_size=8))
def test_nothing_is_placed_where_it_does_not_fit(need: Need, memory: int, vram: list[int]) -> None:
    capacity = Capacity(memory=memory * GIB, vram=tuple(size * GIB for size in vram))
    found = place(need, capacity)
    if isinstance(found, TooLarge):
        assert need.memory > 0.95 * memory * GIB
        return
    assert found.memory <= memory * GIB and found.n_gpus <= len(vram)
    assert found.vram <= max([0, *vram]) * GIB
    on_gpus = need.n_layers if found.n_gpu_layers < 0 else found.n_gpu_layers
    used = sorted(vram, reverse=True)[: found.n_gpus]
    layer = need.weights // need.n_layers + need.kv_cache // need.n_layers
    assert on_gpus * layer + found.n_gpus * on_each_gpu(need) <= sum(used) * GIB + need.n_layers
    # More never fits less.
    assert not isinstance(place(need, replace(capacity, memory=2 * memory * GIB)), TooLarge)


def test_runs_that_took_more_raise_what_comes_and_those_that_took_less_change_nothing() -> None:
    assert compare(NEED, memory=NEED.memory // 2) == pytest.approx(0.5)
    assert compare(NEED, vram=NEED.memory - GIB) == 1.0 and compare(NEED) is None
    assert corrected(NEED, []) == corrected(NEED, [0.3, 1.0]) == NEED
    raised = corrected(NEED, [0.9, 1.2, float("nan"), float("inf")])
    assert raised.memory == pytest.approx(1.32 * NEED.memory) and raised.weights == NEED.weights
    assert corrected(NEED, [1e9]).memory == pytest.approx(4 * NEED.memory)
