"""The header audit over HTTP beside gguf's own reader on the same bytes: ranges, bytes, seconds, memory."""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

from benchmarks.children import ROOT, run
from benchmarks.header_child import REPO
from benchmarks.setting import Setting, say
from benchmarks.table import BenchError, Row, Target, median_of_ratios, seconds, size
from bot.queue.runners.local import scrubbed_environment
from core.gguf_header import read_file
from localhub import seed
from localhub.server import HubServer

#: What the issue asks of a vocabulary of some 150 k tokens.
RANGES = Target("≤ 3", 3)
BYTES = Target("≤ 16 MB", 16e6)
SECONDS = Target("< 0.5 s", 0.5)
MEMORY = Target("< 100 MB", 100e6)
_LAYERS = 40
#: Bytes behind the tensors' beginning, so that no range ends at the file's end by chance.
_TAIL = 24 << 20


@dataclass(frozen=True, slots=True)
class Shape:
    """A header: how many tokens and merges, and how long they are on average (bytes)."""

    title: str
    tokens: int
    merges: int
    token_bytes: int


SHAPES = (
    Shape("V = 151,936, 151,387 merges", 151_936, 151_387, 8),
    Shape("V = 151,936, 400,000 merges", 151_936, 400_000, 9),
)


def write(path: Path, shape: Shape) -> None:
    """Write a file with this header and tensors of zeros: 40 layers of attention, experts and norms."""
    writer = GGUFWriter(path, "qwen3moe")
    writer.add_file_type(15)
    writer.add_context_length(262_144)
    dice = np.random.default_rng(1)
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", np.uint8)

    def words(n: int, least: int, most: int) -> list[bytes]:
        lengths = np.sort(dice.integers(least, most + 1, n))
        text = letters[dice.integers(0, 26, int(lengths.sum()))].tobytes()
        ends = np.cumsum(lengths)
        return [text[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]

    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(words(shape.tokens, 2, 2 * shape.token_bytes - 2))
    writer.add_token_types([1] * shape.tokens)
    # As a vocabulary's own: the longer they are, the later they come.
    writer.add_token_merges([word.decode() for word in words(shape.merges, 4, 2 * shape.token_bytes + 2)])
    writer.add_chat_template("{% for message in messages %}{{ message.content }}{% endfor %}\n" * 60)
    for layer in range(_LAYERS):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            data = np.zeros((1, 144), np.uint8)
            writer.add_tensor(f"blk.{layer}.{part}.weight", data, raw_dtype=GGMLQuantizationType.Q4_K)
        for part in ("ffn_up_exps", "ffn_gate_exps", "ffn_down_exps"):
            data = np.zeros((2, 1, 144), np.uint8)
            writer.add_tensor(f"blk.{layer}.{part}.weight", data, raw_dtype=GGMLQuantizationType.Q4_K)
        for part in ("attn_norm", "ffn_norm", "attn_q_norm", "attn_k_norm"):
            writer.add_tensor(f"blk.{layer}.{part}.weight", np.zeros(256, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with path.open("ab") as file:
        file.write(bytes(_TAIL))


def measure_headers(setting: Setting) -> list[Row]:
    """Rows for every shape.

    Raises:
        BenchError: a child failed, or the two sides read different tensors.
    """
    rows: list[Row] = []
    root = setting.folder / "hub"
    with HubServer(root) as hub:
        for index, shape in enumerate(SHAPES):
            say(f"headers: {shape.title}")
            path = setting.folder / f"headers-{index}-Q4_K_M.gguf"
            write(path, shape)
            seed.upload_files(root, REPO, {path.name: path})
            rows += _measure(setting, shape, path, hub.url)
            path.unlink()
    return rows


def _measure(setting: Setting, shape: Shape, path: Path, url: str) -> list[Row]:
    # A header's bytes alone are what gguf's reader gets: it reads local files only.
    local = read_file(path).header
    ours: list[dict[str, Any]] = []
    peer: list[dict[str, Any]] = []
    sides = ((ours, "audit", {"endpoint": url, "file": path.name}), (peer, "peer", {"path": str(path)}))
    for number in range(setting.rounds):
        for found, what, arguments in sides if number % 2 == 0 else sides[::-1]:
            found.append(_child(setting, what, arguments))
    if {one["tensors"] for one in (*ours, *peer)} != {len(local.tensors)}:
        raise BenchError(f"{shape.title}: the two sides read different tensors.")
    ranges, read = max(one["ranges"] for one in ours), max(one["bytes"] for one in ours)
    ours_s, peer_s = ([float(one["seconds"]) for one in side] for side in (ours, peer))
    ours_peak, peer_peak = ([int(one["peak"]) for one in side] for side in (ours, peer))
    before = statistics.median(one["before"] for one in ours)
    return [
        Row(f"audit, {shape.title}: ranges", str(ranges), target=RANGES, value=ranges),
        Row("– bytes read", size(read), f"the header: {size(local.data_start)}", read / local.data_start, BYTES, read),
        Row(
            "– time, over HTTP",
            seconds(statistics.median(ours_s)),
            f"gguf.GGUFReader, from a file: {seconds(statistics.median(peer_s))}",
            median_of_ratios(ours_s, peer_s),
            SECONDS,
            statistics.median(ours_s),
            {"ours_s": ours_s, "limit_s": peer_s},
        ),
        Row(
            "– peak memory of the process",
            size(statistics.median(ours_peak)),
            f"gguf.GGUFReader: {size(statistics.median(peer_peak))}",
            median_of_ratios(ours_peak, peer_peak),
            MEMORY,
            statistics.median(ours_peak),
            {"ours_bytes": ours_peak, "limit_bytes": peer_peak},
        ),
        Row("– of it before the audit (Python, client)", size(before)),
    ]


def _child(setting: Setting, what: str, arguments: dict[str, Any]) -> dict[str, Any]:
    ended = run(
        [sys.executable, "-P", "-m", "benchmarks.header_child", what],
        name=f"benchmarks.header_child {what}",
        environment={**scrubbed_environment(str(setting.folder)), "PYTHONPATH": str(ROOT)},
        text=json.dumps(arguments),
        timeout=600.0,
    )
    try:
        answer: dict[str, Any] = json.loads(ended.lines[-1][1])
    except (IndexError, ValueError):
        raise BenchError(f"benchmarks.header_child {what} gave no answer.") from None
    return answer
