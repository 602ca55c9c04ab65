"""Rows of the results dataset for tests of what is rendered and exported; every figure can be given."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

from core.canonical import canonical_json
from core.dataset import DatasetRow
from core.protocol import WIKITEXT2_TEST, Protocol

PROTOCOL = Protocol(corpus=WIKITEXT2_TEST)
ENDPOINT = "https://huggingface.co"
LINKS = {"endpoint": ENDPOINT, "leaderboard_url": "https://huggingface.co/spaces/quantcard/leaderboard"}
CPU = {
    "llama_cpp": "llama-cpp-python 0.3.36, llama.cpp 0c1e570",
    "backend": "CPU",
    "system_info": "AVX2 = 1",
    "cpu": "AMD EPYC 7B13",
    "gpu": None,
    "driver": None,
    "n_threads": 8,
    "n_gpu_layers": 0,
    "repack": True,
}
GPU = CPU | {"backend": "CUDA0: NVIDIA L4", "gpu": "NVIDIA L4", "driver": "570.86", "n_gpu_layers": -1}

#: label: bytes, bpw, mean KLD, its standard error, 99.9 % KLD, same top p, PPL ratio, pp512, tg128.
LADDER: dict[str, tuple[Any, ...]] = {
    "F16": (8_414_560, 16.0, 0.0, 0.0, 0.0, 1.0, 1.0, 4_100.0, 1_210.0),
    "Q8_0": (4_482_400, 8.52, 0.00044, 0.000005, 0.0074, 0.987, 1.0004, 5470.0, 1963.0),
    "Q6_K": (3_466_592, 6.58, 0.00131, 0.00001, 0.0232, 0.978, 1.0005, 6100.0, 1968.0),
    "Q5_K_M": (2_987_872, 5.67, 0.00261, 0.00002, 0.0616, 0.972, 1.0019, 5860.0, 1842.0),
    "Q4_K_M": (2_537_312, 4.81, 0.00861, 0.0001, 0.284, 0.950, 1.0070, 5540.0, 2145.0),
    "IQ4_XS": (2_292_064, 4.34, 0.00947, 0.00012, 0.314, 0.949, 1.0059, 5640.0, 2071.0),
    "Q3_K_M": (2_083_424, 3.94, 0.0371, 0.0004, 1.07, 0.899, 1.0314, 6070.0, 2000.0),
    "IQ3_XXS": (1_810_000, 3.41, 0.0711, 0.0008, 1.61, 0.861, 1.0712, 5210.0, 1874.0),
    "Q2_K": (1_616_480, 3.05, 0.293, 0.002, 4.53, 0.726, 1.3018, 5850.0, 1972.0),
}
QUALITY = [
    "n_ctx", "n_chunks", "n_tokens", "kld_mean", "kld_stderr", "kld_p99_9", "same_top", "ppl_ratio",
    "ppl_ratio_stderr", "noise_floor", "ppl_base", "command",
]  # fmt: skip
SPEED = [
    "n_prompt", "pp_ts", "pp_ts_stddev", "n_gen", "tg_ts", "tg_ts_stddev", "peak_memory_bytes", "peak_vram_bytes",
]  # fmt: skip


def sha(*parts: Any) -> str:
    """64 hex digits of the parts."""
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()


def row(like: str = "Q4_K_M", *, without: str = "", environment: dict[str, Any] = CPU, **changes: Any) -> DatasetRow:
    """A measured row; ``like``: its line of the ladder; ``without``: "quality", "speed" or both."""
    size, bpw, kld, stderr, p99_9, same, ratio, pp, tg = LADDER[like]
    known: dict[str, Any] = {
        "repo_id": "owner/Model-GGUF",
        "owner": "owner",
        "variant": f"Model-{like}.gguf",
        "label": like,
        "variant_key": sha("file", like),
        "revision": sha("commit")[:40],
        "state": "measured",
        "is_reference": like == "F16",
        "size_bytes": size,
        "bpw": bpw,
        "protocol_name": PROTOCOL.name,
        "protocol_fingerprint": PROTOCOL.fingerprint,
        "protocol_json": canonical_json(PROTOCOL.model_dump(mode="json")),
        "reference_repo": "owner/Model-GGUF",
        "reference_variant": "Model-F16.gguf",
        "reference_key": sha("file", "F16"),
        "noise_floor": 3.1e-8,
        "ppl_base": 5.5114,
        "n_ctx": 512,
        "n_chunks": 196,
        "n_tokens": 49_980,
        "kld_mean": kld,
        "kld_stderr": stderr,
        "kld_p99_9": p99_9,
        "same_top": same,
        "ppl_ratio": ratio,
        "ppl_ratio_stderr": 0.0004,
        "n_prompt": 512,
        "pp_ts": pp,
        "pp_ts_stddev": pp / 200,
        "n_gen": 128,
        "tg_ts": tg,
        "tg_ts_stddev": tg / 150,
        "peak_memory_bytes": size + 31_000_000,
        "environment_fingerprint": sha(json.dumps(environment, sort_keys=True)),
        "environment_json": canonical_json(environment),
        "command": "quantcard baseline record Model-F16.gguf --corpus CORPUS.txt --ctx 512 --out base.kld && "
        f"quantcard measure quality Model-{like}.gguf --baseline base.kld --json",
        "measured_at": datetime(2026, 11, 20, 12, 0, tzinfo=UTC),
    }
    for name in (QUALITY if "quality" in without else []) + (SPEED if "speed" in without else []):
        known[name] = None
    if "quality" in without and "speed" in without:
        known |= {"environment_fingerprint": None, "environment_json": None, "measured_at": None}
    known |= changes
    known.setdefault("id", sha(known["repo_id"], known["variant"], known["variant_key"])[:16])
    return DatasetRow(**known)


def flag(detail: str, code: str = "no-imatrix") -> str:
    """The flags column with one flag."""
    return json.dumps([{"code": code, "detail": detail}])
