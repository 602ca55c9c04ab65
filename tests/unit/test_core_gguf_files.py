"""Names of files as uploaders give them: labels, shards, and what is no variant."""

from __future__ import annotations

import pytest

from core.canonical import fingerprint
from core.gguf_files import RepoFile, bare_label, group_variants, label_of, shard_of, variant_name


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("Qwen_Qwen3-8B-Q4_K_M.gguf", "Q4_K_M"),
        ("Qwen_Qwen3-8B-Q6_K_L.gguf", "Q6_K_L"),
        ("Qwen_Qwen3-8B-Q3_K_XL.gguf", "Q3_K_XL"),
        ("Qwen_Qwen3-8B-IQ4_XS.gguf", "IQ4_XS"),
        ("Qwen_Qwen3-8B-IQ4_NL.gguf", "IQ4_NL"),
        ("Qwen_Qwen3-8B-Q4_0_4_8.gguf", "Q4_0_4_8"),
        ("Qwen_Qwen3-8B-Q4_1.gguf", "Q4_1"),
        ("Qwen_Qwen3-8B-bf16.gguf", "BF16"),
        ("Qwen_Qwen3-8B-f32.gguf", "F32"),
        ("Qwen3-8B-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("Qwen3-8B-UD-IQ2_XXS.gguf", "UD-IQ2_XXS"),
        ("DeepSeek-R1-UD-TQ1_0.gguf", "UD-TQ1_0"),
        ("UD-Q2_K_XL/DeepSeek-R1-UD-Q2_K_XL-00001-of-00005.gguf", "UD-Q2_K_XL"),
        ("BF16/Qwen3-235B-A22B-BF16-00002-of-00010.gguf", "BF16"),
        ("Q4_K_M/model-00001-of-00002.gguf", "Q4_K_M"),
        ("Qwen3-8B.i1-IQ2_XXS.gguf", "i1-IQ2_XXS"),
        ("Qwen3-8B.i1-Q4_K_S.gguf", "i1-Q4_K_S"),
        ("Qwen3-8B.Q4_K_S.gguf", "Q4_K_S"),
        ("Qwen3-8B.f16.gguf", "F16"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("Qwen3-30B-A3B-MXFP4_MOE.gguf", "MXFP4_MOE"),
        ("Nemotron-NVFP4.gguf", "NVFP4"),
        ("llama-2-7b.Q5_0.gguf", "Q5_0"),
        ("qwen2.5-7b-instruct-q4_k_m-00001-of-00002.gguf", "Q4_K_M"),
        ("qwen2.5-7b-instruct-fp16.gguf", "F16"),
        ("gemma-3-4b-it-qat-q4_0.gguf", "Q4_0"),
        ("Kimi-K2-IQ4_KSS.gguf", "IQ4_KSS"),
        ("Kimi-K2-IQ5_K.gguf", "IQ5_K"),
        ("Model-Q4_K_M-v2.gguf", "Q4_K_M"),
        ("Model-BF16-Q4_K_M.gguf", "Q4_K_M"),
        ("Model-Q8_0.GGUF", "Q8_0"),
        ("Q4_K_M.gguf", "Q4_K_M"),
        ("Phi-3-mini-4k-instruct-q4.gguf", "Phi-3-mini-4k-instruct-q4"),
        ("ggml-model-i2_s.gguf", "ggml-model-i2_s"),
        ("XQ4_K_Monster.gguf", "XQ4_K_Monster"),
    ],
)
def test_labels_of_the_world(path: str, label: str) -> None:
    assert label_of(path) == label


@pytest.mark.parametrize(("label", "bare"), [("UD-Q4_K_XL", "Q4_K_XL"), ("i1-IQ2_S", "IQ2_S"), ("Q8_0", "Q8_0")])
def test_a_makers_prefix_is_taken_off(label: str, bare: str) -> None:
    assert bare_label(label) == bare


def grouped(*paths: str) -> list[str]:
    return [variant.name for variant in group_variants(RepoFile(path, 10, f"sha of {path}") for path in paths)]


