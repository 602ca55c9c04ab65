"""Paired comparison: symmetric, honest about chance, and said in plain words."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.cli import run_app
from core.errors import InputError, NotComparableError
from core.pairs import Comparison, compare, number, p_text, sentence, sign_flip_p
from core.token_file import TokenFile, TokenMeta, write_tokens


def variant(
    seed: int, *, n_chunks: int = 20, rows: int = 31, worse: float = 0.0, top: float = 0.95, text: int = 0, **meta: Any
) -> TokenFile:
    """A variant's tokens; ``text`` seeds corpus and baseline, ``worse`` raises every KLD."""
    corpus, own = np.random.default_rng(text), np.random.default_rng((seed, 7))
    shape = (n_chunks, rows)
    base = corpus.gamma(1.5, 1.5, shape)
    hard = corpus.gamma(0.5, 0.05, shape) * corpus.gamma(4, 0.25, (n_chunks, 1))
    known: dict[str, Any] = {
        "model": f"V{seed}.gguf",
        "baseline_sha256": "b",
        "scoring": "unclipped",
        "environment": "e",
    }
    return TokenFile.of_chunks(
        TokenMeta(**(known | meta)),
        corpus.integers(0, 1000, (n_chunks, 2 * rows + 2)),
        nll=base + own.normal(0.01, 0.2, shape),
        nll_base=base,
        kld=hard * own.gamma(9, 1 / 9, shape) + worse,
        p_top_base=corpus.random(shape),
        same_top=own.random(shape) < top,
    )


FIGURES = ("kld_mean", "ln_ppl", "same_top")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 20), st.integers(1, 24), st.integers(1, 40), st.floats(-0.001, 0.01))
def test_turning_the_sides_turns_the_signs(seed: int, n_chunks: int, rows: int, worse: float) -> None:
    a, b = variant(seed, n_chunks=n_chunks, rows=rows), variant(seed + 1, n_chunks=n_chunks, rows=rows, worse=worse)
    there, back = compare(a, b), compare(b, a)
    assert (there.a, there.b) == (back.b, back.a) and there.notes == back.notes
    assert there.n_tokens == n_chunks * rows
    for name in FIGURES:
        one, other = getattr(there, name), getattr(back, name)
        assert (one.a, one.b, one.difference) == (other.b, other.a, -other.difference)
        assert one.difference == pytest.approx(one.a - one.b, abs=1e-9)
        assert one.p_value == other.p_value and 0 < one.p_value <= 1
        assert (one.interval is None) is (other.interval is None) is (n_chunks == 1)
        if one.interval:
            assert one.interval.low <= one.difference <= one.interval.high
            assert (one.interval.low, one.interval.high) == (-other.interval.high, -other.interval.low)
    if there.kld_mean.measurable:
        assert sentence(there) == sentence(back)


@pytest.mark.parametrize("n_chunks", [1, 2, 16, 17, 40])
def test_a_file_against_itself(n_chunks: int) -> None:
    one = variant(3, n_chunks=n_chunks, model_sha256="m")
    found = compare(one, one)
    for name in FIGURES:
        difference = getattr(found, name)
        assert (difference.difference, difference.p_value) == (0.0, 1.0)
        assert n_chunks == 1 or (difference.interval.low, difference.interval.high) == (0.0, 0.0)
    assert sentence(found).startswith("No measurable difference")
    assert (found.a.name, found.b.name) == ("V3.gguf (A)", "V3.gguf (B)")
    assert any("same model file" in note for note in found.notes)
    assert any("figures are the same" in note for note in found.notes)


def test_all_flips_by_hand() -> None:
    # Of the 8 flips of (1, 2, 3), the true one and its opposite reach 6: 2 of 8.
    assert sign_flip_p(np.array([[1.0, 2.0, 3.0]])) == [0.25]
    # (1, 2, -3): the sums 0 are all reached.
    assert sign_flip_p(np.array([[1.0, 2.0, -3.0]])) == [1.0]
    assert sign_flip_p(np.array([[5.0]])) == [1.0]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-50, 50), min_size=1, max_size=8))
