"""Reads llama-perplexity's logs, and tells them from llama-bench's output (core/foreign_bench.py reads that). Pure.

Figures are taken as printed. What a text does not say is "unknown" in words and 0 in numbers, never guessed; folders
of the machine it comes from are left out.
"""

from __future__ import annotations

import itertools
import math
import re
from typing import Any, Literal

from core.contract import KLD, DeltaP, Environment, Estimate, QualityResult
from core.errors import ForeignFormatError

Tool = Literal["llama-perplexity", "llama-bench"]
UNKNOWN = "unknown"


def tool_of(text: str) -> Tool:
    """Which tool printed this, by its content.

    Raises:
        ForeignFormatError: none that is known.
    """
    if '"samples_ns"' in text or '"build_commit"' in text:
        return "llama-bench"
    if re.search(r"\bKLD:|kl_divergence|Final estimate: PPL|\bperplexity:", text):
        return "llama-perplexity"
    if re.search(r"^\| *model .*\| *t/s", text, re.MULTILINE):
        raise ForeignFormatError("This is llama-bench's table, which is rounded. Run llama-bench with -o json.")
    raise ForeignFormatError("This is neither output of 'llama-bench -o json' nor a log of llama-perplexity.")


def plain(text: str, most: int = 300) -> str:
    """A name (of a processor, a build) without what can't be shown or stored, cut to ``most`` characters."""
    readable = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(char for char in readable if char.isprintable())[:most].strip()


def file_name(path: str) -> str:
    """The last part of a path of any system."""
    return plain(re.split(r"[/\\]", path)[-1])


def build(commit: str, number: int) -> str:
    """A build of llama.cpp in words."""
    return f"llama.cpp {commit} (build {number})" if commit and commit != UNKNOWN else UNKNOWN


_NUMBER = r"[-+]?(?:[0-9]{1,400}(?:\.[0-9]{1,20})?|nan(?:\([a-z]*\))?|inf)"
_PLACE = r"Mean|Maximum|Median|Minimum|[0-9]{1,2}\.[0-9]%"
#: A line of the final statistics. A terminal may have mangled the ± and the Δ, so neither is insisted on.
_STATISTIC = re.compile(
    r"(?P<label>Mean PPL\(Q\)/PPL\(base\)|Mean PPL\(Q\)|Mean PPL\(base\)|Mean ln\(PPL\(Q\)/PPL\(base\)\)"
    r"|Cor\(ln\(PPL\(Q\)\), ln\(PPL\(base\)\)\)|Same top p"
    rf"|(?P<kld>{_PLACE})\s+KLD|(?P<dp>{_PLACE}|RMS)\s+[^\s:]{{0,6}}p)\s*:"
    rf"\s*(?P<value>{_NUMBER})\s*%?(?:\s*[^\s0-9%]{{1,6}}\s*(?P<stderr>{_NUMBER})\s*%?)?\s*$"
)
_FIELDS = {
    "mean": "Mean", "max": "Maximum", "p99_9": "99.9%", "p99": "99.0%", "p95": "95.0%", "p90": "90.0%",
    "p75": "75.0%", "median": "Median", "p25": "25.0%", "p10": "10.0%", "p5": "5.0%", "p1": "1.0%", "p0_1": "0.1%",
    "min": "Minimum", "rms": "RMS",
}  # fmt: skip
#: Places of the sorted values, the largest first.
_ORDER = ("max", "p99_9", "p99", "p95", "p90", "p75", "median", "p25", "p10", "p5", "p1", "p0_1", "min")
_HEADER = re.compile(
    r"kl_divergence\s*: computing over ([0-9]{1,9}) chunks,? (?:with )?n_ctx\s*=\s*([0-9]{1,9})"
    r"(?:, batch_size\s*=\s*([0-9]{1,9}))?"
)
#: A row of the running table ends in the per cent of the same top p.
_CHUNK = re.compile(r"^\s*([0-9]{1,9})\s+[-0-9].*%\s*$")
_SPOILED = {
    "inconsistent vocabulary": "its vocabulary is not the base file's",
    "while the current context is": "its context was smaller than the base file's",
    "failed to decode": "the model could not be run to the end",
    "failed reading log-probs": "the base file was shorter than it says",
}


