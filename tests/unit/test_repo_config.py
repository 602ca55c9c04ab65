"""``.quantcard.yml``: what owners may wish, and a clear sentence for everything else."""

from __future__ import annotations

import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.intake.repo_config import ALLOWED, COLUMNS, CONFIG_FILE, CONFIG_LIMIT, RepoConfig, parse_config


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", RepoConfig()),
        ("# nothing\n", RepoConfig()),
        ("enabled: false", RepoConfig(enabled=False)),
        ("enabled: no", RepoConfig(enabled=False)),
        ("\ufeffenabled: true\r\n", RepoConfig()),
        ("position: top", RepoConfig(position="top")),
        ("position: {after: 'Which file?'}", RepoConfig(position="after", after="Which file?")),
        ("position:\n  after: 2024", RepoConfig(position="after", after="2024")),
        ("protocols: [wiki512, wiki2048, wiki512]", RepoConfig(protocols=("wiki512", "wiki2048"))),
        ("columns: [tg, kld, kld-99.9, tg]", RepoConfig(columns=("kld", "kld-99.9", "tg"))),
        ("plots: off\nmetadata: yes\ndata: none", RepoConfig(plots=False, metadata=True, data="none")),
    ],
)
def test_wishes(text: str, found: RepoConfig) -> None:
    assert parse_config(text.encode()) == found
    assert RepoConfig.from_json(found.as_json()) == found


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("enabled: 1", ["'enabled' takes true or false, not '1'."]),
        ("enabled:", ["'enabled' takes true or false, not nothing."]),
        ("enabled: maybe", ["'enabled' takes true or false, not 'maybe'."]),
        ("enable: true", ["'enable' is no key (did you mean 'enabled'?)", "there are enabled, protocols"]),
        ("zzz: 1", ["'zzz' is no key; there are"]),
        ("protocols: wiki512", ["'protocols' takes a list", "not 'wiki512'."]),
        ("protocols: []", ["'protocols' takes a list"]),
        ("protocols: [[a]]", ["'protocols' takes a list"]),
        (f"protocols: [{', '.join('abcdefghijklmnopq')}]", ["up to 16 names"]),
        ("columns: [kdl]", ["'columns' has no 'kdl' (did you mean 'kld'?)", *COLUMNS]),
        ("columns: [{a: b}]", ["'columns' takes a list"]),
        ("plots: yess", ["'plots' takes true, false or others"]),
        ("position: middle", ["'position' takes end, top, or {after: the text of a heading}, not 'middle'."]),
        ("position: {before: x}", ["'position' takes"]),
        ("position: {after: ''}", ["'position' takes"]),
        ("position: {after: x, before: y}", ["'position' takes"]),
        ("position: [top]", ["'position' takes"]),
        ("data: hidden", ["'data' takes comment, file or none, not 'hidden'."]),
        ("data: no", ["'data' takes comment, file or none, not false."]),
        ("metadata: {}", ["'metadata' takes true or false"]),
        ("plots: 1\nmetadata: 2", ["'plots' takes", "'metadata' takes"]),
        ("\n".join(f"k{n}: 1" for n in range(9)), ["There are 4 more."]),
        ("- a", ["not a mapping"]),
        ("true", ["not a mapping"]),
        ("a: [", ["not valid YAML (line 1"]),
        ("a: b: c", ["not valid YAML (line 1, column 5)"]),
        ("a: &x b\nc: *x", ["anchors or aliases"]),
        ("<<: {enabled: false}", ["merge key"]),
        ("enabled: !!bool maybe", ["not valid YAML", "tags"]),
        ("enabled: !!python/object/apply:os.system [id]", ["tags"]),
        ("!!map {enabled: true}", ["tags"]),
        ("enabled: true\nenabled: false", ["has 'enabled' twice, on line 2."]),
        ("position: {after: a, after: b}", ["has 'after' twice"]),
        ("? [a]\n: b", ["is not a word"]),
        ("enabled: true\n---\nenabled: false", ["more than one document"]),
        ("a: [[[[[1]]]]]", ["nested too deeply"]),
        ("a: [" + "1," * 600 + "]", ["too long"]),
        ("x: " + "y" * CONFIG_LIMIT, ["larger than 64 KiB"]),
        ("a: \x07", ["not valid YAML"]),
    ],
)
def test_what_is_wrong_is_said(text: str, says: list[str]) -> None:
    found = parse_config(text.encode())
    assert not found.enabled and found.problem is not None and found.digest
    for part in says:
        assert part in found.problem
    assert found.problem.startswith(CONFIG_FILE) and found.problem.endswith(".") and len(found.problem) <= 900
    assert RepoConfig.from_json(found.as_json()) == found


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xfe",
        b'enabled: "\\UFFFFFFFF"',
        b'"\\UFFFFFFFF": 1',
        b'columns: ["\\UFFFFFFFF"]',
        b'enabled: "\\U00110000"',
        b"enabled: !<%ff> x",
        b"%YAML 99999999999999999999.1\n---\nenabled: true",
    ],
)
def test_bytes_that_no_yaml_reader_takes(data: bytes) -> None:
    found = parse_config(data)
    assert "not valid YAML" in (found.problem or "") and not found.enabled


