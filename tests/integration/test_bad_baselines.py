"""Baselines that are damaged, incomplete, or of something else: each is named, and none gives a figure."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import random
import re
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from core.contract import BaselineResult, BaselineSpec, BaselineToolSpec, Machine, QualityManySpec, QualitySpec
from core.errors import BaselineError, GGUFError, InputError, QuantcardError, SettingsError, VocabularyMismatchError
from core.gguf_header import parse_header, read_file_header
from core.protocol import Corpus, Protocol
from jobs.baseline.kld_file import KldReader
from jobs.baseline.record import record
from jobs.baseline.tools import run_tool
from jobs.quality import measure, measure_many
from tests.tiny_models import tiny_model

MACHINE = Machine(n_threads=1, n_gpu_layers=0)
SIZES: dict[str, Any] = {"n_batch": 128, "n_ubatch": 64, "machine": MACHINE}
N_CTX, CHUNKS = 64, 3
OUT = {"states": "base.gguf", "logits": "base.kld"}
FORMATS = pytest.mark.parametrize("format_", ["states", "logits"])
FLIPS = 60


def quiet(stage: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


@dataclass
class Bench:
    """Models and sound baselines of both formats; tests damage copies of them."""

    folder: Path
    recorded: dict[str, BaselineResult]

    @property
    def reference(self) -> Path:
        return self.folder / "reference.gguf"

    @property
    def variant(self) -> Path:
        return self.folder / "variant.gguf"

    @property
    def head(self) -> Path:
        return Path(self.recorded["states"].head_path or "")

    def copy(self, format_: str, to: Path) -> Path:
        """A baseline with what stands beside it, in a folder of its own."""
        path = Path(self.recorded[format_].path)
        shutil.copytree(path.parent, to, dirs_exist_ok=True)
        return to / path.name

    def record(self, out: Path, format_: str, **options: Any) -> BaselineResult:
        given: dict[str, Any] = {"n_ctx": N_CTX, "chunks": CHUNKS, "reference": str(self.reference), **SIZES, **options}
        return record(
            BaselineSpec(corpus=str(self.folder / "corpus.txt"), out=str(out), format=format_, **given), quiet
        )  # type: ignore[arg-type]

    def measure(self, baseline: Path, model: Path | None = None, **options: Any) -> Any:
        return measure(
            QualitySpec(model=str(model or self.variant), baseline=str(baseline), **(SIZES | options)), quiet
        )

    def verify(self, baseline: Path) -> Any:
        return run_tool(BaselineToolSpec(action="verify", path=str(baseline), machine=MACHINE), quiet)

    def export(self, baseline: Path, out: Path) -> Any:
        return run_tool(BaselineToolSpec(action="export", path=str(baseline), out=str(out), machine=MACHINE), quiet)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("bad")
    text = "the of and to in is that for it as was with be by on not he his but at are this have from"
    words = np.random.default_rng(4).choice(text.split(" "), 600)
    (folder / "corpus.txt").write_text(" ".join(words))
    tiny_model(folder / "reference.gguf", "qwen2-bias")
    tiny_model(folder / "variant.gguf", "qwen2-bias", head_type="q8_0")
    found = Bench(folder, {})
    for format_, name in OUT.items():
        found.recorded[format_] = found.record(folder / format_ / name, format_)
        assert found.recorded[format_].format == format_
    return found


def refuses(work: Callable[[], Any]) -> BaselineError:
    """The named error, with a sentence for people, that some work ends in."""
    with pytest.raises(BaselineError) as caught:
        work()
    return sentence(caught.value)


def sentence(error: QuantcardError) -> Any:
    text = str(error)
    assert text.endswith((".", "?", ")")) and len(text) > 30 and text[0].isprintable(), text
    assert "Traceback" not in text and "\n" not in text
    return error


def users(bench: Bench, baseline: Path, tmp_path: Path) -> Iterator[Callable[[], Any]]:
    """Everything that reads a whole baseline."""
    yield lambda: bench.measure(baseline)
    yield lambda: bench.verify(baseline)
    yield lambda: bench.export(baseline, tmp_path / "exported.kld")


# --- where what stands in a file


def states_places(path: Path) -> dict[str, range]:
    header = read_file_header(path)
    places = {
        t.name: range(header.data_start + t.offset, header.data_start + t.offset + t.n_bytes) for t in header.tensors
    }
    return {"header": range(header.data_start), **places}


def kld_places(path: Path) -> dict[str, range]:
    reader = KldReader(path)
    reader.close()
    shape = reader.shape
    return {
        "magic": range(8),
        "header": range(8, 20),
        "tokens": range(20, shape.rows_offset),
        "rows": range(shape.rows_offset, shape.file_bytes),
    }


def flip(path: Path, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(bit // 8)
        (byte,) = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def bits_of(place: range, seed: str, n: int = FLIPS) -> list[int]:
    """Bits to flip: the first, the last, and random ones between."""
    chosen = random.Random(seed)
    return [8 * place.start, 8 * place.stop - 1, *(chosen.randrange(8 * place.start, 8 * place.stop) for _ in range(n))]


# --- bit flips


@pytest.mark.parametrize(
    "place",
    ["header", "tokens", "nll", "chunk_sums", "self_check", "sample_rows", "sample_logits", "bias", "digest", "states"],
)
def test_a_flipped_bit_of_a_states_baseline_is_always_seen(bench: Bench, tmp_path: Path, place: str) -> None:
    path = bench.copy("states", tmp_path / "copy")
    for bit in bits_of(states_places(path)[place], place):
        flip(path, bit)
        for work in users(bench, path, tmp_path):
            refuses(work)
        flip(path, bit)
    assert path.read_bytes() == Path(bench.recorded["states"].path).read_bytes()
    bench.measure(path)


@pytest.mark.parametrize("place", ["magic", "header", "tokens", "rows"])
def test_a_flipped_bit_of_a_kld_is_always_seen(bench: Bench, tmp_path: Path, place: str) -> None:
    path = bench.copy("logits", tmp_path / "copy")
    for bit in bits_of(kld_places(path)[place], place):
        flip(path, bit)
        for work in users(bench, path, tmp_path):
            refuses(work)
        flip(path, bit)
    bench.measure(path)


def test_a_flipped_bit_of_a_companion_changes_no_figure(bench: Bench, tmp_path: Path) -> None:
    """It is named where it would; what only tells where the baseline is from (JSON, for people) may be flipped."""
    path = bench.copy("logits", tmp_path / "copy")
    meta = path.with_name("base.kld.json")
    text = meta.read_text()
    sound = bench.measure(path).model_dump(exclude={"timings", "protocol"})
    nll = range(text.index('"nll":"') + 7, text.index('"', text.index('"nll":"') + 7))
    for place in (range(len(text)), nll):
        for bit in bits_of(place, "companion"):
            flip(meta, bit)
            try:
                result = bench.measure(path)
            except BaselineError as error:
                sentence(error)
            else:
                assert bit // 8 not in nll, "the exact NLL has a checksum"
                assert result.model_dump(exclude={"timings", "protocol"}) == sound
            try:
                bench.verify(path)
            except BaselineError as error:
                sentence(error)
            flip(meta, bit)
    assert meta.read_text() == text


def test_a_flipped_token_or_row_without_a_companion_is_no_crash(bench: Bench, tmp_path: Path) -> None:
    """A plain .kld has no checksums: a named error, or a figure, but nothing else."""
    path = bench.copy("logits", tmp_path / "copy")
    path.with_name("base.kld.json").unlink()
    for place, where in kld_places(path).items():
        seen = 0
        for bit in bits_of(where, f"plain {place}"):
            flip(path, bit)
            for work in (lambda: bench.measure(path), lambda: bench.verify(path)):
                try:
                    work()
                except BaselineError as error:
                    sentence(error)
                    seen += 1
            flip(path, bit)
        if place in ("magic", "header"):
            assert seen == 2 * (FLIPS + 2)


# --- truncation


@FORMATS
def test_a_truncated_baseline_is_always_seen(bench: Bench, tmp_path: Path, format_: str) -> None:
    path = bench.copy(format_, tmp_path / "copy")
    data = path.read_bytes()
    places = states_places(path) if format_ == "states" else kld_places(path)
    end = max(place.stop for place in places.values())
    chosen = random.Random(format_)
    cuts = {0, 1, 4, 8, 12, 20, 21, end - 1, *(place.start for place in places.values())} - {end}
    cuts |= {chosen.randrange(end) for _ in range(30)}
    for cut in sorted(cuts):
        path.write_bytes(data[:cut])
        for work in users(bench, path, tmp_path):
            refuses(work)
    if format_ == "logits":
        path.write_bytes(data + b"\0")
        refuses(lambda: bench.measure(path))


@FORMATS
def test_holes_are_seen(bench: Bench, tmp_path: Path, format_: str) -> None:
    """Pages that never reached the disk: zeros, anywhere."""
    path = bench.copy(format_, tmp_path / "copy")
    data = path.read_bytes()
    chosen = random.Random(f"holes {format_}")
    for _ in range(15):
        start = chosen.randrange(len(data) - 600)
        hole = data[:start] + bytes(512) + data[start + 512 :]
        if hole == data:
            continue
        path.write_bytes(hole)
        for work in users(bench, path, tmp_path):
            refuses(work)


def test_states_of_other_rows_are_seen(bench: Bench, tmp_path: Path) -> None:
    """Rows that are whole, but stand in each other's places."""
    path = bench.copy("states", tmp_path / "copy")
    place = states_places(path)["states"]
    width = len(place) // (CHUNKS * 31)
    data = bytearray(path.read_bytes())
    for a, b in ((0, 1), (3, 31), (40, 92)):
        swapped = bytearray(data)
        first, second = (slice(place.start + row * width, place.start + (row + 1) * width) for row in (a, b))
        swapped[first], swapped[second] = data[second], data[first]
        assert swapped != data
        path.write_bytes(swapped)
        for work in users(bench, path, tmp_path):
            assert "checksum" in str(refuses(work))


