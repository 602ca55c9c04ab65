"""Tokens per second, measured as llama-bench measures them (source: tools/llama-bench/llama-bench.cpp).

One context per test; an untimed warm-up; per repetition the memory is cleared and filled to the depth, then prompt
and generation are timed with random tokens; averages and the sample standard deviation are taken over the repetitions'
tokens per second.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.contract import Environment, SpeedResult, SpeedSpec, SpeedTest
from core.errors import SettingsError
from jobs import Progress
from jobs.context import Context
from jobs.llama import Model, environment
from jobs.memory import PeakVram, peak_rss_bytes, reset_peak_rss


@dataclass(frozen=True, slots=True)
class Test:
    """One of llama-bench's tests: a prompt, a generation or both under one clock, after ``n_depth`` tokens."""

    n_prompt: int
    n_gen: int
    n_depth: int


def tests_of(spec: SpeedSpec) -> list[Test]:
    """The tests in llama-bench's order: for each depth prompts, generations, then pairs; zeros are left out.

    Raises:
        SettingsError: nothing to test.
    """
    kinds = [(n, 0) for n in spec.n_prompt] + [(0, n) for n in spec.n_gen] + list(spec.n_pg)
    tests = [Test(p, g, d) for d in spec.n_depth or [0] for p, g in kinds if p > 0 or g > 0]
    if not tests:
        raise SettingsError("Nothing to time: give -p, -n or -pg a number above 0.")
    return tests


def measure(spec: SpeedSpec, progress: Progress) -> SpeedResult:
    """Run every test of ``spec``.

    Raises:
        GGUFError: the model can't be used.
        JobError: llama.cpp refused a context or a batch.
    """
    found = environment(spec.machine)
    tests = tests_of(spec)
    results = []
    total = len(tests) * spec.repetitions
    with Model(Path(spec.model), spec.machine) as model:
        for index, test in enumerate(tests):
            tick = partial(_tick, progress, index * spec.repetitions, total)
            results.append(_run(spec, model, test, found, tick))
    return SpeedResult(tests=results, environment=found)


def _tick(progress: Progress, before: int, total: int, done: int) -> None:
    progress("timing", before + done, total)


def _run(spec: SpeedSpec, model: Model, test: Test, found: Environment, tick: Callable[[int], None]) -> SpeedTest:
    random = np.random.default_rng(1)
    started = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    samples_ns: list[int] = []
    reset_peak_rss()
    context = Context(
        model,
        n_ctx=test.n_prompt + test.n_gen + test.n_depth,
        n_seq=1,
        n_batch=spec.n_batch,
        n_ubatch=spec.n_ubatch,
        type_k=spec.type_k,
        type_v=spec.type_v,
        flash_attn=spec.flash_attn,
        n_threads=found.n_threads,
    )
    with context, PeakVram() as vram:
        if test.n_prompt:
            _prompt(context, model, test.n_prompt, spec.n_batch, random)
        if test.n_gen:
            _generate(context, model, 1, random)
        filled = None
        for repetition in range(spec.repetitions):
            tick(repetition)
            context.clear(data=False)
            # Filled once and then put back: its time is not counted, but would be waited for.
            if test.n_depth and (filled is None or not context.restore(filled)):
                _prompt(context, model, test.n_depth, spec.n_batch, random)
                filled = context.save()
            start = time.perf_counter_ns()
            if test.n_prompt:
                _prompt(context, model, test.n_prompt, spec.n_batch, random)
            if test.n_gen:
                _generate(context, model, test.n_gen, random)
            samples_ns.append(time.perf_counter_ns() - start)
        tick(spec.repetitions)
    samples_ts = [1e9 * (test.n_prompt + test.n_gen) / ns for ns in samples_ns]
    many = len(samples_ns) > 1
    return SpeedTest(
        model_filename=model.path.name,
        model_type=model.description,
        model_size=model.size,
        model_n_params=model.n_params,
        n_batch=spec.n_batch,
        n_ubatch=spec.n_ubatch,
        n_threads=found.n_threads,
        type_k=spec.type_k,
        type_v=spec.type_v,
        n_gpu_layers=found.n_gpu_layers,
        flash_attn=spec.flash_attn,
        n_prompt=test.n_prompt,
        n_gen=test.n_gen,
        n_depth=test.n_depth,
        test_time=started,
        avg_ns=round(statistics.fmean(samples_ns)),
        # In double: llama-bench's own integer arithmetic overflows above a few seconds.
        stddev_ns=round(statistics.stdev(samples_ns)) if many else 0,
        avg_ts=statistics.fmean(samples_ts),
        stddev_ts=statistics.stdev(samples_ts) if many else 0.0,
        samples_ns=samples_ns,
        samples_ts=samples_ts,
        peak_memory_bytes=peak_rss_bytes(),
        peak_vram_bytes=vram.bytes,
    )


def _random_tokens(model: Model, n: int, random: np.random.Generator, *, first: bool) -> NDArray[np.int32]:
    tokens = random.integers(0, model.n_vocab, n, dtype=np.int32)
    if first and model.add_bos:
        tokens[0] = model.bos
    return tokens


def _prompt(context: Context, model: Model, n_prompt: int, n_batch: int, random: np.random.Generator) -> None:
    begin = context.next_position()
    for start in range(0, n_prompt, n_batch):
        n = min(n_batch, n_prompt - start)
        positions = np.arange(begin + start, begin + start + n, dtype=np.int32)
        outputs = np.zeros(n, dtype=np.bool_)
        outputs[-1] = True
        tokens = _random_tokens(model, n, random, first=start == 0)
        context.decode(tokens, positions, np.zeros(n, dtype=np.int32), outputs)
    context.synchronize()


def _generate(context: Context, model: Model, n_gen: int, random: np.random.Generator) -> None:
    start = context.next_position()
    tokens = _random_tokens(model, n_gen, random, first=True).tolist()
    for index, token in enumerate(tokens):
        context.decode_one(token, start + index)
        context.synchronize()
