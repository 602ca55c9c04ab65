"""Rows as the bot publishes them, with figures that look like real ones; written as the real parquet."""

from __future__ import annotations

import hashlib
import json
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from core.dataset import DatasetRow

MODEL = "Qwen/Qwen3-4B-Instruct"
N_PARAMS = 4_022_468_096
CPU = {
    "llama_cpp": "0.3.36 (0c1e570)",
    "backend": "CPU",
    "system_info": "AVX2 = 1 | REPACK = 1",
    "cpu": "AMD EPYC 7763",
    "gpu": None,
    "driver": None,
    "n_threads": 16,
    "n_gpu_layers": 0,
    "repack": True,
}
GPU = CPU | {"backend": "CUDA0: NVIDIA L4", "gpu": "NVIDIA L4", "driver": "570.86", "n_gpu_layers": 99}
PROTOCOL = {"name": "wiki512", "version": 1, "n_ctx": 512, "chunks": -1, "corpus": {"name": "wikitext-2-raw-v1 test"}}

#: label, bits per weight, mean KLD of a middling uploader.
LADDER = [
    ("Q8_0", 8.5, 0.00136),
    ("Q6_K", 6.6, 0.0034),
    ("Q5_K_M", 5.7, 0.0078),
    ("Q4_K_M", 4.85, 0.0246),
    ("IQ4_XS", 4.3, 0.0331),
    ("Q3_K_M", 3.9, 0.0912),
    ("IQ3_XXS", 3.1, 0.211),
    ("Q2_K", 2.9, 0.342),
]


def digest(*parts: Any) -> str:
    """64 hex digits of the parts."""
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()


def row(**changes: Any) -> DatasetRow:
    """A measured row; whatever is not given looks like the rest of it."""
    label = changes.get("label", "Q4_K_M")
    repo_id = changes.get("repo_id", "bartowski/Qwen3-4B-Instruct-GGUF")
    environment = changes.pop("environment", CPU)
    protocol = changes.pop("protocol", PROTOCOL)
    kld = changes.get("kld_mean", 0.0246)
    bpw = changes.get("bpw") or 4.85
    scale = kld or 0.0
    known: dict[str, Any] = {
        "id": digest(repo_id, label, changes.get("variant"), protocol["name"], changes.get("state"))[:16],
        "repo_id": repo_id,
        "owner": repo_id.split("/")[0],
        "variant": f"{repo_id.split('/')[-1].removesuffix('-GGUF')}-{label}.gguf",
        "label": label,
        "variant_key": digest("file", repo_id, label),
        "revision": digest("commit", repo_id)[:40],
        "state": "measured",
        "is_reference": False,
        "base_model": MODEL,
        "architecture": "qwen3",
        "file_type": label,
        "size_bytes": int(N_PARAMS * bpw / 8),
        "n_params": N_PARAMS,
        "bpw": bpw,
        "imatrix_file": "calibration_datav3.txt",
        "protocol_name": protocol["name"],
        "protocol_fingerprint": digest(json.dumps(protocol, sort_keys=True)),
        "protocol_json": json.dumps(protocol),
        "reference_repo": "bartowski/Qwen3-4B-Instruct-GGUF",
        "reference_variant": "Qwen3-4B-Instruct-bf16.gguf",
        "reference_key": digest("reference"),
        "noise_floor": 2.1e-6,
        "n_ctx": 512,
        "n_chunks": 196,
        "n_tokens": 49_980,
        "ppl": 9.87 * (1 + scale),
        "ppl_stderr": 0.07,
        "ppl_base": 9.8712,
        "ppl_ratio": 1 + scale * 0.8,
        "ppl_ratio_stderr": scale * 0.05 + 1e-5,
        "ppl_cor": 0.998,
        "kld_mean": kld,
        "kld_stderr": None if kld is None else abs(scale) * 0.012 + 1e-6,
        "kld_median": scale * 0.3,
        "kld_p99": scale * 9,
        "kld_p99_9": scale * 31,
        "kld_max": scale * 150,
        "same_top": max(0.5, 1 - 0.33 * math.sqrt(abs(scale))),
        "same_top_stderr": 0.0009,
        "delta_p_rms": math.sqrt(abs(scale)) * 0.1,
        "n_prompt": 512,
        "pp_ts": 88.4 + bpw,
        "pp_ts_stddev": 0.4,
        "n_gen": 128,
        "tg_ts": 130 / bpw,
        "tg_ts_stddev": 0.2,
        "peak_memory_bytes": int(N_PARAMS * bpw / 8 * 1.1),
        "environment_fingerprint": digest(json.dumps(environment, sort_keys=True)),
        "environment_json": json.dumps(environment),
        "quality_json": json.dumps({"kind": "quality", "kld": {"mean": kld, "p95": scale * 3, "min": -1e-7}}),
        "command": f"quantcard measure quality {label}.gguf \\\n  --protocol wiki512 --json",
        "measured_at": datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC),
    }
    return DatasetRow(**(known | changes))


