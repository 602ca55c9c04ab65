"""A generated results dataset: as many measurements and base models as asked for, with long columns as real ones."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from core.dataset import MEASUREMENTS_PATH, DatasetRow
from core.dataset_file import ROW_GROUP, arrow_schema, raw_path

LABELS = ["Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "IQ4_XS", "Q3_K_M", "IQ3_XXS", "Q2_K"]
_BPW = np.array([8.5, 6.6, 5.7, 5.5, 4.85, 4.6, 4.3, 3.9, 3.1, 2.9])
_KLD = np.array([0.0013, 0.0034, 0.0078, 0.0091, 0.0246, 0.029, 0.0331, 0.0912, 0.211, 0.342])
_OWNERS = ["bartowski", "unsloth", "mradermacher", "lmstudio-community", "ggml-org"]
_MACHINES: list[dict[str, Any]] = [
    {"backend": "CPU", "cpu": "AMD EPYC 7763", "gpu": None, "n_gpu_layers": 0},
    {"backend": "CUDA0: NVIDIA L4", "cpu": "Intel Xeon", "gpu": "NVIDIA L4", "n_gpu_layers": 99},
]
_PROTOCOL = {"name": "wiki512", "version": 1, "n_ctx": 512, "chunks": -1, "corpus": {"name": "wikitext-2-raw-v1 test"}}


def write_dataset(folder: Path, *, rows: int, models: int) -> Path:
    """A folder laid out like the dataset repo, with ``rows`` measurements of at most ``models`` base models."""
    path = folder / MEASUREMENTS_PATH
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(7)
    with pq.ParquetWriter(path, arrow_schema(), compression="zstd", write_page_checksum=True) as writer:
        for start in range(0, rows, ROW_GROUP):
            numbers = np.arange(start, min(rows, start + ROW_GROUP))
            writer.write_table(_some(numbers, draw, rows, models), row_group_size=ROW_GROUP)
        if rows == 0:
            writer.write_table(arrow_schema().empty_table())
    return folder


def _digest(*parts: Any) -> str:
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()


def _some(numbers: np.ndarray, draw: np.random.Generator, rows: int, models: int) -> pa.Table:
    """Rows with these numbers: a model's stand together, ten quants of an uploader in a repo."""
    n, each = len(numbers), max(1, rows // max(1, models))
    model, quant, owner = numbers // each, numbers % len(LABELS), numbers % each // len(LABELS)
    params = 1e9 * (1 + model % 70)
    kld = _KLD[quant] * draw.lognormal(0, 0.2, n)
    size = (params * _BPW[quant] / 8 * draw.normal(1, 0.01, n)).astype(np.int64)
    names = [f"Vendor-{m % 97}/Model-{m}-Instruct" for m in model]
    owners = [f"{_OWNERS[o % 5]}{'' if o < 5 else o}" for o in owner]
    labels = [LABELS[q] for q in quant]
    ids = [_digest("row", number)[:16] for number in numbers]
    repos = [f"{o}/Model-{m}-Instruct-GGUF" for o, m in zip(owners, model, strict=True)]
    machines = [json.dumps(_MACHINES[i % 2] | {"llama_cpp": "0.3.36", "n_threads": 16}) for i in owner]
    protocol = json.dumps(_PROTOCOL)
    told: dict[str, Any] = {
        "schema_version": [1] * n,
        "id": ids,
        "repo_id": repos,
        "owner": owners,
        "variant": [f"Model-{m}-Instruct-{label}.gguf" for m, label in zip(model, labels, strict=True)],
        "n_files": [1] * n,
        "label": labels,
        "variant_key": [_digest("file", number) for number in numbers],
        "revision": [_digest("commit", repo)[:40] for repo in repos],
        "state": np.where(draw.random(n) < 0.01, "stale", "measured").tolist(),
        "is_reference": [False] * n,
        "base_model": names,
        "architecture": ["llama"] * n,
        "file_type": labels,
        "size_bytes": size,
        "n_params": params.astype(np.int64),
        "bpw": _BPW[quant],
        "n_ctx_train": [32_768] * n,
        "kv_bytes_per_token": [131_072] * n,
        "memory_8k_bytes": size + 1_400_000_000,
        "flags": ["[]" if one % 5 else '[{"code":"no-imatrix","detail":"made without an imatrix"}]' for one in numbers],
        "protocol_name": ["wiki512"] * n,
        "protocol_fingerprint": [_digest(protocol)] * n,
        "protocol_json": [protocol] * n,
        "reference_repo": repos,
        "reference_variant": [f"Model-{m}-Instruct-BF16.gguf" for m in model],
        "reference_key": [_digest("reference", m) for m in model],
        "noise_floor": [1e-6] * n,
        "n_ctx": [512] * n,
        "n_chunks": [565] * n,
        "n_tokens": [144_075] * n,
        "ppl": 8 * (1 + kld),
        "ppl_stderr": [0.05] * n,
        "ppl_base": [8.0] * n,
        "ppl_ratio": 1 + 0.8 * kld,
        "ppl_ratio_stderr": 0.05 * kld,
        "kld_mean": kld,
        "kld_stderr": 0.01 * kld,
        "kld_median": 0.3 * kld,
        "kld_p99": 9 * kld,
        "kld_p99_9": 31 * kld,
        "kld_max": 150 * kld,
        "same_top": np.maximum(0.5, 1 - 0.33 * np.sqrt(kld)),
        "same_top_stderr": [0.0006] * n,
        "n_prompt": [512] * n,
        "pp_ts": 1e12 / size * draw.normal(1, 0.01, n),
        "n_gen": [128] * n,
        "tg_ts": 2e11 / size * draw.normal(1, 0.01, n),
        "peak_memory_bytes": size + 400_000_000,
        "environment_fingerprint": [_digest(text) for text in machines],
        "environment_json": machines,
        "quality_json": [_long("quality", id, 3000) for id in ids],
        "speed_json": [_long("speed", id, 1200) for id in ids],
        "inspection_json": [_long("inspection", id, 2500) for id in ids],
        "raw_path": [raw_path(_digest("raw", id)) for id in ids],
        "command": [f"quantcard measure quality Model-{m}-{q}.gguf --json" for m, q in zip(model, labels, strict=True)],
        "measured_at": [datetime(2026, 1 + int(one) % 12, 1 + int(one) % 28, tzinfo=UTC) for one in numbers],
    }
    schema = arrow_schema()
    columns = [
        pa.array(told[name], schema.field(name).type) if name in told else pa.nulls(n, schema.field(name).type)
        for name in DatasetRow.model_fields
    ]
    return pa.table(columns, schema=schema)


def _long(kind: str, id: str, n_bytes: int) -> str:
    """A JSON object of some length with figures of its own."""
    seed = int(id[:8], 16)
    figures = [round(((seed * (i + 1) * 2654435761) % 1_000_003) / 1e6, 6) for i in range(n_bytes // 10)]
    return json.dumps({"kind": kind, "kld": {"mean": 0.01}, "values": figures}, separators=(",", ":"))
