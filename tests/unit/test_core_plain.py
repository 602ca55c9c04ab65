"""Canonical JSON, atomic files, protocols, error names, figures for people."""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from core import errors
from core.canonical import atomic_file, canonical_json, fingerprint, sha256_file, write_atomic
from core.errors import JobError, QuantcardError, StorageError, by_name, jobs_own
from core.format import percent, significant, size, speed, with_interval
from core.protocol import (
    CORPUS_SOURCES,
    DEMO_TEXT,
    KV_TYPES,
    PROTOCOLS,
    WIKITEXT2_TEST,
    Corpus,
    CorpusSource,
    Protocol,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_canonical_json_is_json_and_one_text_a_value(value: Any) -> None:
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(json.loads(text)) == text


def test_canonical_json_by_hand() -> None:
    assert canonical_json({"b": [1, 2.5], "a": "ä"}) == '{"a":"ä","b":[1,2.5]}'
    assert fingerprint({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest()
    assert fingerprint("\ud800") != fingerprint("\ud801")
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(math.nan)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_atomic(path, "ä")
    assert path.read_bytes() == "ä".encode() and sha256_file(path) == hashlib.sha256("ä".encode()).hexdigest()
    with pytest.raises(RuntimeError), atomic_file(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == "ä".encode()
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_folder_that_is_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="could not be written"):
        write_atomic(tmp_path / "file" / "below", "x")


PROTOCOL = Protocol(corpus=WIKITEXT2_TEST)


def test_the_fingerprint_of_the_default_protocol_never_changes() -> None:
    # Every stored figure hangs on it: if this fails, figures of before can't be found any more.
    assert PROTOCOL.fingerprint == "d0035f1a12fba404c3025d29ee1463109e6839dfd4e770d202973f3820735321"


CHANGES: dict[str, Any] = {
    "name": "other", "version": 2, "corpus": Corpus(name="x", sha256="0" * 64), "n_ctx": 1024, "chunks": 10,
    "n_batch": 512, "n_ubatch": 256, "type_k": "q8_0", "type_v": "q8_0", "flash_attn": "on", "n_prompt": 256,
    "n_gen": 64, "n_depth": 4096, "repetitions": 3, "scoring": "unclipped", "scoring_version": 2,
}  # fmt: skip


def test_every_field_counts() -> None:
    assert set(CHANGES) == set(Protocol.model_fields)
    changed = {PROTOCOL.model_copy(update={key: value}).fingerprint for key, value in CHANGES.items()}
    assert len(changed | {PROTOCOL.fingerprint}) == len(CHANGES) + 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n_ctx": 4}, "n_ctx"), ({"flash_attn": "maybe"}, "flash_attn"), ({"repetitions": 0}, "repetitions"),
        ({"unknown": 1}, "unknown"), ({"type_k": "q6_K"}, "'iq4_nl'"), ({"type_v": "F16"}, "type_v"),
        ({"chunks": 0}, "at least 1"), ({"chunks": -2}, "chunks"), ({"scoring": "mine"}, "scoring"),
        ({"type_v": "q8_0", "flash_attn": "off"}, "needs flash attention"), ({"n_ctx": 1000}, "multiple of it"),
        ({"n_prompt": 0, "n_gen": 0}, "no speed"), ({"n_depth": -1}, "n_depth"), ({"n_ctx": 2**40}, "n_ctx"),
    ],
)  # fmt: skip
def test_protocols_that_make_no_sense(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Protocol(corpus=WIKITEXT2_TEST, **change)


@pytest.mark.parametrize("kind", KV_TYPES)
@pytest.mark.parametrize("flash_attn", ["auto", "on"])
def test_every_kv_type_goes_with_flash_attention(kind: str, flash_attn: str) -> None:
    assert (
        Protocol.model_validate(
            {"corpus": WIKITEXT2_TEST, "type_k": kind, "type_v": kind, "flash_attn": flash_attn}
        ).type_v
        == kind
    )


def test_the_built_in_protocols_never_change() -> None:
    # As above: a figure of before must be found again. A protocol that is to change gets a new version or name.
    assert {name: protocol.fingerprint for name, protocol in PROTOCOLS.items()} == {
        "wiki512": "d0035f1a12fba404c3025d29ee1463109e6839dfd4e770d202973f3820735321",
        "wiki512-100": "0dbc8fd6cd9d9a891d98ea131cfcaede782c678c46978943c4e24ab4771b729d",
        "wiki2048": "54a48b8e2fe11f0544314fd4dc507d61fe1e33b5b326f2ea314ab457c51e5894",
        "demo": "979a2c07e4296542a10a5ced54e86093f0ec1d61eed13c515644cd4cce31b239",
    }
    assert all(name == protocol.name for name, protocol in PROTOCOLS.items())


@pytest.mark.parametrize("change", [{}, *({key: value} for key, value in CHANGES.items())], ids=str)
def test_the_json_of_a_protocol_is_the_whole_of_it(change: dict[str, Any]) -> None:
    protocol = PROTOCOL.model_copy(update=change)
    text = canonical_json(protocol.model_dump(mode="json"))
    assert Protocol.model_validate_json(text) == protocol == Protocol.model_validate_json(protocol.model_dump_json())
    assert protocol.fingerprint == hashlib.sha256(text.encode()).hexdigest()


def test_a_protocol_stored_before_scoring_had_a_name_is_the_same_one() -> None:
    assert "scoring" not in PROTOCOL.model_dump() and "n_depth" not in PROTOCOL.model_dump()
    assert Protocol(corpus=WIKITEXT2_TEST, scoring="llama-cpp", n_depth=0) == PROTOCOL


def test_built_in_corpora_can_be_fetched() -> None:
    assert {protocol.corpus.sha256 for protocol in PROTOCOLS.values()} == set(CORPUS_SOURCES)
    source = CORPUS_SOURCES[WIKITEXT2_TEST.sha256]
    assert isinstance(source, CorpusSource) and source.repo_id == "ggml-org/ci"
    assert source.basename == "wiki.test.raw"


def test_the_demos_text_is_the_one_that_ships_with_us(demo_corpus: Path) -> None:
    assert sha256_file(demo_corpus) == DEMO_TEXT.sha256
    assert CORPUS_SOURCES[DEMO_TEXT.sha256].basename == demo_corpus.name


def every_error() -> list[type[QuantcardError]]:
    return [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, QuantcardError)]


def test_errors_come_back_by_their_names() -> None:
    assert len(every_error()) > 15
    for kind in every_error():
        assert by_name(kind.__name__) is kind
        assert 0 < kind.exit_code < 7 and kind.__doc__


@pytest.mark.parametrize("name", ["", "Nonsense", "by_name", "__builtins__", "annotations"])
def test_an_unknown_name_is_a_job_error(name: str) -> None:
    assert by_name(name) is JobError


def test_what_may_be_tried_again() -> None:
    again = {kind.__name__ for kind in every_error() if kind.retryable}
    assert {"HubUnreachableError", "HubRateLimitError", "MeasurementDiedError", "StorageError"} <= again
    assert not {"GGUFError", "CorpusError", "NonFiniteLogitsError", "HubAuthError", "SettingsError"} & again


FINITE = st.floats(-1e6, 1e6)


def no_minus_zero(text: str) -> None:
    assert not re.search(r"-0(\.0*)?(?![\d.])", text), text


@given(st.integers(0, 10**15))
def test_sizes_come_back_within_their_rounding(n_bytes: int) -> None:
    number, unit = size(n_bytes).split(" ")
    back = float(number) * 1000 ** ["B", "kB", "MB", "GB", "TB"].index(unit)
    assert back == pytest.approx(n_bytes, rel=0.05, abs=0.5)
    assert float(number) < 1000 or unit == "TB"


@given(FINITE, st.floats(1e-9, 1e5))
def test_intervals_come_back_within_their_rounding(value: float, half: float) -> None:
    text = with_interval(value, half)
    no_minus_zero(text)
    left, right = (float(part) for part in text.split(" ± "))
    step = 10.0 ** -len(text.split(".")[1].split(" ")[0]) if "." in text else 1.0
    assert abs(left - value) <= 0.51 * step and abs(right - half) <= 0.51 * step
    assert right >= half * 0.94 or step == 1e-5


@given(FINITE)
def test_significant_digits_come_back(value: float) -> None:
    text = significant(value)
    no_minus_zero(text)
    assert "e" not in text and float(text) == pytest.approx(value, rel=0.006, abs=5.1e-7)


@given(st.floats(-10, 10), st.floats(0, 1e7), st.floats(0, 1e5))
def test_shares_and_speeds_come_back(share: float, rate: float, spread: float) -> None:
    no_minus_zero(percent(share))
    assert float(percent(share).removesuffix(" %")) == pytest.approx(100 * share, abs=0.051)
    left, right = speed(rate, spread).replace(",", "").split(" ± ")
    assert float(left) == pytest.approx(rate, abs=0.51 if rate >= 99.5 else 0.051)
    assert float(right) == pytest.approx(spread, abs=0.51)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (size(0), "0 B"), (size(999), "999 B"), (size(1000), "1.0 kB"), (size(2_537_312), "2.5 MB"),
        (size(999_600), "1.0 MB"), (size(18_000_000_000), "18.0 GB"), (size(180_000_000_000), "180 GB"),
        (with_interval(0.00861, 0.000196), "0.00861 ± 0.00020"), (with_interval(0.0, 0.0), "0.00000 ± 0.00000"),
        (with_interval(-0.000001, 0.001), "0.0000 ± 0.0010"), (with_interval(12.3, math.nan), "12.3"),
        (with_interval(5.0, 120.0), "5 ± 120"), (significant(0.284), "0.284"), (significant(0), "0"),
        (significant(-5e-7), "0"), (significant(math.inf), "inf"), (percent(-0.00001), "0.0 %"),
        (percent(0.95), "95.0 %"),
        (speed(5470.4, 27.1), "5,470 ± 27"), (speed(9.55), "9.6"),
    ],
)  # fmt: skip
def test_figures_by_hand(text: str, expected: str) -> None:
    assert text == expected


@pytest.mark.parametrize("name", ["HubUnreachableError", "HubRateLimitError", "MachineLostError", "BaselineGoneError"])
def test_a_measuring_process_cannot_say_what_is_not_its_to_tell(name: str) -> None:
    """Each of these would be tried again, for a day some of them."""
    assert jobs_own(name) is JobError and by_name(name) is not JobError
    assert jobs_own("GGUFError") is by_name("GGUFError")
