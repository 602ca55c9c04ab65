"""The demonstration model that the repository ships: its files, its shape and its held-out text."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType, GGUFReader

FOLDER = Path(__file__).resolve().parents[2] / "localhub" / "demo_model"
MODEL = FOLDER / "quantcard-demo-F16.gguf"


@pytest.fixture(scope="module")
def reader() -> GGUFReader:
    return GGUFReader(MODEL)


@pytest.fixture(scope="module")
def held_out() -> str:
    return (FOLDER / "heldout.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def training_text() -> str:
    return lzma.decompress((FOLDER / "train.txt.xz").read_bytes()).decode("utf-8")


def value(reader: GGUFReader, key: str) -> object:
    field = reader.get_field(key)
    assert field is not None, key
    return field.contents()


def test_files_are_there_and_small() -> None:
    names = ("NOTICE.md", "PYTHON-LICENSE.txt", "heldout.txt", "train.txt.xz", MODEL.name)
    assert [n for n in names if not (FOLDER / n).is_file()] == []
    assert not (FOLDER / "checkpoint.pt").exists()
    assert 2_000_000 <= MODEL.stat().st_size <= 10_000_000
    assert 200_000 <= (FOLDER / "heldout.txt").stat().st_size <= 260_000


def test_header_describes_the_model(reader: GGUFReader) -> None:
    expected: dict[str, object] = {
        "general.architecture": "llama",
        "general.name": "Quantcard Demo",
        "general.license": "apache-2.0",
        "general.file_type": 1,
        "general.quantization_version": 2,
        "general.base_model.count": 1,
        "general.base_model.0.repo_url": "https://huggingface.co/quantcard-demo/quantcard-demo",
        "llama.context_length": 512,
        "llama.embedding_length": 256,
        "llama.block_count": 4,
        "llama.feed_forward_length": 768,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.add_bos_token": False,
    }
    assert {key: value(reader, key) for key in expected} == expected
    assert reader.get_field("tokenizer.chat_template") is None


def test_tokenizer_is_complete(reader: GGUFReader) -> None:
    tokens, merges = value(reader, "tokenizer.ggml.tokens"), value(reader, "tokenizer.ggml.merges")
    assert isinstance(tokens, list) and isinstance(merges, list)
    assert len(tokens) == len(set(tokens)) == 2048
    assert len(merges) == 2048 - 256 - 2  # all but the bytes and the two special tokens
    assert tokens[:2] == ["<|endoftext|>", "<|pad|>"]
    assert value(reader, "tokenizer.ggml.eos_token_id") == value(reader, "tokenizer.ggml.bos_token_id") == 0


def test_every_matrix_fits_quants_in_blocks_of_256(reader: GGUFReader) -> None:
    assert len(reader.tensors) == 4 * 9 + 2
    for tensor in reader.tensors:
        matrix = len(tensor.shape) == 2
        assert tensor.shape[0] % 256 == 0, tensor.name
        wanted = GGMLQuantizationType.F16 if matrix else GGMLQuantizationType.F32
        assert tensor.tensor_type == wanted, tensor.name


def test_held_out_text_was_not_trained_on(held_out: str, training_text: str) -> None:
    trained_on = {line.strip() for line in training_text.splitlines()}
    lines = [line.strip() for line in held_out.splitlines() if len(line.strip()) >= 50]
    assert len(lines) > 1000
    assert [line for line in lines if line in trained_on] == []
    long_lines = [line for line in lines if len(line) > 80]
    assert [line for line in long_lines if line in training_text] == []


def test_notice_names_origin_and_figures() -> None:
    notice = (FOLDER / "NOTICE.md").read_text(encoding="utf-8")
    for wanted in ("PSF License Version 2", "Python Software Foundation", "Apache-2.0", "CPython 3.11"):
        assert wanted in notice
    assert "| the model (F16) |" in notice and "| unigram frequencies" in notice
