"""Protocols by name: the operator's own (TOML), variations that settings make, and how they are shown."""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.cli import run_app
from bot.protocols import PROTOCOLS_NAME, as_toml, known_protocols, parse, varied
from bot.settings import load_settings
from core.errors import CorpusError, SettingsError
from core.protocol import (
    CORPUS_SOURCES,
    DEMO_TEXT,
    PROTOCOLS,
    WIKITEXT2_TEST,
    Corpus,
    CorpusSource,
    LocalSource,
    Protocol,
)

FILE = Path("own.toml")
SHA = "ab" * 32
PINNED = f'corpus = {{ name = "code", sha256 = "{SHA}" }}'


def only(text: str) -> Protocol:
    [known] = parse(text, file=FILE).values()
    return known.protocol


def test_a_table_is_a_protocol_with_our_defaults() -> None:
    found = only(f'[protocol.code]\n{PINNED}\nn_ctx = 4096\ntype_k = "q8_0"\nscoring = "unclipped"\n')
    corpus = Corpus(name="code", sha256=SHA)
    assert found == Protocol(name="code", corpus=corpus, n_ctx=4096, type_k="q8_0", scoring="unclipped")


def test_base_takes_over_everything_but_the_name_in_any_order() -> None:
    known = parse(
        '[protocol.b]\nbase = "a"\nn_depth = 64\n[protocol.a]\nbase = "wiki512-100"\nrepetitions = 2\n', file=FILE
    )
    assert known["b"].protocol == Protocol(name="b", corpus=WIKITEXT2_TEST, chunks=100, repetitions=2, n_depth=64)
    assert known["b"].source == CORPUS_SOURCES[WIKITEXT2_TEST.sha256] and known["b"].origin == "own.toml"
    other = parse(f'[protocol.c]\nbase = "demo"\n{PINNED}\n', file=FILE)["c"]
    assert other.protocol.corpus.name == "code" and other.protocol.chunks == 40 and other.source is None


def test_where_a_text_lies_is_no_part_of_the_fingerprint(tmp_path: Path) -> None:
    text = b"some text"
    sha256 = hashlib.sha256(text).hexdigest()
    (tmp_path / "t.txt").write_bytes(text)
    hub = 'repo_id = "me/texts", filename = "a/t.zip", member = "t.txt"'
    corpora = [
        f'{{ name = "t.txt", sha256 = "{sha256}" }}',
        f'{{ name = "t.txt", sha256 = "{sha256}", {hub} }}',
        f'{{ name = "t.txt", sha256 = "{sha256}", path = "t.txt" }}',
        '{ path = "t.txt" }',
        f'{{ path = "{tmp_path}/t.txt" }}',
    ]
    found = [parse(f"[protocol.p]\ncorpus = {corpus}\n", file=tmp_path / "own.toml")["p"] for corpus in corpora]
    assert len({one.protocol.fingerprint for one in found}) == 1
    here = LocalSource(path=str(tmp_path / "t.txt"))
    hub_source = CorpusSource(repo_id="me/texts", filename="a/t.zip", member="t.txt")
    assert [one.source for one in found] == [None, hub_source, here, here, here]
    assert str(tmp_path) not in json.dumps([one.protocol.model_dump(mode="json") for one in found])