@pytest.mark.parametrize("kind", [OverflowError, RecursionError, MemoryError, AssertionError])
def test_whatever_the_reader_raises_is_a_problem_of_the_file(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise kind("boo")

    monkeypatch.setattr(yaml, "load", broken)
    assert "not valid YAML" in (parse_config(b"enabled: true").problem or "")


def test_every_key_says_what_it_takes() -> None:
    for key in ALLOWED:
        assert f"'{key}' takes {ALLOWED[key]}" in (parse_config(f"{key}: [[1]]".encode()).problem or ""), key


@pytest.mark.parametrize(
    "stored",
    [
        {"enabled": True, "position": "top", "problem": None},
        {"enabled": False, "position": "end", "problem": ".quantcard.yml is not a mapping"},
        {"enabled": "yes", "position": "middle", "columns": "kld", "protocols": [1], "data": 3, "future": {}},
        {},
    ],
)
def test_what_an_older_version_stored_is_read(stored: dict[str, object]) -> None:
    found = RepoConfig.from_json(stored)
    assert found.enabled is (stored.get("enabled") is not False)
    assert found.position == ("top" if stored.get("position") == "top" else "end")
    assert found.problem == stored.get("problem") and found.columns == ()


@pytest.mark.parametrize(
    "data",
    [
        b"[" * CONFIG_LIMIT,
        b"{" * CONFIG_LIMIT,
        b"a: 1\n" * 13_000,
        b"- " * 32_000,
        b"? " * 32_000,
        b"a: " + b"1:" * 32_000 + b"1",
        b"a: " + b"9" * 65_000,
        b"'" * 65_000,
        b"&a " * 20_000,
        b"#" * 65_000,
        b"\n" * 65_000,
    ],
)
def test_no_file_takes_long(data: bytes) -> None:
    began = time.perf_counter()
    parse_config(data[:CONFIG_LIMIT])
    assert time.perf_counter() - began < 2


#: Text as YAML has it, with escapes that are cut short, too large or no characters.
YAML_PARTS = [
    "enabled", "columns", "position", "after", "true", "kld", ": ", ":", "\n", "  ", "\t", "- ", "[", "]", "{", "}",
    ",", '"', "'",
    "\\U", "\\u", "\\x", "FFFFFFFF", "0010FFFF", "d800", "\\", "|", ">", "9999999999", "&a ", "*a", "!!bool ",
    "!<%ff> ", "<<", "? ", "---\n", "...\n", "%YAML 1.", "%TAG ! x\n",
    "#", "\ufeff", "\x85", "\u2028", "\r", "=", "~", "1:2",
]  # fmt: skip


@settings(max_examples=1500, deadline=None)
@given(
    st.binary(max_size=200)
    | st.text(alphabet="abc:-[]{}#&*!|>'\"%@` \n\t<?,.0e_\\", max_size=80).map(str.encode)
    | st.lists(st.sampled_from(YAML_PARTS), max_size=16).map("".join).map(str.encode)
    | st.text(max_size=20).map(lambda text: f'enabled: "\\U{text}"'.encode("utf-8", "surrogatepass"))
    | st.from_regex(r'\A(enabled|position): "(\\[xuU][0-9A-Fa-f]{0,9}|\\.|[ -~])*"\Z').map(str.encode)
)
def test_any_bytes_are_wishes_or_a_problem(data: bytes) -> None:
    found = parse_config(data)
    assert (found.problem is None) or not found.enabled
    assert RepoConfig.from_json(found.as_json()) == found


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "enabled": st.booleans(),
            "columns": st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=20),
            "data": st.sampled_from(["comment", "file", "none"]),
            "position": st.sampled_from(["end", "top"]),
        },
    )
)
def test_what_is_written_as_it_should_be_is_taken(wishes: dict[str, object]) -> None:
    found = parse_config(yaml.safe_dump(wishes).encode())
    assert found.problem is None and found.enabled == wishes.get("enabled", True)
    assert set(found.columns) == set(wishes.get("columns", []))  # type: ignore[call-overload]
