"""What the kept tokens of two files say: as 'quantcard compare' does, and nothing where they can't be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from situations import measured

from bot.intake.repo_config import RepoConfig
from bot.publish.entries import entries
from bot.publish.look import Links, made_section
from bot.publish.ranking import rank
from bot.publish.token_pairs import paired_sign, token_pairs
from bot.publish.verdict import verdict
from core.dataset import DatasetRow
from core.intervals import mean_interval
from core.pairs import ALPHA, compare, sign_flip_p
from core.token_file import TokenFile, TokenMeta, read_tokens, write_tokens

SHAPE = (40, 60)


def kept(folder: Path, label: str, shift: float, noise: float = 0.0, **meta: Any) -> DatasetRow:
    """A row of the ladder with its tokens in ``folder``; all share what is hard about the text."""
    rng, own = np.random.default_rng(1), np.random.default_rng(len(label))
    text = rng.gamma(0.3, 0.09, SHAPE)
    tokens = rng.integers(0, 900, SHAPE)
    kld = text + shift + noise * own.random(SHAPE)
    known = {"model": label, "scoring": "llama-cpp", "baseline_sha256": "b" * 64}
    nll = np.ones(SHAPE)
    write_tokens(
        folder / f"{label}.parquet",
        TokenFile(TokenMeta(**(known | meta)), 3, tokens, nll, nll, kld, nll / 2, np.ones(SHAPE, dtype=bool)),
    )
    half = float(text.mean(axis=1).std() / 3)
    row = measured(label, kld=float(kld.mean()), half=half)
    stored = json.loads(str(row.quality_json)) | {"tokens_path": f"{label}.parquet"}
    return row.model_copy(update={"quality_json": json.dumps(stored)})


def test_tokens_tell_apart_what_intervals_can_not(tmp_path: Path) -> None:
    near, far = kept(tmp_path, "Q4_K_M", 0.0), kept(tmp_path, "Q4_K_S", 0.001, 0.0004)
    pairs = token_pairs(tmp_path, [near, far])
    assert (pairs(near.id, far.id), pairs(far.id, near.id)) == (-1, 1)
    both = [read_tokens(tmp_path / f"{label}.parquet") for label in ("Q4_K_M", "Q4_K_S")]
    assert compare(*both).kld_mean.measurable and compare(*both).kld_mean.difference < 0
    known = entries(rank([near, far]))
    memory = [next(one.files for one in found.picks if one.kind == "memory") for found in
              (verdict(known), verdict(known, pairs=pairs))]  # fmt: skip
    assert memory == [(far.id, near.id), (near.id,)]
    links = Links("https://huggingface.co", tokens=tmp_path)
    table = made_section([near, far], RepoConfig(), links).body.split("<details>")[0]
    assert "≈" not in table
    assert "≈" in made_section([near, far], RepoConfig(), Links("https://huggingface.co")).body.split("<details>")[0]


def test_equal_ones_stay_equal(tmp_path: Path) -> None:
    one = kept(tmp_path, "Q4_K_M", 0.0)
    other = kept(tmp_path, "Q4_K_S", 0.0)
    assert token_pairs(tmp_path, [one, other])(one.id, other.id) == 0


@pytest.mark.parametrize("meta", [{"scoring": "unclipped"}, {"baseline_sha256": "c" * 64}, {"baseline_sha256": None}])
def test_what_can_not_be_compared_is_left_to_the_intervals(tmp_path: Path, meta: dict[str, Any]) -> None:
    one, other = kept(tmp_path, "Q4_K_M", 0.0), kept(tmp_path, "Q4_K_S", 0.5, **meta)
    assert token_pairs(tmp_path, [one, other])(one.id, other.id) is None


def test_missing_and_damaged_sidecars_say_nothing(tmp_path: Path) -> None:
    one, other = kept(tmp_path, "Q4_K_M", 0.0), kept(tmp_path, "Q4_K_S", 0.5)
    (tmp_path / "Q4_K_S.parquet").write_bytes(b"PAR1 damaged PAR1")
    assert token_pairs(tmp_path, [one, other])(one.id, other.id) is None
    (tmp_path / "Q4_K_S.parquet").unlink()
    assert token_pairs(tmp_path, [one, other])(one.id, other.id) is None
    assert token_pairs(None, [one, other])(one.id, other.id) is None
    bare = measured("Q4_K_S")
    assert token_pairs(tmp_path, [one, bare])(one.id, bare.id) is None


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 30), st.floats(-1, 1))
def test_signs_are_those_of_the_test_and_the_interval(seed: int, n_chunks: int, shift: float) -> None:
    values = np.random.default_rng(seed).normal(shift, 1, n_chunks)
    interval = mean_interval(values)
    assert interval is not None
    sure = sign_flip_p(values[None, :])[0] < ALPHA and (interval.low > 0 or interval.high < 0)
    assert paired_sign(values) == (int(np.sign(values.mean())) if sure else 0)