def sample(*, now: datetime | None = None) -> list[DatasetRow]:
    """A small world: three uploaders, a tie, a stale file, a broken one, a reference, a second model and machine."""
    now = now or datetime.now(UTC)
    rows = [
        row(label=label, bpw=bpw * size, kld_mean=kld * quality, repo_id=repo, measured_at=now - timedelta(hours=5))
        for repo, size, quality in (
            ("bartowski/Qwen3-4B-Instruct-GGUF", 1.0, 1.0),
            ("unsloth/Qwen3-4B-Instruct-GGUF", 1.015, 0.99),
            ("mradermacher/Qwen3-4B-Instruct-i1-GGUF", 1.01, 1.28),
        )
        for label, bpw, kld in LADDER
    ]
    rows += [
        row(label="BF16", bpw=16.0, kld_mean=2.1e-6, is_reference=True, file_type="BF16"),
        row(
            label="Q4_0", bpw=4.6, kld_mean=0.041, state="stale", repo_id="bartowski/Qwen3-4B-Instruct-GGUF",
            reason="replaced on the Hub",
        ),
        row(
            label="IQ1_S", bpw=1.9, kld_mean=None, state="failed", reason="INVALID: 3 logits are NaN in chunk 7",
            kld_p99_9=None, same_top=None, ppl=None, ppl_ratio=None, pp_ts=None, tg_ts=None, peak_memory_bytes=None,
            kld_median=None, kld_p99=None, kld_max=None, quality_json=None,
            flags=json.dumps([{"code": "imatrix-overlap", "detail": "made with the text that is measured on"}]),
        ),
        row(
            label="Q4_K_M", bpw=4.9, kld_mean=0.0192, repo_id="ggml-org/gemma-3-1b-it-GGUF",
            base_model="google/gemma-3-1b-it", size_bytes=806_058_240, n_params=999_885_952,
            environment=GPU, reference_key=digest("gemma"), pp_ts=6120.0, tg_ts=143.2, peak_vram_bytes=1_420_000_000,
        ),
        row(
            label="Q8_0", bpw=8.5, kld_mean=0.0011, repo_id="ggml-org/gemma-3-1b-it-GGUF",
            base_model="google/gemma-3-1b-it", size_bytes=1_069_306_368, n_params=999_885_952,
            environment=GPU, reference_key=digest("gemma"), pp_ts=6650.0, tg_ts=118.9, peak_vram_bytes=1_690_000_000,
        ),
    ]  # fmt: skip
    return rows


def hostile() -> DatasetRow:
    """Strings that a stranger may put where the page shows strings."""
    return row(
        label="<script>alert(1)</script>",
        variant="a|b`${alert(2)}`{{this}}\u202efdp.gguf",
        repo_id='evil"><img src=x onerror=alert(3)>/[x](javascript:alert(4))',
        base_model="</td><b>bold</b>",
        state="failed",
        reason="NaN <img src=x onerror=alert(5)> | $(x)",
        flags=json.dumps([{"code": "<i>f</i>", "detail": "'\"><svg onload=alert(6)>"}]),
        command="x </pre><script>alert(7)</script>",
    )


def write(path: Path, rows: list[DatasetRow], **columns: Any) -> Path:
    """The rows as a parquet file, with further columns where given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist([r.model_dump() for r in rows])
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    pq.write_table(table, path)
    return path
