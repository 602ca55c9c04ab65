"""The situations that a section may be in, each as the rows of one repo: what the golden files are made from.

Figures are those of a ladder of an 8B model, with everything that a measurement stores.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import cache
from typing import Any

from rows import CPU, GPU, flag, row, sha

from core.canonical import canonical_json
from core.dataset import DatasetRow
from core.inspection import Imatrix, Inspection, ModelShape, TypeShare

N_PARAMS = 8_190_735_360
N_TOKENS = 148_410
CHUNKS = 582

#: label: bpw, mean KLD, half of its interval, 99.9 % KLD, same top p, PPL ratio, pp512, tg128.
LADDER: dict[str, tuple[float, float, float, float, float, float, float, float]] = {
    "BF16": (16.0, 0.0, 0.0, 0.0, 1.0, 1.0, 4_480.0, 29.6),
    "Q8_0": (8.51, 0.00131, 0.00003, 0.021, 0.981, 1.0006, 4_910.0, 51.9),
    "Q6_K": (6.57, 0.00402, 0.00008, 0.067, 0.968, 1.0021, 4_420.0, 62.4),
    "Q5_K_M": (5.71, 0.00893, 0.00018, 0.151, 0.954, 1.0049, 4_530.0, 68.0),
    "Q5_K_S": (5.59, 0.00961, 0.00019, 0.166, 0.952, 1.0058, 4_560.0, 69.1),
    "Q4_K_M": (4.91, 0.0241, 0.0005, 0.402, 0.926, 1.0132, 4_710.0, 77.2),
    "Q4_K_S": (4.68, 0.0287, 0.0006, 0.478, 0.919, 1.0171, 4_750.0, 80.5),
    "IQ4_XS": (4.45, 0.0301, 0.0006, 0.489, 0.917, 1.0169, 4_460.0, 80.1),
    "Q3_K_L": (4.33, 0.0704, 0.0014, 1.12, 0.876, 1.0402, 4_300.0, 76.9),
    "Q3_K_M": (4.02, 0.0812, 0.0016, 1.29, 0.867, 1.0477, 4_370.0, 81.2),
    "IQ3_M": (3.76, 0.0893, 0.0017, 1.38, 0.861, 1.0515, 4_210.0, 78.8),
    "Q3_K_S": (3.69, 0.1291, 0.0025, 1.98, 0.834, 1.0828, 4_340.0, 83.7),
    "IQ3_XXS": (3.25, 0.1702, 0.0032, 2.44, 0.812, 1.1043, 4_180.0, 84.9),
    "Q2_K": (3.21, 0.2914, 0.0052, 3.91, 0.761, 1.2219, 4_260.0, 90.3),
    "IQ2_M": (2.95, 0.3108, 0.0055, 4.02, 0.752, 1.2107, 4_020.0, 86.0),
}
_MAIN_TYPE = {"BF16": "BF16", "Q8_0": "Q8_0", "Q6_K": "Q6_K"}


def bytes_of(label: str) -> int:
    """Bytes of a file of the ladder."""
    return round(LADDER[label][0] * N_PARAMS / 8) + 6_000_000


def inspection(label: str, *, imatrix: bool = True, template: str | None = "chatml") -> Inspection:
    """What a header of the ladder holds."""
    main = _MAIN_TYPE.get(label, label.rsplit("_", 1)[0] if label.count("_") > 1 else label)
    wide = main if main in ("BF16", "Q8_0") else "Q6_K"

    def share(kind: str, params: int) -> dict[str, TypeShare]:
        return {kind: TypeShare(count=36, params=params, bytes=params // 2)}

    mixed = share(main, 600_000_000) | ({} if wide == main else share(wide, 200_000_000))
    calibrated = imatrix and label not in ("BF16", "Q8_0")
    return Inspection(
        architecture="qwen3",
        n_params=N_PARAMS,
        size_bytes=bytes_of(label),
        bpw=LADDER[label][0],
        file_type=label,
        n_tensors=399,
        tensor_types=share(main, N_PARAMS),
        groups={
            "attention": mixed,
            "ffn_up": share(main, 1_800_000_000),
            "ffn_gate": share(main, 1_800_000_000),
            "ffn_down": mixed,
            "embeddings": share(wide, 622_000_000),
            "output": share(wide, 622_000_000),
            "norms": share("F32", 300_000),
        },
        imatrix=Imatrix(file="Model.imatrix", dataset="calibration_datav3.txt", entries=252, chunks=124)
        if calibrated
        else None,
        base_models=[],
        shards=1,
        chat_template_sha256=sha(template) if template else None,
        n_vocab=151_936,
        n_ctx_train=40_960,
        flags=[],
        shape=ModelShape(
            n_layers=36, n_embd=4096, n_vocab=151_936, n_heads=32, widest=12_288, k_width=36_864, v_width=36_864,
            state_values=0, weights=bytes_of(label), largest_layer=10**8, outside_layers=10**9, repacked=0,
        ),
        audit_version=3,
    )  # fmt: skip


def quality(label: str, environment: dict[str, Any], **changes: float) -> str:
    """A quality result as it is stored, as far as a section reads it."""
    _, kld, half, tail, top, ratio, _, _ = LADDER[label]
    kld, half, tail = (changes.get(name, value) for name, value in (("kld", kld), ("half", half), ("tail", tail)))
    top = changes.get("top", top)
    spread = changes.get("spread", 0.0012 if top < 1 else 0.0)
    return canonical_json(
        {
            "kind": "quality",
            "environment": environment,
            "kld": {"mean": kld, "p90": 2.1 * kld, "p99": tail / 4, "p99_9": tail},
            "delta_p": {"mean": -kld / 9},
            "intervals": {
                "n_chunks": CHUNKS,
                "kld_mean": {"low": kld - half, "high": kld + half},
                "kld_p99_9": {"low": 0.94 * tail, "high": 1.07 * tail},
                "ln_ppl_ratio": {"low": -0.0009, "high": 0.0009},
                "same_top": {"low": max(0.0, top - spread), "high": min(1.0, top + spread)},
            },
            "ppl_ratio": {"value": ratio},
        }
    )


def measured(like: str, *, environment: dict[str, Any] = GPU, without: str = "", **changes: Any) -> DatasetRow:
    """A row of the ladder with all that is stored; ``kld``, ``half``, ``tail``, ``top`` change its figures."""
    label = like
    bpw, kld, half, tail, top, ratio, pp, tg = LADDER[label]
    told = {name: changes.pop(name) for name in ("kld", "half", "tail", "top", "spread") if name in changes}
    kld, half, tail, top = (
        told.get(name, value) for name, value in (("kld", kld), ("half", half), ("tail", tail), ("top", top))
    )
    found = inspection(label)
    known: dict[str, Any] = {
        "repo_id": "acme/Nova-8B-GGUF",
        "owner": "acme",
        "variant": f"Nova-8B-{label}.gguf",
        "label": label,
        "variant_key": sha("nova", label),
        "is_reference": label == "BF16",
        "base_model": "nova/Nova-8B",
        "size_bytes": bytes_of(label),
        "n_params": N_PARAMS,
        "bpw": bpw,
        "file_type": label,
        "n_ctx_train": 40_960,
        "memory_8k_bytes": bytes_of(label) + 1_940_000_000,
        "inspection_json": canonical_json(found.model_dump(mode="json", exclude={"flags"})),
        "imatrix_file": found.imatrix.file if found.imatrix else None,
        "reference_repo": "acme/Nova-8B-GGUF",
        "reference_variant": "Nova-8B-BF16.gguf",
        "reference_key": sha("nova", "BF16"),
        "reference_kind": "own",
        "n_chunks": CHUNKS,
        "n_tokens": N_TOKENS,
        "ppl": 9.7114 * ratio,
        "ppl_stderr": 0.0741,
        "ppl_base": 9.7114,
        "ppl_ratio": ratio,
        "ppl_cor": 1 - kld / 8,
        "kld_mean": kld,
        "kld_stderr": half / 2.4,
        "kld_median": kld / 6,
        "kld_p99": tail / 4,
        "kld_p99_9": tail,
        "kld_max": tail * 5,
        "same_top": top,
        "same_top_stderr": 0.0005,
        "delta_p_rms": 0.31 * kld**0.5,
        "pp_ts": pp,
        "pp_ts_stddev": pp / 150,
        "tg_ts": tg,
        "tg_ts_stddev": tg / 400,
        "peak_memory_bytes": 1_210_000_000,
        "peak_vram_bytes": bytes_of(label) + 880_000_000,
        "quality_json": quality(label, environment, **told),
        "measured_at": datetime(2026, 11, 20, 12, 0, tzinfo=UTC),
        "command": "quantcard baseline record Nova-8B-BF16.gguf --corpus CORPUS.txt --ctx 512 --out base.gguf && "
        f"quantcard measure quality Nova-8B-{label}.gguf --baseline base.gguf --json",
    }
    missing: list[str] = []
    if "quality" in without:
        missing += ["n_chunks", "n_tokens", "ppl", "ppl_stderr", "ppl_base", "ppl_ratio", "ppl_cor", "kld_mean",
                    "kld_stderr", "kld_median", "kld_p99", "kld_p99_9", "kld_max", "same_top", "same_top_stderr",
                    "delta_p_rms", "quality_json", "command"]  # fmt: skip
    if "speed" in without:
        missing += ["pp_ts", "pp_ts_stddev", "tg_ts", "tg_ts_stddev", "peak_memory_bytes", "peak_vram_bytes"]
    for name in missing:
        known.pop(name)
    known["id"] = sha("id", known["repo_id"], changes.get("variant", known["variant"]))[:16]
    return row("Q4_K_M", without=without, environment=environment, **{**known, **changes})


def tasks(label: str, **scores: float) -> str:
    """Scores of tasks, as fractions of 750 items."""
    found = [{"task": name, "score": s, "stderr": (s * (1 - s) / 750) ** 0.5, "n": 750} for name, s in scores.items()]
    return json.dumps(found)


LONG = "Nova-8B-Instruct-2511-Abliterated-v2.1-i1-imatrix-custom-calibrated-multilingual-Q4_K_M-with-Q8_0-embeddings"
RTL = "نموذج-العربية-Q4_K_M"
EMOJI = "🦙 Nova | 8B `Q4` <b>🔥</b>"


def _forty() -> list[DatasetRow]:
    found = [measured(label) for label in LADDER]
    for at, label in enumerate([one for one in LADDER if one != "BF16"] * 2):
        kind = ("UD", "i1")[at // 14]
        by = 0.93 if kind == "UD" else 1.04
        _, kld, half, tail, top, *_ = LADDER[label]
        found.append(
            measured(
                label, kld=kld * by, half=half, tail=tail * by, top=min(1.0, top * (2 - by) ** 0.1),
                label=f"{kind}-{label}", variant=f"Nova-8B-{kind}-{label}.gguf", variant_key=sha(kind, label),
                size_bytes=bytes_of(label) + 31_000_000 * (at // 14 + 1),
                memory_8k_bytes=bytes_of(label) + 1_940_000_000 + 31_000_000 * (at // 14 + 1),
            )
        )  # fmt: skip
    return found[:41]


@cache
def situations() -> dict[str, list[DatasetRow]]:
    """All of them, by name."""
    some = ("BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "Q2_K")
    return {
        "one-variant": [measured("BF16"), measured("Q4_K_M")],
        "whole-ladder": [measured(label) for label in LADDER],
        "forty-variants": _forty(),
        "split-shards": [
            measured("BF16", n_files=4, variant="BF16/Nova-8B-BF16.gguf",
                     first_file="BF16/Nova-8B-BF16-00001-of-00004.gguf"),
            measured("Q8_0", n_files=2, variant="Q8_0/Nova-8B-Q8_0.gguf",
                     first_file="Q8_0/Nova-8B-Q8_0-00001-of-00002.gguf"),
            measured("Q4_K_M"),
        ],
        "ties": [
            measured("BF16"),
            measured("Q5_K_M"),
            measured("Q4_K_M", half=0.0022, spread=0.004, tg_ts=80.2),
            measured("Q4_K_S", kld=0.0262, half=0.0022, top=0.925, spread=0.004, tg_ts=80.4),
            measured("IQ4_XS", kld=0.0249, half=0.0021, top=0.927, spread=0.004, tg_ts=80.1),
        ],
        "metrics-disagree": [
            measured("BF16"),
            measured("Q6_K"),
            measured("Q4_K_M", kld=0.0241, tail=0.71, top=0.921),
            measured("Q4_K_S", kld=0.0268, tail=0.39, top=0.9265, tg_ts=77.9),
        ],
        "invalid": [
            measured("BF16"),
            measured("Q6_K"),
            measured("Q4_K_M"),
            measured("Q2_K", without="quality", state="failed",
                     reason="INVALID: the logits of chunk 3 hold values that are no numbers (NaN)."),
            measured("IQ2_M", without="quality speed", state="failed",
                     reason="Measurement died: SIGSEGV in the measuring process."),
        ],
        "stale": [
            measured("BF16"),
            measured("Q6_K"),
            measured("Q4_K_M"),
            measured("Q4_K_M", state="stale", kld=0.0312, variant_key=sha("old"),
                     reason="It was replaced by a newer file of the same name.", id="0" * 16),
            measured("Q3_K_M", without="quality speed", state="waiting"),
        ],
        "no-speed": [measured(label, without="speed") for label in some],
        "imported": [
            measured("BF16"),
            measured("Q6_K"),
            measured("Q5_K_M", speed_imported="llama-bench", peak_memory_bytes=None, peak_vram_bytes=None),
            measured("Q4_K_M", quality_imported="llama-perplexity", command=None),
        ],
        "tasks": [
            measured(label, tasks_json=tasks(label, **{"ARC-C": a, "HellaSwag": h, "MMLU-Redux": m, "WinoGrande": w}))
            for label, a, h, m, w in (
                ("BF16", 0.672, 0.822, 0.846, 0.745), ("Q8_0", 0.668, 0.820, 0.839, 0.743),
                ("Q6_K", 0.661, 0.825, 0.841, 0.743), ("Q4_K_M", 0.673, 0.820, 0.836, 0.740),
                ("Q3_K_M", 0.652, 0.811, 0.791, 0.723), ("Q2_K", 0.587, 0.724, 0.704, 0.679),
            )
        ],
        "reference-q8_0": [
            measured(label, is_reference=label == "Q8_0", reference_kind="q8_0", ppl_base=9.7172,
                     reference_variant="Nova-8B-Q8_0.gguf", reference_key=sha("nova", "Q8_0"))
            for label in ("Q8_0", "Q6_K", "Q4_K_M", "Q3_K_M")
        ],
        "long-names": [
            measured("BF16"),
            measured("Q6_K", label=LONG, variant=f"{LONG}.gguf"),
            measured("Q5_K_M", label=RTL, variant=f"{RTL}.gguf"),
            measured("Q4_K_M", label=EMOJI, variant=f"{EMOJI}.gguf",
                     flags=flag(f"Its header names {EMOJI} as its base model.", "base-model")),
            measured("Q3_K_M", label="Q3_K_M\u202egguf.exe\nnew line", variant="Q3_K_M\u202egguf.exe\nnew line.gguf"),
        ],
        "other-uploaders": [
            measured(label, reference_repo="nova/Nova-8B-GGUF", reference_kind="base-owner",
                     reference_reason="It is in a repo of the base model's owner.",
                     flags=flag("Its imatrix is made from wikitext-2, on which it is measured here.", "imatrix-overlap")
                     if label == "Q4_K_M" else "[]")
            for label in ("Q8_0", "Q6_K", "Q4_K_M", "Q3_K_M", "Q2_K")
        ],
        "two-machines": [measured("BF16"), measured("Q6_K"), measured("Q4_K_M"), measured("Q3_K_M", environment=CPU)],
    }  # fmt: skip