def test_all_flips_against_plain_python(values: list[int]) -> None:
    sums = [abs(sum(s * v for s, v in zip(signs, values, strict=True)))
            for signs in itertools.product((1, -1), repeat=len(values))]  # fmt: skip
    expected = sum(one >= abs(sum(values)) for one in sums) / len(sums)
    # Tenths don't add up exactly: sums that are equal must count as equal nevertheless.
    assert sign_flip_p(np.array([values]) / 10.0) == [expected]


def test_random_flips_come_near_all_of_them_and_never_change() -> None:
    rng = np.random.default_rng(4)
    for shift in (0.0, 0.3, 0.6):
        values = rng.normal(shift, 1.0, 16)
        every = sign_flip_p(values[None])[0]
        # A 17th chunk without a difference changes no sum, but takes the other way.
        drawn = sign_flip_p(np.append(values, 0.0)[None])[0]
        assert drawn == pytest.approx(every, abs=0.005)
        assert drawn == sign_flip_p(np.append(values, 0.0)[None])[0]
    assert sign_flip_p(np.ones((1, 100))) == [pytest.approx(1 / 100_001)]


def test_p_is_honest_where_nothing_differs() -> None:
    rng = np.random.default_rng(8)
    # Skewed hard chunks, but equal variants: differences come with either sign.
    differences = rng.exponential(1.0, (2000, 12)) * rng.choice([-1, 1], (2000, 12))
    values = np.array(sign_flip_p(differences))
    for level in (0.01, 0.05, 0.2):
        assert (values <= level).mean() <= level + 3 * (level * (1 - level) / 2000) ** 0.5


def test_many_chunks_in_little_time_and_memory() -> None:
    rng = np.random.default_rng(8)
    begin = time.process_time()
    sign_flip_p(rng.normal(0, 1, (3, 580)))
    assert time.process_time() - begin < 5, "0.3 s where this was written"


def test_a_clear_difference_is_said() -> None:
    found = compare(variant(1), variant(2, worse=0.01))
    assert found.kld_mean.measurable
    text = sentence(found)
    assert text.startswith("V1.gguf is closer to the reference than V2.gguf: its mean KLD is 0.0")
    assert "lower (95 % interval 0.0" in text and text.endswith("p < 0.001, 20 chunks).")
    assert sentence(compare(variant(2, worse=0.01), variant(1))) == text


def test_pairing_sees_what_separate_intervals_can_not() -> None:
    a, b = variant(1, n_chunks=40, rows=100), variant(2, n_chunks=40, rows=100, worse=0.0015)
    means = [x.kld.mean(axis=1, dtype=np.float64) for x in (a, b)]
    apart = [1.96 * m.std(ddof=1) / 40**0.5 for m in means]
    assert abs(means[0].mean() - means[1].mean()) < max(apart), "separate intervals overlap"
    assert compare(a, b).kld_mean.measurable


def test_no_difference_is_said() -> None:
    text = sentence(compare(variant(1), variant(2)))
    assert text.startswith("No measurable difference: the mean KLD of V1.gguf less that of V2.gguf is ")
    assert "20 chunks)." in text and "measure on more" not in text


@pytest.mark.parametrize(("n_chunks", "least"), [(2, "0.5"), (5, "0.062")])
def test_too_few_chunks_are_said(n_chunks: int, least: str) -> None:
    found = compare(variant(1, n_chunks=n_chunks), variant(2, n_chunks=n_chunks, worse=1.0))
    assert not found.kld_mean.measurable
    assert f"With {n_chunks} chunks p can't be below {least}" in sentence(found)
    assert "at least 6" in sentence(found)


def test_six_chunks_can_do() -> None:
    found = compare(variant(1, n_chunks=6), variant(2, n_chunks=6, worse=1.0))
    assert found.kld_mean.p_value == 2 / 64 and found.kld_mean.measurable
    assert "can't be below" not in sentence(found)


def test_one_chunk_is_said() -> None:
    text = sentence(compare(variant(1, n_chunks=1), variant(2, n_chunks=1, worse=1.0)))
    assert "compared on 1 chunk only" in text and "measure on more" in text