def test_a_corpus_of_ours_by_its_sha256_is_taken_from_where_we_take_it() -> None:
    known = parse(f'[protocol.p]\ncorpus = {{ name = "w", sha256 = "{WIKITEXT2_TEST.sha256}" }}\n', file=FILE)["p"]
    assert known.source == CORPUS_SOURCES[WIKITEXT2_TEST.sha256]
    assert known.protocol.fingerprint != PROTOCOLS["wiki512"].fingerprint


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[protocol", "not valid TOML"), ("x = 1\n", "'x' is unknown"), ("protocol = 3\n", "not a table"),
        ("[protocol]\na = 1\n", r"\[protocol\.a\]: this is not a table"),
        (f"[protocol.wiki512]\n{PINNED}", "gives itself"), (f"[protocol.demo]\n{PINNED}", "gives itself"),
        (f"[protocol.custom512-4-r1]\n{PINNED}", "gives itself"), (f'[protocol."a b"]\n{PINNED}', "name is letters"),
        (f"[protocol.{'a' * 65}]\n{PINNED}", "at most 64"), ("[protocol.a]\n", r"\[protocol\.a\]: say which text"),
        (f"[protocol.a]\n{PINNED}\nctx = 1", r"\[protocol\.a\], 'ctx': there is no such field; there are base, "),
        (f'[protocol.a]\n{PINNED}\nname = "b"', "leave this out"),
        (f'[protocol.a]\n{PINNED}\nn_ctx = "512"', r"\[protocol\.a\], n_ctx: .*integer"),
        (f"[protocol.a]\n{PINNED}\nn_ctx = true", "n_ctx"), (f"[protocol.a]\n{PINNED}\nn_ctx = 512.0", "n_ctx"),
        (f"[protocol.a]\n{PINNED}\nchunks = 0", "at least 1"), (f"[protocol.a]\n{PINNED}\nn_ctx = 4", "n_ctx"),
        (f"[protocol.a]\n{PINNED}\nn_ctx = 1000", "multiple of it"),
        (f'[protocol.a]\n{PINNED}\ntype_k = "q6_K"', "type_k: .*'q8_0'"),
        (f'[protocol.a]\n{PINNED}\ntype_v = "q8_0"\nflash_attn = "off"', "needs flash attention"),
        (f'[protocol.a]\n{PINNED}\nscoring = "mine"', "scoring: .*'unclipped'"),
        (f"[protocol.a]\n{PINNED}\nscoring_version = 9", "scores by version 1"),
        ('[protocol.a]\nbase = "b"', r"\[protocol\.a\], base: 'b' is neither built in"),
        ("[protocol.a]\nbase = 1", r"base: 1 is neither"),
        ('[protocol.a]\nbase = "b"\n[protocol.b]\nbase = "a"', "based on itself .a → b → a"),
        ('[protocol.a]\nbase = "a"', "based on itself .a → a"),
        ('[protocol.a]\ncorpus = "wiki"', "corpus: this is not a table"),
        ('[protocol.a]\ncorpus = { name = "x" }', r"corpus\.sha256: .*pinned"),
        (f'[protocol.a]\ncorpus = {{ sha256 = "{SHA}" }}', r"corpus\.name"),
        (f'[protocol.a]\ncorpus = {{ name = "x", sha256 = "{SHA.upper()}" }}', "lower-case"),
        (f'[protocol.a]\ncorpus = {{ name = "x", sha256 = "{SHA}", url = "u" }}', "'url'.*no such field"),
        (f'[protocol.a]\ncorpus = {{ name = "", sha256 = "{SHA}" }}', r"corpus\.name: .*printable"),
        (f'[protocol.a]\ncorpus = {{ name = "a\\nb", sha256 = "{SHA}" }}', r"corpus\.name: .*printable"),
        (f'[protocol.a]\ncorpus = {{ name = "{"n" * 201}", sha256 = "{SHA}" }}', "longer than 200"),
        ('[protocol.a]\ncorpus = { name = "x", repo_id = "o/n", filename = "f" }', "pinned by its sha256"),
        (f'[protocol.a]\ncorpus = {{ name = "x", sha256 = "{SHA}", repo_id = "o" , filename = "f" }}', "owner/name"),
        (f'[protocol.a]\ncorpus = {{ name = "x", sha256 = "{SHA}", repo_id = "o/n" }}', r"corpus\.filename"),
        (f'[protocol.a]\ncorpus = {{ name = "x", sha256 = "{SHA}", member = "m" }}', r"corpus\.repo_id"),
        (f'[protocol.a]\ncorpus = {{ name = "x", sha256 = "{SHA}", repo_id = "o/n", filename = "../f" }}', "filename"),
        ('[protocol.a]\ncorpus = { path = "f", repo_id = "o/n" }', "either a path"),
        ('[protocol.a]\ncorpus = { path = "missing.txt" }', r"corpus\.path: .*missing\.txt does not exist"),
        ('[protocol.a]\ncorpus = { path = "." }', "is no file"),
        (f'[protocol.a]\ncorpus = {{ path = "{"x" * 5000}" }}', r"corpus\.path: .*can't be read"),
        (f'[protocol.a]\ncorpus = {{ path = "there.txt", sha256 = "{SHA}" }}', r"corpus\.sha256: .*another text"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_file_table_and_field(text: str, says: str) -> None:
    Path("there.txt").write_text("x")
    with pytest.raises(SettingsError, match=says) as caught:
        parse(text, file=FILE)
    assert str(caught.value).startswith("own.toml") and "Value error" not in str(caught.value)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.dates()
NAMES = st.sampled_from(["a", "b", "wiki512", "x y", "demo"]) | st.text(max_size=4)
CORPORA = st.dictionaries(
    st.sampled_from(["name", "sha256", "repo_id", "filename", "member", "path", "other"]),
    st.sampled_from([SHA, "o/n", "f", "there.txt", "\0", "/"]) | SCALARS,
)
TABLES = st.dictionaries(
    st.sampled_from(["base", *Protocol.model_fields]) | st.text(max_size=4),
    st.sampled_from(["a", "b", "wiki512", "f16", "q8_0", "off", 512, 2048, 1]) | CORPORA | SCALARS,
    max_size=5,
)
DOCUMENTS = st.dictionaries(st.just("protocol") | st.text(max_size=3), st.dictionaries(NAMES, TABLES | SCALARS))


def toml(value: Any) -> str:
    """A value as TOML (None as nothing that TOML has)."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, str | bool):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def protocols_or_a_sentence(text: str) -> None:
    try:
        found = parse(text, file=FILE)
    except SettingsError as error:
        assert str(error).startswith("own.toml")
        return
    for name, known in found.items():
        assert known.protocol.name == name
        again = Protocol.model_validate_json(known.protocol.model_dump_json())
        assert again == known.protocol and again.fingerprint == known.protocol.fingerprint
        assert parse(as_toml(known.protocol, known.source), file=FILE)[name].protocol == known.protocol


@given(DOCUMENTS)
def test_any_document_gives_protocols_or_a_sentence(document: dict[str, Any]) -> None:
    protocols_or_a_sentence("\n".join(f"{toml(key)} = {toml(value)}" for key, value in document.items()))


@given(st.text())
def test_any_text_gives_protocols_or_a_sentence(text: str) -> None:
    protocols_or_a_sentence(text)


VALID = st.fixed_dictionaries(
    {},
    optional={
        "n_ctx": st.sampled_from([128, 256, 512, 2048, 4096]), "chunks": st.integers(1, 999) | st.just(-1),
        "n_batch": st.sampled_from([2048, 4096, 128]), "n_ubatch": st.integers(1, 4096),
        "n_depth": st.integers(0, 9999),
        "type_k": st.sampled_from(["f32", "q8_0", "iq4_nl"]), "type_v": st.sampled_from(["bf16", "q4_0"]),
        "flash_attn": st.sampled_from(["auto", "on"]), "n_prompt": st.integers(1, 4096), "n_gen": st.integers(0, 512),
        "repetitions": st.integers(1, 50), "scoring": st.sampled_from(["llama-cpp", "unclipped"]),
        "version": st.integers(1, 9), "base": st.sampled_from(sorted(PROTOCOLS)),
    },
)  # fmt: skip


@given(VALID, st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.isprintable).filter(str.strip))
def test_every_field_arrives_and_comes_back_from_what_show_prints(fields: dict[str, Any], corpus: str) -> None:
    values = {"corpus": {"name": corpus, "sha256": SHA}, **fields}
    text = "[protocol.mine]\n" + "\n".join(f"{key} = {toml(value)}" for key, value in values.items())
    if fields.get("n_batch", 2048) % fields.get("n_ctx", 512) and fields.get("n_batch", 2048) > fields.get(
        "n_ctx", 512
    ):
        return
    found = only(text)
    assert {key: getattr(found, key) for key in fields if key != "base"} == {
        key: value for key, value in fields.items() if key != "base"
    }
    assert found.corpus.name == corpus
    assert only(as_toml(found, None)) == found


@pytest.mark.parametrize("name", PROTOCOLS)
def test_what_show_prints_of_a_built_in_one_defines_the_same_under_another_name(name: str) -> None:
    text = as_toml(PROTOCOLS[name], CORPUS_SOURCES[PROTOCOLS[name].corpus.sha256])
    values = tomllib.loads(text)["protocol"][name]
    assert set(values) == set(Protocol.model_fields) - {"name"}
    again = only(text.replace(f"[protocol.{name}]", "[protocol.mine]"))
    assert again.model_copy(update={"name": name}) == PROTOCOLS[name]


OTHER = Corpus(name="my.txt", sha256="1" * 64)
MINE = Protocol(name="mine", corpus=OTHER, chunks=10)


@pytest.mark.parametrize(
    ("base", "changes", "name"),
    [
        ("wiki512", {}, "wiki512"), ("wiki512", {"n_ctx": 512, "chunks": -1, "repetitions": 5}, "wiki512"),
        ("wiki512", {"chunks": 100}, "wiki512-100"), ("wiki512-100", {"chunks": -1}, "wiki512"),
        ("wiki512", {"n_ctx": 2048}, "wiki2048"), ("wiki512", {"n_ctx": 256, "chunks": 7}, "wiki256-7"),
        ("wiki512-100", {"n_ctx": 2048}, "wiki2048-100"), ("wiki512", {"repetitions": 3}, "wiki512-r3"),
        ("wiki512", {"corpus": OTHER}, "custom512"), ("wiki2048", {"corpus": OTHER, "chunks": 4}, "custom2048-4"),
        ("wiki512", {"corpus": Corpus(name="wiki.test.raw", sha256=WIKITEXT2_TEST.sha256)}, "wiki512"),
        ("demo", {}, "demo"), ("demo", {"corpus": DEMO_TEXT, "chunks": 40}, "demo"),
        ("demo", {"chunks": -1}, "demo-all"),
        ("demo", {"chunks": 2, "n_ctx": 256, "repetitions": 1}, "demo-ctx256-2-r1"),
        ("mine", {"chunks": 3}, "mine-3"), ("mine", {"corpus": WIKITEXT2_TEST}, "custom512-10"),
    ],
)  # fmt: skip
def test_a_variation_is_named_by_what_it_changes(base: str, changes: dict[str, Any], name: str) -> None:
    start = {**PROTOCOLS, "mine": MINE}[base]
    found = varied(start, **changes)
    assert found.name == name
    kept = {field for field in Protocol.model_fields if field not in {*changes, "name"}}
    assert all(getattr(found, field) == getattr(start, field) for field in kept)
    assert all(getattr(found, field) == value for field, value in changes.items() if field != "corpus")
    # One name, one protocol.
    assert name not in PROTOCOLS or found == PROTOCOLS[name]


def test_a_variation_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(SettingsError, match="multiple of it"):
        varied(PROTOCOLS["wiki512"], n_ctx=1000)


def test_the_protocol_in_force_comes_from_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().protocol_in_force() == PROTOCOLS["wiki512"]
    monkeypatch.setenv("QUANTCARD_PROTOCOL", "wiki512-100")
    assert load_settings().protocol_in_force() == PROTOCOLS["wiki512-100"]
    assert load_settings(protocol="demo", chunks=40).protocol_in_force() == PROTOCOLS["demo"]
    monkeypatch.setenv("QUANTCARD_CHUNKS", "")
    assert load_settings().protocol_in_force().chunks == 100
    monkeypatch.setenv("QUANTCARD_CHUNKS", "9")
    assert load_settings().protocol_in_force().name == "wiki512-9"
    with pytest.raises(SettingsError, match=r"no protocol 'x'.*wiki512-100"):
        load_settings(protocol="x").protocol_in_force()
    with pytest.raises(CorpusError, match="does not exist"):
        load_settings(corpus=Path("no.txt")).protocol_in_force()


def test_a_given_corpus_makes_another_protocol_unless_it_is_the_same_text(demo_corpus: Path, tmp_path: Path) -> None:
    assert load_settings(protocol="demo", corpus=demo_corpus).protocol_in_force() == PROTOCOLS["demo"]
    other = load_settings(corpus=demo_corpus, chunks=4, repetitions=1).protocol_in_force()
    assert (other.name, other.corpus.name) == ("custom512-4-r1", "heldout.txt")
    assert other.corpus.sha256 == DEMO_TEXT.sha256


def test_the_file_in_the_working_folder_is_read_unless_another_is_set(tmp_path: Path) -> None:
    assert list(known_protocols(None)) == list(PROTOCOLS)
    Path(PROTOCOLS_NAME).write_text(f"[protocol.here]\n{PINNED}\n")
    assert list(known_protocols(None)) == [*PROTOCOLS, "here"]
    (tmp_path / "other.toml").write_text('[protocol.there]\nbase = "demo"\n')
    settings = load_settings(protocols=tmp_path / "other.toml", protocol="there")
    assert "here" not in settings.known_protocols()
    assert settings.protocol_in_force() == PROTOCOLS["demo"].model_copy(update={"name": "there"})
    with pytest.raises(SettingsError, match="QUANTCARD_PROTOCOLS"):
        known_protocols(tmp_path / "no.toml")
    with pytest.raises(SettingsError, match="can't be read"):
        known_protocols(tmp_path)
    (tmp_path / "bytes.toml").write_bytes(b"\xff")
    with pytest.raises(SettingsError, match="not UTF-8"):
        known_protocols(tmp_path / "bytes.toml")


def test_protocols_are_listed_with_the_one_in_force(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(PROTOCOLS_NAME).write_text(f'[protocol.mine]\n{PINNED}\nscoring = "unclipped"\n')
    assert run_app(["protocols"]) == 0
    rows = {line[1:].split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert list(rows) == [*PROTOCOLS, "mine"] and [name for name in rows if rows[name].startswith("*")] == ["wiki512"]
    assert "unclipped" in rows["mine"] and PROTOCOLS_NAME in rows["mine"]
    assert PROTOCOLS["demo"].fingerprint[:12] in rows["demo"]
    monkeypatch.setenv("QUANTCARD_PROTOCOL", "mine")
    monkeypatch.setenv("QUANTCARD_CHUNKS", "3")
    assert run_app(["protocols", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in found if one["in_force"]] == ["mine-3"] and len(found) == len(PROTOCOLS) + 2
    assert found[-1]["from"] == "mine, changed by other settings" and found[-1]["chunks"] == 3
    assert found[0]["source"]["repo_id"] == "ggml-org/ci" and found[-1]["source"] is None


def test_one_protocol_is_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["protocols", "show", "wiki512-100"]) == 0
    said = capsys.readouterr().out
    assert f"# fingerprint {PROTOCOLS['wiki512-100'].fingerprint}" in said
    table = tomllib.loads(said)["protocol"]["wiki512-100"]
    assert table["chunks"] == 100 and table["corpus"]["member"] == "wikitext-2-raw/wiki.test.raw"
    assert run_app(["protocols", "show", "demo", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fingerprint"] == PROTOCOLS["demo"].fingerprint
    assert {field: found[field] for field in Protocol.model_fields} == {
        field: getattr(PROTOCOLS["demo"], field) for field in Protocol.model_fields if field != "corpus"
    } | {"corpus": DEMO_TEXT.model_dump()}
    assert run_app(["protocols", "show", "nope"]) == 2
    assert "wiki512-100" in capsys.readouterr().err
    Path(PROTOCOLS_NAME).write_text("[protocol.a]\n")
    assert run_app(["protocols"]) == 2
    assert "[protocol.a]" in capsys.readouterr().err