class _Statistics:
    """The lines of the final statistics: (value, ±) by label, as printed. Percentages are given as fractions."""

    def __init__(self, text: str) -> None:
        self._found: dict[str, tuple[str, str | None]] = {}
        for line in text.splitlines():
            # The tool's own lines are short; no time is lost on others.
            if len(line) > 1000 or not (match := _STATISTIC.search(line)):
                continue
            if match["kld"]:
                label = f"{match['kld']} KLD"
            else:
                label = f"{match['dp']} Δp" if match["dp"] else match["label"]
            figures = (match["value"], match["stderr"])
            if self._found.setdefault(label, figures) != figures:
                raise ForeignFormatError(f"The log says '{label}' twice. Give each run a file of its own.")

    def __len__(self) -> int:
        return len(self._found)

    def value(self, label: str, *, percent: bool = False) -> float:
        if label not in self._found:
            raise ForeignFormatError(
                f"The log has no line '{label}': it was cut, or llama-perplexity was too old to print it. Take the "
                "whole log of a newer one."
            )
        found = _float(self._found[label][0], percent=percent)
        if not math.isfinite(found):
            raise ForeignFormatError(f"The log says '{label}: {found}': the model's logits were no numbers (INVALID).")
        return found

    def estimate(self, label: str, *, percent: bool = False) -> Estimate:
        value, said = self.value(label, percent=percent), self._found[label][1]
        if said is None:
            raise ForeignFormatError(f"The log's line '{label}' has no ±: it was cut or edited. Take the whole log.")
        stderr = _float(said, percent=percent)
        # The root of a rounding error below zero, where a model is compared with itself.
        stderr = 0.0 if math.isnan(stderr) else stderr
        if not 0 <= stderr < math.inf:
            raise ForeignFormatError(f"The log's line '{label}' has a ± of {stderr}: it was edited or damaged.")
        return Estimate(value=value, stderr=stderr)

    def kld(self) -> KLD:
        found = KLD(
            stderr=self.estimate("Mean KLD").stderr,
            **{name: self.value(f"{_FIELDS[name]} KLD") for name in KLD.model_fields if name != "stderr"},
        )
        _check_order(found, "KLD", 2e-6)
        return found

    def delta_p(self) -> DeltaP:
        names = [name for name in DeltaP.model_fields if not name.endswith("stderr")]
        found = DeltaP(
            stderr=self.estimate("Mean Δp", percent=True).stderr,
            rms_stderr=self.estimate("RMS Δp", percent=True).stderr,
            **{name: self.value(f"{_FIELDS[name]} Δp", percent=True) for name in names},
        )
        _check_order(found, "Δp", 2e-5)
        return found


def _float(text: str, *, percent: bool) -> float:
    """A printed number; a percentage's point is moved before it is rounded to a float."""
    return float(f"{text}e-2" if percent and text[-1].isdigit() else text.split("(")[0])


def _check_order(found: KLD | DeltaP, name: str, slack: float) -> None:
    """Percentiles fall and the mean lies between the ends; ``slack`` is for rounding."""
    values = [getattr(found, place) for place in _ORDER if place in type(found).model_fields]
    falls = all(high >= low - slack for high, low in itertools.pairwise(values))
    if not falls or not values[-1] - slack <= found.mean <= values[0] + slack:
        raise ForeignFormatError(f"The log's percentiles of {name} are out of order: it was edited or damaged.")