def test_what_speaks_against_the_closer_one_is_said() -> None:
    text = sentence(compare(variant(1, top=0.80), variant(2, worse=0.01, top=0.97)))
    assert text.startswith("V1.gguf is closer")
    assert "Yet it picks the reference's top token less often: " in text
    assert text == sentence(compare(variant(2, worse=0.01, top=0.97), variant(1, top=0.80)))
    assert "Yet" not in sentence(compare(variant(1, top=0.97), variant(2, worse=0.01, top=0.80)))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scoring": "llama-cpp"}, "scored 'unclipped', V2.gguf 'llama-cpp'"),
        ({"n_chunks": 19}, "20 chunks, V2.gguf on 19"),
        ({"rows": 63}, "chunks of 64 tokens, V2.gguf of 128"),
        ({"text": 1}, "not measured on the same tokens"),
        ({"baseline_sha256": "other"}, "different baselines"),
    ],
)
def test_what_can_not_be_compared(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(NotComparableError, match=says) as caught:
        compare(variant(1), variant(2, **changes))
    assert isinstance(caught.value, InputError)


def test_baselines_without_a_hash_are_known_by_what_they_say() -> None:
    nameless: dict[str, Any] = {"baseline_sha256": None}
    assert compare(variant(1, **nameless), variant(2)).n_chunks == 20
    one, other = variant(1, **nameless), variant(2)
    other.nll_base[3, 3] += 0.1
    with pytest.raises(NotComparableError, match="different baselines"):
        compare(one, other)
    with pytest.raises(NotComparableError, match="different baselines"):
        compare(variant(1, **nameless, reference_sha256="r"), variant(2, **nameless, reference_sha256="s"))


def notes(**changes: Any) -> str:
    return " ".join(compare(variant(1, protocol={"type_k": "f16", "chunks": -1}), variant(2, **changes)).notes)


def test_what_else_differs_is_noted() -> None:
    same: dict[str, Any] = {"protocol": {"type_k": "f16", "chunks": 20}}
    assert notes(**same) == ""
    assert "different environments" in notes(**same, environment="f")
    assert "not known" in notes(**same, environment=None)
    assert "different settings (type_k)" in notes(protocol={"type_k": "q8_0", "chunks": 20})


def test_numbers_are_written_by_what_is_known_of_them() -> None:
    assert number(0.00213, 0.0003) == "0.00213"
    assert number(12.3456, 1.5) == "12.3"
    assert number(1e-9, 3e-10) == "1.0e-09"
    assert number(-0.0001, 0.1) == "0.00"
    assert number(0.0, 0.0) == "0"
    assert (p_text(0.0004), p_text(0.0123), p_text(1.0)) == ("p < 0.001", "p = 0.012", "p = 1")


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    paths = tmp_path / "a.parquet", tmp_path / "b.parquet"
    write_tokens(paths[0], variant(1, model="[red]Q4:smile:\x1b[31m.gguf"))
    write_tokens(paths[1], variant(2, worse=0.01, environment="f"))
    return str(paths[0]), str(paths[1])


def test_the_command_prints_sentence_notes_and_table(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_app(["compare", *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("[red]Q4:smile:\ufffd[31m.gguf is closer to the reference than V2.gguf: ")
    assert "different environments" in lines[1]
    assert [line.split("  ")[0] for line in lines if line.startswith(("Mean", "ln", "Same"))] == [
        "Mean KLD", "ln PPL", "Same top p, %",
    ]  # fmt: skip
    assert "A: [red]Q4:smile:\ufffd[31m.gguf" in lines and "B: V2.gguf" in lines


def test_the_command_prints_json(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["compare", *files, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    words = found.pop("sentence")
    assert sentence(Comparison.model_validate(found)) == words


def test_the_command_on_one_chunk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tokens(tmp_path / "a.parquet", variant(1, n_chunks=1))
    assert run_app(["compare", str(tmp_path / "a.parquet"), str(tmp_path / "a.parquet")]) == 0
    assert "in 1 chunk, scoring unclipped" in capsys.readouterr().out


def test_the_commands_errors_are_sentences(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["compare", files[0], "missing.parquet"]) == 3
    assert "There is no token file at missing.parquet." in capsys.readouterr().err
    write_tokens(Path("c.parquet"), variant(1, text=1))
    assert run_app(["compare", files[1], "c.parquet"]) == 3
    assert "not measured on the same tokens" in capsys.readouterr().err
