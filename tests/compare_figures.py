"""Prints a Markdown table of our figures beside llama-perplexity's for every model of the team's shared folder.

usage: python tests/compare_figures.py [tinystories.c512x20 | tinystories.c512x196 | wiki.c512x8] ...
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from figures import differences

from bot.queue.runners.local import run_job
from core.contract import BaselineResult, BaselineSpec, QualityResult, QualitySpec, QuantizeSpec

SHARED = Path(__file__).resolve().parents[2] / "shared"
MODELS, TEXT, FIGURES = SHARED / "data" / "models", SHARED / "data" / "text", SHARED / "reference" / "figures"
HOUR = 3600.0
#: set -> corpus and chunks
SETS = {
    "tinystories.c512x20": ("tinystories.txt", 20),
    "tinystories.c512x196": ("tinystories.txt", -1),
    "wiki.c512x8": ("wiki.test.raw", 8),
}


def reference_of(name: str) -> str:
    """The reference that a model of the shared folder was measured against."""
    for family in ("stories260K-wide256", "stories260K", "synth-qwen2-152k"):
        if name.startswith(family):
            return f"{family}-F16"
    raise ValueError(name)


def compare(which: str, folder: Path) -> tuple[int, int]:
    """Print one set's rows; returns (equal figures, all figures)."""
    corpus, chunks = SETS[which]
    expected = json.loads((FIGURES / f"{which}.json").read_text())
    baselines: dict[str, Path] = {}
    equal = total = 0
    print(f"\n{which}: ours / llama-perplexity's\n")
    print("| model | PPL(Q) | PPL(base) | mean KLD ± | 99.9 % KLD | same top p % | equal printed figures |")
    print("|---|---|---|---|---|---|---|")
    for name, theirs in expected.items():
        if "direct" in name:
            continue
        reference = reference_of(name)
        if reference not in baselines:
            out = folder / f"{reference}.{which}.kld"
            source = MODELS / f"{reference}.gguf"
            spec = BaselineSpec(reference=str(source), corpus=str(TEXT / corpus), out=str(out), chunks=chunks)
            recorded = run_job(spec, timeout=HOUR)
            assert isinstance(recorded, BaselineResult)
            direct = expected[f"{reference} (direct PPL while recording)"]["final_ppl"]
            ours = f"{recorded.ppl.value:.4f} ± {recorded.ppl.stderr:.5f}"
            theirs_direct = f"{direct['value']} ± {direct['stderr']}"
            print(f"| {reference} recording, direct PPL | {ours} / {theirs_direct} | | | | | |")
            baselines[reference] = out
        model = MODELS / f"{name}.gguf"
        if not model.exists():
            model = folder / f"{name}.gguf"
            make = QuantizeSpec(
                model=str(MODELS / f"{reference}.gguf"), out=str(model), file_type=name.rsplit("-", 1)[1]
            )
            run_job(make, timeout=HOUR)
        result = run_job(QualitySpec(model=str(model), baseline=str(baselines[reference])), timeout=HOUR)
        assert isinstance(result, QualityResult)
        found = list(differences(result.model_dump(), theirs))
        same = sum(units < 0.01 for *_, units in found)
        equal, total = equal + same, total + len(found)
        r, kld = result, theirs["kld"]
        print(
            f"| {name} | {r.ppl.value:.6f} / {theirs['ppl']['value']:.6f} | {r.ppl_base.value:.6f} / "
            f"{theirs['ppl_base']['value']:.6f} | {r.kld.mean:.6f} ± {r.kld.stderr:.6f} / {kld['mean']:.6f} ± "
            f"{kld['stderr']:.6f} | {r.kld.p99_9:.6f} / {kld['p99_9']:.6f} | "
            f"{100 * r.same_top.value:.3f} / {100 * theirs['same_top']['value']:.3f} | {same} of {len(found)} |",
            flush=True,
        )
    return equal, total


def main() -> None:
    """Compare the sets named on the command line, or all."""
    with tempfile.TemporaryDirectory() as folder:
        sums = [compare(which, Path(folder)) for which in sys.argv[1:] or SETS]
    print(f"\n{sum(e for e, _ in sums)} of {sum(t for _, t in sums)} printed figures are equal.")


if __name__ == "__main__":
    main()