@pytest.mark.parametrize(
    "path",
    [
        "mmproj-F16.gguf",
        "mmproj-model-f16.gguf",
        "Qwen2.5-VL-7B.mmproj-Q8_0.gguf",
        "imatrix.gguf",
        "imatrix_unsloth.gguf",
        "Qwen_Qwen3-8B-imatrix.gguf",
        "Qwen3-8B.imatrix.gguf",
        "Qwen3-8B-BF16-imatrix.gguf",
        "LoRA-Qwen2.5-1.5B-f16.gguf",
        "my-adapter-Q8_0.gguf",
        "ggml-vocab-llama-bpe.gguf",
        "control-vector-happy.gguf",
        "mtp-GLM-4.5-Q8_0.gguf",
        "README.md",
        "model.gguf.part1of2",
        "model.safetensors",
    ],
)
def test_no_variants(path: str) -> None:
    assert grouped(path, "Qwen3-8B-Q4_K_M.gguf") == ["Qwen3-8B-Q4_K_M.gguf"]


@pytest.mark.parametrize(
    "paths",
    [
        ["My-LoRA-7B-Q4_K_M.gguf"],
        ["My-LoRA-7B-F16.gguf", "My-LoRA-7B-Q4_K_M.gguf", "My-LoRA-7B-Q8_0.gguf"],
        ["Mistral-7B-imatrix-IQ3_M.gguf", "Mistral-7B-imatrix-Q8_0.gguf"],
        ["llama-vocab-extended.Q5_K_S.gguf"],
        ["Qwen3.6-27B-MTP-Q4_K_M.gguf"],
        ["explora-7b-f16.gguf"],
        ["Vocabulary-Tutor-F16.gguf"],
    ],
)
def test_models_that_are_called_like_something_else(paths: list[str]) -> None:
    assert grouped(*paths) == sorted(paths)


def test_another_models_label_vouches_for_nothing() -> None:
    assert grouped("A-lora-F16.gguf", "B-lora-Q4_K_M.gguf") == ["B-lora-Q4_K_M.gguf"]


def shards(count: int, *numbers: int, stem: str = "Q8_0/M-Q8_0") -> list[RepoFile]:
    return [RepoFile(f"{stem}-{n:05d}-of-{count:05d}.gguf", 100 + n, f"{n:064x}") for n in numbers]


def test_shards_are_one_variant_in_their_order() -> None:
    (variant,) = group_variants(shards(3, 3, 1, 2))
    assert variant.name == "Q8_0/M-Q8_0.gguf"
    assert [shard_of(file.path)[0] for file in variant.files] == [1, 2, 3]
    assert variant.complete and variant.n_shards == 3 and variant.size_bytes == 306
    assert variant.key == fingerprint([f"{n:064x}" for n in (1, 2, 3)])


@pytest.mark.parametrize(("count", "numbers"), [(3, (1, 3)), (3, (2, 3)), (2, (0, 1)), (2, (2, 3)), (0, (1,))])
def test_sets_that_are_not_whole(count: int, numbers: tuple[int, ...]) -> None:
    (variant,) = group_variants(shards(count, *numbers))
    assert not variant.complete


def test_a_single_file_is_its_own_sha() -> None:
    (variant,) = group_variants([RepoFile("M-Q4_0.gguf", 5, "ab" * 32)])
    assert variant.complete and variant.key == "ab" * 32 and variant.n_shards == 1


def test_folders_and_shard_counts_keep_variants_apart() -> None:
    files = [*shards(2, 1, 2), *shards(3, 1), *shards(2, 1, stem="old/M-Q8_0")]
    found = [(v.name, v.n_shards, v.complete) for v in group_variants(files)]
    assert found == [("Q8_0/M-Q8_0.gguf", 2, True), ("Q8_0/M-Q8_0.gguf", 3, False), ("old/M-Q8_0.gguf", 2, False)]


def test_the_key_changes_with_any_shard() -> None:
    one, other = group_variants(shards(2, 1, 2))[0], shards(2, 1, 2)
    other[1] = RepoFile(other[1].path, other[1].size, "f" * 64)
    assert group_variants(other)[0].key != one.key


@pytest.mark.parametrize("path", ["a/b-Q4_0.gguf", "x.gguf", "m-1-of-2.gguf"])
def test_names_without_shards_stay(path: str) -> None:
    assert variant_name(path) == path and shard_of(path) == (1, 1)