@FORMATS
def test_an_empty_or_absent_baseline_is_named(bench: Bench, tmp_path: Path, format_: str) -> None:
    path = tmp_path / OUT[format_]
    for work in users(bench, path, tmp_path):
        assert "does not exist" in str(refuses(work))
    path.touch()
    for work in users(bench, path, tmp_path):
        refuses(work)
    path.unlink()
    path.mkdir()
    for work in users(bench, path, tmp_path):
        refuses(work)


def test_random_bytes_are_no_baseline(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "base"
    chosen = random.Random(9)
    for start in (b"", b"GGUF", b"GGUF\3\0\0\0", b"_logits_"):
        for n in (8, 20, 100, 3000):
            path.write_bytes(start + chosen.randbytes(n))
            for work in users(bench, path, tmp_path):
                refuses(work)


# --- the head


def test_a_missing_head_is_named(bench: Bench, tmp_path: Path) -> None:
    path = bench.copy("states", tmp_path / "copy")
    (tmp_path / "copy" / bench.head.name).unlink()
    for work in users(bench, path, tmp_path):
        assert "head" in str(refuses(work))


@pytest.mark.parametrize(
    "kind", ["head of another model", "the reference", "the variant", "the baseline", "text", "empty", "folder"]
)
def test_a_wrong_head_is_named(bench: Bench, tmp_path: Path, kind: str) -> None:
    path = bench.copy("states", tmp_path / "copy")
    head = tmp_path / "copy" / bench.head.name
    head.unlink()
    if kind == "head of another model":
        tiny_model(tmp_path / "other.gguf", "qwen2-bias", seed=5)
        other = bench.record(tmp_path / "other" / "base.gguf", "states", reference=str(tmp_path / "other.gguf"))
        shutil.copyfile(other.head_path or "", head)
    elif kind == "folder":
        head.mkdir()
    else:
        data = {
            "the reference": bench.reference.read_bytes(),
            "the variant": bench.variant.read_bytes(),
            "the baseline": path.read_bytes(),
            "text": b"no model at all",
            "empty": b"",
        }
        head.write_bytes(data[kind])
    for work in users(bench, path, tmp_path):
        assert "head" in str(refuses(work))


def test_a_head_of_another_version_is_named(bench: Bench, tmp_path: Path) -> None:
    path = bench.copy("states", tmp_path / "copy")
    head = tmp_path / "copy" / bench.head.name
    data = bytearray(head.read_bytes())
    key = b"quantcard.head.version"
    at = data.index(key) + len(key) + 4
    assert struct.unpack_from("<I", data, at) == (1,)
    struct.pack_into("<I", data, at, 2)
    head.write_bytes(data)
    for work in users(bench, path, tmp_path):
        refuses(work)


def test_a_truncated_head_is_named(bench: Bench, tmp_path: Path) -> None:
    path = bench.copy("states", tmp_path / "copy")
    head = tmp_path / "copy" / bench.head.name
    data = head.read_bytes()
    chosen = random.Random("head")
    end = read_file_header(head).data_end
    for cut in (0, 3, 100, end - 1, *(chosen.randrange(end) for _ in range(10))):
        head.write_bytes(data[:cut])
        for work in users(bench, path, tmp_path):
            assert "head" in str(refuses(work))


def _in_child(answer: Connection, baseline: str, model: str, machine: Machine) -> None:
    """Measure and verify, and say how each ended: 'ok', or the error's name and sentence."""
    for work in (
        lambda: measure(QualitySpec(model=model, baseline=baseline, n_batch=128, n_ubatch=64, machine=machine), quiet),
        lambda: run_tool(BaselineToolSpec(action="verify", path=baseline, machine=machine), quiet),
    ):
        try:
            work()
            answer.send(("ok", ""))
        except Exception as error:  # whatever it is, the test looks at it
            answer.send((type(error).__name__, str(error)))


def in_a_process(baseline: Path, model: Path) -> list[tuple[str, str]]:
    """How measuring and verifying end, each; a process that died is ('died', its signal)."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["jobs.quality", "jobs.kernel", "jobs.baseline.tools"])
    here, there = context.Pipe()
    child = context.Process(target=_in_child, args=(there, str(baseline), str(model), MACHINE))
    child.start()
    there.close()
    found: list[tuple[str, str]] = []
    try:
        while len(found) < 2:
            found.append(here.recv())
    except EOFError:
        pass
    child.join(30)
    return found + [("died", str(child.exitcode))] * (2 - len(found))


@pytest.mark.parametrize("place", ["header", "token_embd.weight", "output_norm.weight", "blk.0.ffn_down.weight"])
def test_a_flipped_bit_of_the_head_is_seen(bench: Bench, tmp_path: Path, place: str) -> None:
    """In processes of their own: llama.cpp ends the process on some headers."""
    path = bench.copy("states", tmp_path / "copy")
    head = tmp_path / "copy" / bench.head.name
    missed = []
    for bit in bits_of(states_places(head)[place], f"head {place}", n=6):
        flip(head, bit)
        for action, (name, says) in zip(("measure", "verify"), in_a_process(path, bench.variant), strict=True):
            if name not in ("BaselineError", "GGUFError"):
                missed.append((action, bit, name, says))
        flip(head, bit)
    assert not missed, missed


# --- of something else


def test_a_model_is_no_baseline_and_a_baseline_no_model(bench: Bench, tmp_path: Path) -> None:
    for model in (bench.reference, bench.head):
        for work in users(bench, model, tmp_path):
            assert "model" in str(refuses(work))
    states = Path(bench.recorded["states"].path)
    for wrong in (states, Path(bench.recorded["logits"].path)):
        with pytest.raises(GGUFError) as caught:
            bench.measure(states, wrong)
        sentence(caught.value)
        with pytest.raises(GGUFError) as caught:
            bench.record(tmp_path / "never", "states", reference=str(wrong))
        sentence(caught.value)


def test_a_head_is_no_model_to_measure(bench: Bench) -> None:
    """It loads, and has no vocabulary."""
    (name, says), _ = in_a_process(Path(bench.recorded["states"].path), bench.head)
    assert name in ("VocabularyMismatchError", "GGUFError"), (name, says)


@pytest.fixture(scope="module")
def others(bench: Bench) -> dict[str, Path]:
    """Models that are not of this baseline, by what is different."""
    found = {name: bench.folder / f"{name}.gguf" for name in ("larger", "smaller", "words", "bos")}
    tiny_model(found["larger"], "qwen2-bias", n_vocab=97)
    tiny_model(found["smaller"], "qwen2-bias", n_vocab=112)
    data = bench.variant.read_bytes()
    # The letters e and t change places in the vocabulary.
    e, t = (struct.pack("<Q", 1) + letter for letter in (b"e", b"t"))
    at = data.index(e + t)
    found["words"].write_bytes(data[:at] + t + e + data[at + 18 :])
    key = b"tokenizer.ggml.add_bos_token" + struct.pack("<I", 7)
    at = data.index(key) + len(key)
    assert data[at] == 1
    found["bos"].write_bytes(data[:at] + b"\0" + data[at + 1 :])
    return found


@FORMATS
@pytest.mark.parametrize(
    ("other", "says"),
    [
        ("larger", "vocabulary of 97 tokens, the baseline of 96"),
        ("smaller", "vocabulary of 112 tokens, the baseline of 96"),
        ("words", "but other ones"),
        ("bos", "does not add a BOS token"),
    ],
)
def test_another_vocabulary_is_named(
    bench: Bench, others: dict[str, Path], format_: str, other: str, says: str
) -> None:
    path = Path(bench.recorded[format_].path)
    with pytest.raises(VocabularyMismatchError, match=says) as caught:
        bench.measure(path, others[other])
    assert others[other].name in str(sentence(caught.value))


@pytest.mark.parametrize("other", ["larger", "smaller"])
def test_without_a_companion_the_vocabularys_size_is_still_compared(
    bench: Bench, others: dict[str, Path], tmp_path: Path, other: str
) -> None:
    path = bench.copy("logits", tmp_path / "copy")
    path.with_name("base.kld.json").unlink()
    with pytest.raises(VocabularyMismatchError):
        bench.measure(path, others[other])
    # And a companion is not made from another model.
    spec = BaselineToolSpec(
        action="import", path=str(path), out=str(tmp_path / "in.kld"), reference=str(others[other]), machine=MACHINE
    )
    with pytest.raises(VocabularyMismatchError):
        run_tool(spec, quiet)
    assert not (tmp_path / "in.kld.json").exists()


def protocol_of(bench: Bench, format_: str, **changes: Any) -> Protocol:
    """The protocol that a baseline was recorded under, but for changes."""
    corpus = Corpus(name="corpus.txt", sha256=hashlib.sha256((bench.folder / "corpus.txt").read_bytes()).hexdigest())
    given: dict[str, Any] = {"name": "here", "corpus": corpus, "n_ctx": N_CTX, "n_batch": 128, "n_ubatch": 64}
    given |= {"chunks": CHUNKS, "scoring": "unclipped" if format_ == "states" else "llama-cpp"}
    return Protocol(**(given | changes))


@FORMATS
def test_a_baseline_of_another_protocol_is_named(bench: Bench, format_: str) -> None:
    path = Path(bench.recorded[format_].path)
    asked = protocol_of(bench, format_)
    result = bench.measure(path, protocol=asked)
    assert result.protocol["fingerprint"] == asked.fingerprint
    for changes in (
        {"n_ctx": 32},
        {"corpus": Corpus(name="corpus.txt", sha256="ab" * 32)},
        {"chunks": 2},
    ):
        changed = protocol_of(bench, format_, **changes)
        error = refuses(lambda changed=changed: bench.measure(path, protocol=changed))  # type: ignore[misc]
        assert "protocol" in str(error)
        with pytest.raises(BaselineError):
            measure_many(
                QualityManySpec(models=[str(bench.variant)], baseline=str(path), protocol=changed, **SIZES), quiet
            )


def test_a_states_baseline_recorded_with_other_settings_is_named(bench: Bench) -> None:
    """Its states are what the reference gave in those micro-batches; what a KV cache costs is what one measures."""
    path = Path(bench.recorded["states"].path)
    for changes in ({"flash_attn": "off"}, {"n_ubatch": 32}, {"n_batch": 64}):
        changed = protocol_of(bench, "states", **changes)
        with pytest.raises(SettingsError, match="under the wrong name"):
            bench.measure(path, protocol=changed)
        refuses(lambda c=changed, k=changes: bench.measure(path, protocol=c, **k))  # type: ignore[misc]
    for cache in ("q8_0", "f32"):
        changed = protocol_of(bench, "states", type_k=cache, type_v=cache)
        result = bench.measure(path, protocol=changed, type_k=cache, type_v=cache)
        assert result.protocol["type_k"] == cache


def test_a_protocols_scoring_is_the_one_that_was_used(bench: Bench) -> None:
    """Clipped figures must not be stored under an unclipped protocol, nor the other way round."""
    states, logits = (Path(bench.recorded[format_].path) for format_ in OUT)
    with pytest.raises((InputError, SettingsError)):
        bench.measure(logits, protocol=protocol_of(bench, "logits", scoring="unclipped"))
    with pytest.raises((InputError, SettingsError)):
        bench.measure(states, protocol=protocol_of(bench, "states", scoring="llama-cpp"))
    with pytest.raises((InputError, SettingsError)):
        bench.measure(states, as_llama_cpp=True, protocol=protocol_of(bench, "states", scoring="unclipped"))
    result = bench.measure(states, as_llama_cpp=True, protocol=protocol_of(bench, "states", scoring="llama-cpp"))
    assert (result.scoring, result.protocol.get("scoring", "llama-cpp")) == ("llama-cpp", "llama-cpp")


def test_a_companion_of_another_file_is_named(bench: Bench, tmp_path: Path) -> None:
    path = bench.copy("logits", tmp_path / "copy")
    other = bench.record(tmp_path / "other" / "base.kld", "logits", chunks=CHUNKS - 1)
    shutil.copyfile(f"{other.path}.json", path.with_name("base.kld.json"))
    for work in users(bench, path, tmp_path):
        assert "do not belong together" in str(refuses(work))


@pytest.mark.parametrize(
    "change",
    [
        {"version": 1},
        {"version": 3},
        {"version": "2"},
        {"format": "another"},
        {"nll": ""},
        {"nll": "AAAA"},
        {"nll": "no base64 !"},
        {"nll": 7},
        {"chunk_sums": []},
        {"chunk_sums": [1, 2, 3]},
        {"chunk_sums": "x"},
        {"n_ctx": 63},
        {"n_vocab": 97},
        {"surprise": 1},
    ],
    ids=str,
)
def test_a_companion_that_says_other_things_is_named(bench: Bench, tmp_path: Path, change: dict[str, Any]) -> None:
    path = bench.copy("logits", tmp_path / "copy")
    meta = path.with_name("base.kld.json")
    meta.write_text(json.dumps(json.loads(meta.read_text()) | change))
    refuses(lambda: bench.measure(path))
    with pytest.raises(BaselineError):
        bench.verify(path)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "no json", "\0\0\0"])
def test_a_companion_that_is_none_is_named(bench: Bench, tmp_path: Path, text: str) -> None:
    path = bench.copy("logits", tmp_path / "copy")
    path.with_name("base.kld.json").write_text(text)
    for work in users(bench, path, tmp_path):
        refuses(work)


def rewritten(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change a states baseline's bytes and make its checksum hold again: what a hostile or newer writer could do."""
    data = change(path.read_bytes())
    header = parse_header(data, whole=True)
    (tensor,) = [t for t in header.tensors if t.name == "digest"]
    at = header.data_start + tensor.offset
    path.write_bytes(data[:at] + struct.pack("<Q", xxhash.xxh3_64_intdigest(data[:at])) + data[at + 8 :])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"version":1', '"version":2'),
        ('"n_ctx":64', '"n_ctx":63'),
        ('"n_ctx":64', '"n_ctx":-4'),
        ('"n_chunks":3', '"n_chunks":0'),
        ('"n_chunks":3', '"n_chunks":4'),
        ('"n_vocab":96', '"n_vocab":97'),
        ('"n_embd":64', '"n_embd":32'),
        ('"n_samples":8', '"n_samples":0'),
        ('"state_type":"F16"', '"state_type":"F32"'),
        ('"state_type":"F16"', '"state_type":"Q80"'),
        ('"has_bias":true', '"has_bias":null'),
        ('"scale":1.0', '"scale":nan'),
        ('"head_file":"head-', '"head_file":"/etc/'),
        ('"head_file":"head-', '"head_file":"../ad'),
    ],
)
def test_a_states_baseline_that_says_other_things_is_named(bench: Bench, tmp_path: Path, old: str, new: str) -> None:
    path = bench.copy("states", tmp_path / "copy")
    assert len(old) == len(new)

    def change(data: bytes) -> bytes:
        assert data.count(old.encode()) == 1
        return data.replace(old.encode(), new.encode())

    rewritten(path, change)
    for work in users(bench, path, tmp_path):
        refuses(work)