def parse_llama_perplexity(text: str) -> QualityResult:
    """The figures of a log of ``llama-perplexity --kl-divergence``, both of its streams.

    ``protocol`` holds what the log says of it: ``n_ctx``, ``n_batch``, and in a verbose one ``type_k``, ``type_v`` and
    the model's file name.

    Raises:
        ForeignFormatError: it is another run's log, was cut or edited, or its figures are worth nothing.
    """
    for sign, why in _SPOILED.items():
        if sign in text:
            raise ForeignFormatError(f"The figures of this log are worth nothing: {why}.")
    lines = _Statistics(text)
    if not len(lines):
        raise ForeignFormatError(_without_statistics(text))
    n_chunks, protocol = _said(text)
    n_ctx = protocol["n_ctx"]
    n_tokens = n_chunks * (n_ctx - 1 - n_ctx // 2)
    result = QualityResult(
        ppl=lines.estimate("Mean PPL(Q)"),
        ppl_base=lines.estimate("Mean PPL(base)"),
        ppl_ratio=lines.estimate("Mean PPL(Q)/PPL(base)"),
        ln_ppl_ratio=lines.estimate("Mean ln(PPL(Q)/PPL(base))"),
        ppl_cor=lines.value("Cor(ln(PPL(Q)), ln(PPL(base)))", percent=True),
        kld=lines.kld(),
        delta_p=lines.delta_p(),
        same_top=lines.estimate("Same top p", percent=True),
        n_tokens=n_tokens,
        n_chunks=n_chunks,
        protocol=protocol,
        environment=_environment(text),
    )
    _check_sense(result)
    return result


def _without_statistics(text: str) -> str:
    if re.search(r"kl_divergence|KL Divergence", text):
        return (
            "The log ends before its statistics: the run was stopped, or had fewer than 100 tokens. Take a whole one."
        )
    if "Final estimate: PPL" in text:
        return (
            "The log is of a run without --kl-divergence: a perplexity alone can't be compared with the original's. "
            "Run llama-perplexity with --kl-divergence-base and --kl-divergence."
        )
    return "There are no statistics of 'llama-perplexity --kl-divergence' in this log."


def _said(text: str) -> tuple[int, dict[str, Any]]:
    """Chunks, and what the log says of how it was run."""
    headers = set(_HEADER.findall(text))
    if len(headers) != 1:
        if headers:
            raise ForeignFormatError("The log holds more than one run. Give each a file of its own.")
        raise ForeignFormatError(
            "The log does not say how many tokens a chunk has: the line 'kl_divergence: computing over … chunks, "
            "n_ctx=…' goes to stderr. Keep both streams (2>&1)."
        )
    chunks, n_ctx, n_batch = headers.pop()
    rows = [int(match[1]) for line in text.splitlines() if (match := _CHUNK.match(line))]
    if rows and rows[-1] != int(chunks):
        raise ForeignFormatError(f"The log's table ends at chunk {rows[-1]} of {chunks}: it was cut or edited.")
    protocol: dict[str, Any] = {"n_ctx": int(n_ctx)}
    if n_batch:
        protocol["n_batch"] = int(n_batch)
    if kv := re.search(r"\bK \((\w{1,20})\):.{0,80}\bV \((\w{1,20})\):", text):
        protocol |= {"type_k": kv[1], "type_v": kv[2]}
    if model := re.search(r"tensors from (.+) \(version GGUF", text):
        protocol["model_filename"] = file_name(model[1])
    return int(chunks), protocol


def _check_sense(found: QualityResult) -> None:
    """Figures that can't be: a text that was edited by hand, or two that were mixed."""
    share = found.same_top.value
    if not 0 <= share <= 1 or abs(found.ppl_cor) > 1.001 or min(found.ppl.value, found.ppl_base.value) < 0.999:
        raise ForeignFormatError("The log's figures can't be true (PPL below 1, or more than 100 %): it was edited.")
    if found.n_tokens < 100:
        raise ForeignFormatError("llama-perplexity prints statistics from 100 tokens on; this log was edited.")
    expected = math.sqrt(share * (1 - share) / (found.n_tokens - 1))
    if abs(expected - found.same_top.stderr) > 2e-5:
        raise ForeignFormatError(
            f"The log's ± of 'Same top p' is not that of {found.n_tokens:,} tokens, which its header speaks of: it was "
            "edited, or mixed from two runs."
        )


def _environment(text: str) -> Environment:
    built = re.search(r"\bbuild\s*[:=]\s*([0-9]{1,9}) \(([0-9a-z]{4,40})\)", text)
    found = re.search(r"system_info: (.*)", text)
    info = found[1] if found else ""
    threads = re.search(r"n_threads = ([0-9]{1,6})", info)
    features = plain(re.sub(r"^n_threads = .*?\| *", "", info), 2000).rstrip("| ")
    backends = re.findall(r"(?:^|\|) *([A-Za-z0-9_]+) :", features)
    gpus = re.findall(r"using device \w+ \((.{1,200}?)\)(?: \([0-9a-fA-F:.]+\))? - ", text)
    gpus = gpus or re.findall(r"\bDevice [0-9]+: ([^,\n]{1,200}), compute capability", text)
    layers = re.search(r"offloaded ([0-9]{1,6})/[0-9]+ layers", text)
    return Environment(
        llama_cpp=build(built[2], int(built[1])) if built else UNKNOWN,
        backend=", ".join(backends) or UNKNOWN,
        system_info=features or UNKNOWN,
        cpu=UNKNOWN,
        gpu=plain(", ".join(dict.fromkeys(gpus))) or None,
        n_threads=int(threads[1]) if threads else 0,
        n_gpu_layers=int(layers[1]) if layers else 0 if backends == ["CPU"] else -1,
        repack="REPACK = 1" in features if features else True,
    )
