"""What is measured: the demo's model, one with a tiny body and a huge vocabulary, one of a real model's shape.

Where a model does not lie at hand it is written here, with random weights that are the same every time, and kept in
the user's cache. Its tokenizer is a made-up byte-level BPE: it takes any text and has tokens of one to four letters.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType

from benchmarks.table import BenchError, size

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "localhub" / "demo_model"
#: Where a checkout of the maintainers has real data; nothing needs it.
SHARED = ROOT.parent / "shared" / "data"
NAMES = ("demo", "synth", "real")
_VERSION = 1
_BLOCK = 1 << 22
_LETTERS = "etaoinshrdlcumwfgypbvkjxqz"
#: gpt2's way to write a space in a token
_SPACE = "Ġ"


def cache_folder() -> Path:
    """Where what takes long to make is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quantcard"


@dataclass(frozen=True, slots=True)
class Case:
    """One model to measure: a reference and the text."""

    name: str
    title: str
    reference: Path
    corpus: Path


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a qwen2 model with tied embeddings."""

    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    n_vocab: int = 151_936
    n_merges: int = 151_387

    @property
    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape (rows first) of each tensor."""
        n_kv = self.n_embd // self.n_head * self.n_head_kv
        yield "token_embd.weight", (self.n_vocab, self.n_embd)
        yield "output_norm.weight", (self.n_embd,)
        for layer in range(self.n_layer):
            block = f"blk.{layer}."
            yield block + "attn_norm.weight", (self.n_embd,)
            yield block + "ffn_norm.weight", (self.n_embd,)
            for name, rows in (("q", self.n_embd), ("k", n_kv), ("v", n_kv)):
                yield f"{block}attn_{name}.bias", (rows,)
                yield f"{block}attn_{name}.weight", (rows, self.n_embd)
            yield block + "attn_output.weight", (self.n_embd, self.n_embd)
            yield block + "ffn_gate.weight", (self.n_ff, self.n_embd)
            yield block + "ffn_up.weight", (self.n_ff, self.n_embd)
            yield block + "ffn_down.weight", (self.n_embd, self.n_ff)

    @property
    def n_bytes(self) -> int:
        """Bytes of the weights."""
        return sum(int(np.prod(shape)) * (2 if len(shape) > 1 else 4) for _, shape in self.tensors)


SHAPES = {"synth": Shape(4, 256, 768, 4, 2), "real": Shape(24, 896, 4864, 14, 2)}
TITLES = {
    "demo": "demo: the model that ships with us",
    "synth": "synth: qwen2, 4 layers of 256, V = 151,936 (tiny body, huge vocabulary)",
    "real": "real: the shape of Qwen2.5-0.5B (24 layers of 896, V = 151,936), random weights",
}


def find_case(name: str, say: Callable[[str], None]) -> Case:
    """The model called ``name``, made first where it has to be.

    Raises:
        BenchError: no room for it.
    """
    text = SHARED / "text" / "wiki.test.raw"
    heldout = DEMO / "heldout.txt"
    if name == "demo":
        return Case(name, TITLES[name], DEMO / "quantcard-demo-F16.gguf", heldout)
    corpus = text if text.exists() else heldout
    given = SHARED / "models" / "synth-qwen2-152k-F16.gguf"
    if name == "synth" and given.exists():
        return Case(name, TITLES[name] + ", briefly trained", given, corpus)
    made = make_model(name, SHAPES[name], cache_folder() / "models", say)
    title = TITLES[name] if name == "real" else TITLES[name] + ", random weights"
    return Case(name, title, made, corpus)


def make_model(name: str, shape: Shape, folder: Path, say: Callable[[str], None]) -> Path:
    """The F16 GGUF of this shape in ``folder``; written only if it is not there.

    Raises:
        BenchError: no room for it.
    """
    path = folder / f"{name}-random-v{_VERSION}-F16.gguf"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < 1.2 * shape.n_bytes:
        raise BenchError(f"{folder} has {size(free)} left; the model {name} needs {size(1.2 * shape.n_bytes)}.")
    say(f"Writing {path} ({size(shape.n_bytes)} of random weights), once …")
    part = folder / f".{path.name}.{os.getpid()}.part"
    try:
        _write(part, shape)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _write(path: Path, shape: Shape) -> None:
    writer = GGUFWriter(path, "qwen2")
    writer.add_name("random weights for timing")
    writer.add_context_length(32_768)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(shape.n_vocab)
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    _add_tokenizer(writer, shape)
    tensors = list(shape.tensors)
    for name, dims in tensors:
        matrix = len(dims) > 1
        kind = GGMLQuantizationType.F16 if matrix else GGMLQuantizationType.F32
        n_bytes = int(np.prod(dims)) * (2 if matrix else 4)
        writer.add_tensor_info(name, dims, np.dtype(np.float16 if matrix else np.float32), n_bytes, raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()
    with path.open("r+b") as file:
        file.seek(0, os.SEEK_END)
        for index, (name, dims) in enumerate(tensors):
            # Written a piece at a time: no tensor is ever whole in memory.
            file.write(bytes(-file.tell() % writer.data_alignment))
            for values in _weights(index, name, dims, shape):
                file.write(values)
        file.write(bytes(-file.tell() % writer.data_alignment))


def _weights(index: int, name: str, dims: tuple[int, ...], shape: Shape) -> Iterator[bytes]:
    """A tensor's values in pieces: norms are one; matrices keep their input's scale; logits spread by 3."""
    total = int(np.prod(dims))
    if name.endswith("norm.weight"):
        yield np.ones(total, "<f4").tobytes()
        return
    random = np.random.default_rng([_VERSION, index])
    spread = 0.1 if len(dims) == 1 else dims[-1] ** -0.5
    if name == "token_embd.weight":
        spread = 3 * shape.n_embd**-0.5
    for start in range(0, total, _BLOCK):
        values = random.standard_normal(min(_BLOCK, total - start), dtype=np.float32) * np.float32(spread)
        yield values.astype("<f4" if len(dims) == 1 else "<f2").tobytes()


def byte_tokens() -> list[str]:
    """gpt2's letter for each byte."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) for byte in shown] + [chr(256 + index) for index in range(len(hidden))]


def merges(n: int) -> list[tuple[str, str]]:
    """The first ``n`` merges: two letters (or a space and a letter) first, then two such pairs; frequent ones first."""
    firsts = _SPACE + _LETTERS
    pairs = sorted(product(firsts, _LETTERS), key=lambda pair: (firsts.index(pair[0]) + _LETTERS.index(pair[1]), pair))
    heads = ["".join(pair) for pair in pairs]
    tails = [pair for pair in heads if not pair.startswith(_SPACE)]
    by_rank = sorted(product(range(len(heads)), range(len(tails))), key=lambda at: (at[0] + at[1], at))
    fours = ((heads[first], tails[second]) for first, second in by_rank)
    return [*pairs, *islice(fours, n - len(pairs))][:n]


def _add_tokenizer(writer: GGUFWriter, shape: Shape) -> None:
    merged = merges(shape.n_merges)
    tokens = [*byte_tokens(), *(first + second for first, second in merged)]
    kinds = [TokenType.NORMAL] * len(tokens)
    end = len(tokens)
    tokens.append("<|endoftext|>")
    tokens.extend(f"<|reserved_{index}|>" for index in range(shape.n_vocab - len(tokens)))
    kinds += [TokenType.CONTROL] * (len(tokens) - len(kinds))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([f"{first} {second}" for first, second in merged])
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_pad_token_id(end)
    writer.add_add_bos_token(False)