@pytest.mark.parametrize("value", [-1, 96, 2**31 - 1, -(2**31)])
def test_token_ids_outside_the_vocabulary_are_named(bench: Bench, tmp_path: Path, value: int) -> None:
    """They say which logits are read, so that a wrong one reads memory that is not ours."""
    path = bench.copy("states", tmp_path / "copy")
    place = states_places(path)["tokens"]
    for index in (0, 40, 63, 64 * 3 - 1):
        sound = path.read_bytes()
        at = place.start + 4 * index
        rewritten(path, lambda data, at=at: data[:at] + struct.pack("<i", value) + data[at + 4 :])  # type: ignore[misc]
        for work in users(bench, path, tmp_path):
            refuses(work)
        path.write_bytes(sound)


@pytest.mark.parametrize("n_ctx", [1, 2, 3])
def test_a_kld_without_anything_to_score_is_named(bench: Bench, tmp_path: Path, n_ctx: int) -> None:
    path = tmp_path / "base.kld"
    rows = n_ctx - 1 - n_ctx // 2
    path.write_bytes(
        b"_logits_" + struct.pack("<3i", n_ctx, 96, 2) + bytes(4 * 2 * n_ctx) + bytes(2 * rows * (96 + 4) * 2)
    )
    for work in (lambda: bench.measure(path), lambda: bench.verify(path)):
        with pytest.raises((BaselineError, SettingsError)) as caught:
            work()
        sentence(caught.value)


