"""Two variants side by side: on the same tokens where both files are there and whole, else by their intervals."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest

from core import pairs, unpaired
from core.dataset import MEASUREMENTS_PATH, DatasetRow
from core.dataset_file import parquet_bytes, tokens_path
from core.errors import InputError
from core.token_file import TokenFile, TokenMeta, read_tokens, write_tokens
from space.data import LocalSource, Results
from space.pairing import Pairing

sys.path.insert(0, str(Path(__file__).parents[1] / "acceptance"))
from sample_rows import row


def tokens(shift: float, *, name: str, seed: int = 1, n_chunks: int = 12) -> TokenFile:
    """Figures of a variant that is ``shift`` nats further from the reference on every token."""
    text, own = np.random.default_rng(1), np.random.default_rng(seed)
    shape = n_chunks, 8
    base = text.uniform(0.5, 3, shape)
    return TokenFile(
        meta=TokenMeta(model=name, baseline_sha256="b" * 64, scoring="llama-cpp", environment="e"),
        first=7,
        token=text.integers(0, 99, shape).astype(np.int32),
        nll=base + shift,
        nll_base=base,
        kld=text.uniform(0.01, 0.5, shape) + shift + own.normal(0, 1e-4, shape),
        p_top_base=text.uniform(0.1, 1, shape),
        same_top=text.uniform(0, 1, shape) < 0.9,
    )  # fmt: skip


class World:
    """A published folder with two variants and their per-token files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[DatasetRow] = []

    def add(self, label: str, sidecar: TokenFile | None = None, **changes: object) -> DatasetRow:
        path = None
        if sidecar is not None:
            written = self.folder / "tokens.parquet"
            sha = write_tokens(written, sidecar)
            path = tokens_path(sha)
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            written.rename(self.folder / path)
        self.rows.append(row(label=label, tokens_path=path, **changes))
        return self.rows[-1]

    def pairing(self) -> Pairing:
        path = self.folder / MEASUREMENTS_PATH
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(parquet_bytes(self.rows))
        results = Results(LocalSource(self.folder))
        assert results.refresh(), results.error
        return Pairing(results)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_on_the_same_tokens_it_says_what_core_says(world: World) -> None:
    one, other = tokens(0, name="one.gguf"), tokens(0.002, name="other.gguf", seed=2)
    a, b = world.add("Q4_K_M", one), world.add("Q4_K_S", other, kld_mean=0.0247)
    found = world.pairing().compare(a.id, b.id)
    expected = pairs.compare(one, other)
    assert found.how == "paired" and found.sentence == pairs.sentence(expected)
    assert "one.gguf is closer" in found.sentence and (found.n_chunks, found.n_tokens) == (12, 96)
    kld = found.gaps[0]
    assert (kld.difference, kld.p_value) == (expected.kld_mean.difference, expected.kld_mean.p_value)
    assert kld.measurable and [gap.name for gap in found.gaps] == ["kld_mean", "ln_ppl", "same_top"]
    # By their separate intervals the very same two can't be told apart.
    assert not unpaired.gap(0.0246, 0.0003, 0.0247, 0.0003).measurable


def test_no_difference_is_said_as_such(world: World) -> None:
    a, b = (world.add(f"Q{i}", tokens(0, name=f"{i}.gguf", seed=i)) for i in (1, 2))
    assert "No measurable difference" in world.pairing().compare(a.id, b.id).sentence


@pytest.mark.parametrize("damage", ["missing", "flipped", "another", "none"])
def test_without_whole_files_it_goes_by_intervals_and_says_why(world: World, damage: str) -> None:
    a = world.add("Q4_K_M", tokens(0, name="one.gguf"))
    b = world.add("Q2_K", None if damage == "none" else tokens(0.3, name="two.gguf"), kld_mean=0.3)
    path = world.folder / str(b.tokens_path)
    if damage == "missing":
        path.unlink()
    elif damage == "flipped":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))
    elif damage == "another":
        path.write_bytes((world.folder / str(a.tokens_path)).read_bytes())
    found = world.pairing().compare(a.id, b.id)
    assert found.how == "intervals" and found.gaps[0].measurable and "separate intervals" in found.sentence
    assert "closer to the reference" in found.sentence and found.notes[0]
    assert str(world.folder) not in str(found.notes), "a path of this machine is nobody's business"


def test_files_of_other_tokens_are_not_paired(world: World) -> None:
    a = world.add("Q4_K_M", tokens(0, name="one.gguf"))
    b = world.add("Q4_K_S", tokens(0, name="two.gguf", n_chunks=7), kld_mean=0.0247)
    found = world.pairing().compare(a.id, b.id)
    assert found.how == "intervals" and "chunks" in found.notes[0] and "No measurable difference" in found.sentence


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"base_model": "other/model"}, "different base models"),
        ({"protocol": {"name": "wiki2k"}}, "different protocols"),
        ({"reference_key": "c" * 64}, "different references"),
        ({"kld_mean": None, "state": "failed", "reason": "INVALID: NaN"}, "INVALID: NaN"),
    ],
)
def test_what_is_not_the_same_quantity_is_not_compared(world: World, changes: dict[str, object], why: str) -> None:
    a, b = world.add("Q4_K_M"), world.add("Q2_K", **changes)
    found = world.pairing().compare(a.id, b.id)
    assert found.how == "incomparable" and why in found.sentence and found.gaps == []


def test_ids_that_are_not_there(world: World) -> None:
    a = world.add("Q4_K_M")
    pairing = world.pairing()
    for one, other in ((a.id, a.id), (a.id, "x"), ("'; DROP", a.id), ("a" * 10_000, "b")):
        with pytest.raises(InputError):
            pairing.compare(one, other)


def test_the_written_file_is_the_read_one(world: World) -> None:
    one = tokens(0, name="one.gguf")
    a = world.add("Q4_K_M", one)
    path = world.folder / str(a.tokens_path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() in path.name and read_tokens(path).meta == one.meta


def test_figures_without_errors_cannot_be_told_apart() -> None:
    found = unpaired.gap(0.1, None, 0.2, 0.01)
    assert not found.measurable and "can't be told" in unpaired.sentence("A", "B", found)
    assert unpaired.gap(1, 0, 1, 0).p_value == 1 and unpaired.gap(1, 0, 2, 0).measurable
    far = unpaired.gap(0.1, 0.001, 0.2, 0.001)
    assert far.measurable and far.low is not None and far.high is not None and far.low < -0.1 < far.high
