"""A protocol's corpus comes from the Hub once, is checked, and stays."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import pytest

from bot.hub.client import Hub
from bot.queue import fetch
from bot.settings import load_settings
from core.errors import CorpusError, HubNotFoundError
from core.protocol import CORPUS_SOURCES, PROTOCOLS, WIKITEXT2_TEST, Corpus, CorpusSource, LocalSource, Protocol
from localhub import seed
from localhub.server import HubServer

TEXT = b"A corpus of a few words, in a zip as the real one is.\n" * 50
MEMBER = "wikitext-2-raw/wiki.test.raw"


def zipped(text: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("wikitext-2-raw/wiki.train.raw", b"not this one")
        archive.writestr(MEMBER, text)
    return buffer.getvalue()


def protocol_of(text: bytes, monkeypatch: pytest.MonkeyPatch) -> Protocol:
    """A protocol whose corpus is ``text``, fetched as the default protocol's is."""
    corpus = Corpus(name="a test", sha256=hashlib.sha256(text).hexdigest())
    source = CORPUS_SOURCES[WIKITEXT2_TEST.sha256]
    monkeypatch.setitem(fetch.CORPUS_SOURCES, corpus.sha256, source)
    return Protocol(corpus=corpus)


def test_the_default_corpus_is_where_llama_cpps_own_script_takes_it() -> None:
    source = CORPUS_SOURCES[WIKITEXT2_TEST.sha256]
    assert source == CorpusSource(repo_id="ggml-org/ci", filename="wikitext-2-raw-v1.zip", member=MEMBER)


def test_it_is_fetched_once_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    protocol = protocol_of(TEXT, monkeypatch)
    root = tmp_path / "hub"
    seed.upload_files(root, "ggml-org/ci", {"wikitext-2-raw-v1.zip": zipped(TEXT)}, repo_type="dataset")
    with HubServer(root) as server:
        hub = Hub(endpoint=server.url, token=None)
        path = fetch.corpus_path(tmp_path / "data", protocol, given=None, hub=hub)
        assert path.read_bytes() == TEXT
    # The Hub is gone, the corpus is not.
    assert fetch.corpus_path(tmp_path / "data", protocol, given=None, hub=hub) == path


def test_the_operators_own_file_is_taken_where_it_is_the_same_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol = protocol_of(TEXT, monkeypatch)
    own = tmp_path / "own.txt"
    own.write_bytes(TEXT)
    hub = Hub(endpoint="http://127.0.0.1:9", token=None)
    assert fetch.corpus_path(tmp_path / "data", protocol, given=own, hub=hub) == own


@pytest.mark.parametrize(("archive", "says"), [(zipped(b"another text"), "another text"), (b"PK nonsense", "archive")])
def test_another_text_or_a_damaged_archive_is_refused_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, archive: bytes, says: str
) -> None:
    protocol = protocol_of(TEXT, monkeypatch)
    root = tmp_path / "hub"
    seed.upload_files(root, "ggml-org/ci", {"wikitext-2-raw-v1.zip": archive}, repo_type="dataset")
    with HubServer(root) as server, pytest.raises(CorpusError, match=says):
        fetch.corpus_path(tmp_path / "data", protocol, given=None, hub=Hub(endpoint=server.url, token=None))
    assert not list((tmp_path / "data" / "corpora").glob("*.txt"))


def test_a_hub_without_it_and_an_unknown_corpus_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    protocol = protocol_of(TEXT, monkeypatch)
    seed.create_user(tmp_path / "hub", "somebody")
    with HubServer(tmp_path / "hub") as server:
        hub = Hub(endpoint=server.url, token=None)
        with pytest.raises(HubNotFoundError, match=r"wikitext-2-raw-v1\.zip"):
            fetch.corpus_path(tmp_path / "data", protocol, given=None, hub=hub)
        unknown = Protocol(corpus=Corpus(name="lost", sha256="0" * 64))
        with pytest.raises(CorpusError, match="QUANTCARD_CORPUS"):
            fetch.corpus_path(tmp_path / "data", unknown, given=None, hub=hub)


def test_texts_of_the_operators_own_protocols_come_from_the_hub_or_from_here(tmp_path: Path) -> None:
    sha256 = hashlib.sha256(TEXT).hexdigest()
    plain = b"Another text, in no archive.\n" * 40
    plain_sha256 = hashlib.sha256(plain).hexdigest()
    (tmp_path / "here.txt").write_bytes(b"A text on this machine.\n")
    (tmp_path / "own.toml").write_text(
        f"""
        [protocol.zipped]
        corpus = {{ name = "z", sha256 = "{sha256}", repo_id = "me/texts", filename = "a/t.zip", member = "{MEMBER}" }}
        [protocol.plain]
        corpus = {{ name = "p", sha256 = "{plain_sha256}", repo_id = "me/texts", filename = "p.txt" }}
        [protocol.here]
        corpus = {{ path = "here.txt" }}
        """
    )
    root = tmp_path / "hub"
    seed.upload_files(root, "me/texts", {"a/t.zip": zipped(TEXT), "p.txt": plain}, repo_type="dataset")
    settings = load_settings(protocols=tmp_path / "own.toml", data_dir=tmp_path / "data")
    known, sources = settings.known_protocols(), settings.corpus_sources()

    def text(name: str) -> bytes:
        path = fetch.corpus_path(settings.data, known[name].protocol, given=None, hub=hub, sources=sources)
        return path.read_bytes()

    with HubServer(root) as server:
        hub = Hub(endpoint=server.url, token=None)
        assert [text(name) for name in ("zipped", "plain")] == [TEXT, plain]
    assert [text(name) for name in ("zipped", "plain", "here")] == [TEXT, plain, b"A text on this machine.\n"]
    (tmp_path / "here.txt").write_bytes(b"changed meanwhile")
    with pytest.raises(CorpusError, match="another text now"):
        text("here")
    (tmp_path / "here.txt").unlink()
    with pytest.raises(CorpusError, match=r"here\.txt can't be read"):
        text("here")


def test_the_demos_text_ships_with_us_and_needs_no_hub(tmp_path: Path) -> None:
    hub = Hub(endpoint="http://127.0.0.1:9", token=None)
    path = fetch.corpus_path(tmp_path, PROTOCOLS["demo"], given=None, hub=hub)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == PROTOCOLS["demo"].corpus.sha256


def test_the_operators_own_place_of_a_text_goes_before_ours(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    mirror = 'repo_id = "me/mirror", filename = "wiki.test.raw"'
    own.write_text(
        f'[protocol.a]\ncorpus = {{ name = "w", sha256 = "{WIKITEXT2_TEST.sha256}", {mirror} }}\n'
        '[protocol.b]\nbase = "wiki512"\n'
    )
    sources = load_settings(protocols=own).corpus_sources()
    assert sources[WIKITEXT2_TEST.sha256] == CorpusSource(repo_id="me/mirror", filename="wiki.test.raw")
    assert LocalSource(path="/x/y.txt").basename == "y.txt"
    assert isinstance(CORPUS_SOURCES[WIKITEXT2_TEST.sha256], CorpusSource)