def test_rows_that_are_no_probabilities_are_named(bench: Bench, tmp_path: Path) -> None:
    path = bench.copy("logits", tmp_path / "copy")
    path.with_name("base.kld.json").unlink()
    place = kld_places(path)["rows"]
    data = bytearray(path.read_bytes())
    row = place.start + 50 * 200
    data[row + 8 : row + 200] = b"\xff" * 192
    path.write_bytes(data)
    for work in users(bench, path, tmp_path):
        assert re.search(r"corrupt.*chunk 1\b", str(refuses(work)))


def test_asking_for_nothing_or_the_impossible_is_named(bench: Bench, tmp_path: Path) -> None:
    states = Path(bench.recorded["states"].path)
    with pytest.raises(QuantcardError, match="0 chunks"):
        bench.measure(states, chunks=0)
    for action in ("export", "import"):
        with pytest.raises(SettingsError):
            run_tool(BaselineToolSpec(action=action, path=str(states), machine=MACHINE), quiet)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="already"):
        out = str(tmp_path / "x.gguf")
        run_tool(BaselineToolSpec(action="import", path=str(states), out=out, machine=MACHINE), quiet)
    with pytest.raises(SettingsError):
        models = [str(bench.variant)] * 2
        measure_many(QualityManySpec(models=models, baseline=str(states), overlap=True, **SIZES), quiet)
    with pytest.raises(SettingsError):
        measure_many(QualityManySpec(models=models, baseline=str(states), tokens_out=["one"], **SIZES), quiet)
