"""Reads what llama-perplexity and llama-bench print."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from benchmarks.children import Ended, last_words
from benchmarks.table import BenchError

#: A stamped line: minutes.seconds.milliseconds.microseconds since the tool began, level, text.
_STAMPED = re.compile(r"^(\d+)\.(\d{2})\.(\d{3})\.(\d{3}) [A-Z] (.*)$")
#: The line before the first chunk: model loaded and warmed up, text tokenized.
_BEGINS = re.compile(r"^(?:kl_divergence: computing|perplexity: calculating perplexity) over (\d+) chunks")
_MEAN_KLD = re.compile(r"^Mean\s+KLD:\s+(\S+) ±", re.MULTILINE)
_ESTIMATE = re.compile(r"Final estimate: PPL = (\S+) ")


@dataclass(frozen=True, slots=True)
class Pass:
    """A run of llama-perplexity: seconds before its first chunk and from there to its end, and its figures as text."""

    load: float
    work: float
    n_chunks: int
    mean_kld: str | None
    ppl: str | None
    peak_bytes: int


def stamp(line: str) -> tuple[float, str] | None:
    """(seconds since the tool began, text) of a line of its log."""
    found = _STAMPED.match(line)
    if not found:
        return None
    minutes, seconds, milli, micro = map(int, found.groups()[:4])
    return 60 * minutes + seconds + milli / 1e3 + micro / 1e6, found[5]


def begin(log: str) -> tuple[float, int]:
    """When the first chunk began (seconds since the tool began), and how many chunks there are.

    Raises:
        BenchError: it never came to that (the tool ends with code 0 all the same).
    """
    for line in log.splitlines():
        stamped = stamp(line)
        if stamped and (found := _BEGINS.match(stamped[1])):
            return stamped[0], int(found[1])
    raise BenchError(f"llama-perplexity measured nothing: {last_words(log)}")


def read_pass(ended: Ended) -> Pass:
    """What a finished llama-perplexity says of itself.

    Raises:
        BenchError: it measured nothing.
    """
    load, n_chunks = begin(ended.errors)
    kld, ppl = _MEAN_KLD.search(ended.printed), _ESTIMATE.search(ended.errors)
    if kld is None and ppl is None:
        raise BenchError(f"llama-perplexity came to no figure: {last_words(ended.errors)}")
    return Pass(
        load=load,
        work=ended.wall - load,
        n_chunks=n_chunks,
        mean_kld=kld[1] if kld else None,
        ppl=ppl[1] if ppl else None,
        peak_bytes=ended.peak_bytes,
    )


def bench_samples(printed: str) -> dict[str, list[float]]:
    """Tokens per second of every repetition, by test ('pp512', 'tg128').

    Raises:
        BenchError: it is no JSON of llama-bench.
    """
    try:
        return {test_name(test["n_prompt"], test["n_gen"]): list(test["samples_ts"]) for test in json.loads(printed)}
    except (ValueError, KeyError, TypeError):
        raise BenchError("llama-bench printed no JSON of its tests.") from None


def test_name(n_prompt: int, n_gen: int) -> str:
    """llama-bench's name of a test."""
    return f"pp{n_prompt}" if not n_gen else f"tg{n_gen}" if not n_prompt else f"pp{n_prompt}+tg{n_gen}"
