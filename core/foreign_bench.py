"""Reads llama-bench's JSON as any version since 2023 prints it. Pure; see core/foreign.py for what is kept."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from core.contract import Environment, SpeedResult, SpeedTest
from core.errors import ForeignFormatError
from core.foreign import UNKNOWN, build, file_name, plain

_Count = Annotated[int, Field(ge=0, lt=2**53)]
_Text = Annotated[str, AfterValidator(plain)]
_FLASH = {"-1": "auto", "0": "off", "1": "on", "true": "on", "false": "off"}
#: How the backends were told before there was a list of them.
_OLD_BACKENDS = ("cuda", "opencl", "vulkan", "kompute", "metal", "sycl", "gpu_blas", "blas")


class _BenchTest(BaseModel):
    """A test as any llama-bench since 2023 prints it; what is newer than the oldest has its default of then."""

    model_config = ConfigDict(extra="ignore")

    build_commit: _Text = UNKNOWN
    build_number: _Count = 0
    cpu_info: _Text = ""
    gpu_info: _Text = ""
    backends: _Text = ""
    model_filename: Annotated[str, AfterValidator(file_name)]
    model_type: _Text = UNKNOWN
    model_size: _Count
    model_n_params: _Count
    n_batch: _Count
    n_ubatch: _Count | None = None
    n_threads: _Count
    f16_kv: bool = True
    type_k: _Text | None = None
    type_v: _Text | None = None
    n_gpu_layers: Annotated[int, Field(ge=-1, lt=2**31)]
    flash_attn: str = "off"
    repack: bool = True
    n_prompt: _Count
    n_gen: _Count
    n_depth: _Count = 0
    test_time: _Text = ""
    avg_ts: Annotated[float, Field(gt=0, lt=1e15)]
    stddev_ts: Annotated[float, Field(ge=0, lt=1e15)]
    samples_ns: Annotated[list[Annotated[int, Field(gt=0, lt=2**63)]], Field(min_length=1, max_length=100_000)]

    @field_validator("flash_attn", mode="before")
    @classmethod
    def _named(cls, value: object) -> str:
        word = str(value).lower()
        word = _FLASH.get(word, word)
        if word not in ("auto", "on", "off"):
            raise ValueError("neither auto, on nor off")
        return word


def parse_llama_bench(text: str) -> list[SpeedResult]:
    """The tests of ``llama-bench -o json`` or ``-o jsonl``: a result for each model and environment, in order.

    ``peak_memory_bytes`` is None: llama-bench does not say it. Times are reckoned again from the samples, since
    llama-bench's own deviation in ns overflows.

    Raises:
        ForeignFormatError: it is no such output, was cut, or a test lacks a field.
    """
    found: dict[tuple[Any, ...], SpeedResult] = {}
    for value in _objects(text):
        try:
            read = _BenchTest.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"]) or "test"
            raise ForeignFormatError(
                f"A test of this llama-bench output has no usable '{plain(name)}' ({plain(first['msg'])}). Take the "
                "output as it was printed."
            ) from None
        test = _speed_test(read)
        key = (environment := _bench_environment(read, value)).fingerprint, test.model_filename, test.model_size
        found.setdefault(key, SpeedResult(tests=[], environment=environment)).tests.append(test)
    if not found:
        raise ForeignFormatError("There is no test in this llama-bench output. Run it with -o json or -o jsonl.")
    return list(found.values())


def _objects(text: str) -> Iterator[Any]:
    """The JSON objects of an array or of lines, whatever stands between them on lines of their own."""
    decoder = json.JSONDecoder()
    try:
        whole = decoder.decode(text)
    except (ValueError, RecursionError):
        whole = None
    if whole is not None:
        yield from whole if isinstance(whole, list) else [whole]
        return
    end = 0
    for start in re.finditer(r"^[ \t]*\{", text, re.MULTILINE):
        if start.start() < end:
            continue
        try:
            value, end = decoder.raw_decode(text, start.end() - 1)
        except (ValueError, RecursionError):
            line = text.count("\n", 0, start.end()) + 1
            raise ForeignFormatError(
                f"The llama-bench output is cut or damaged in the test that begins at line {line}."
            ) from None
        yield value


def _speed_test(read: _BenchTest) -> SpeedTest:
    tokens = read.n_prompt + read.n_gen
    if not tokens:
        raise ForeignFormatError("A test of this llama-bench output has neither prompt nor generated tokens.")
    samples_ts = [1e9 * tokens / ns for ns in read.samples_ns]
    if abs(statistics.fmean(samples_ts) - read.avg_ts) > 0.01 * read.avg_ts:
        raise ForeignFormatError("A test's avg_ts is not the mean of its samples: the llama-bench output was edited.")
    kv = "f16" if read.f16_kv else "f32"
    return SpeedTest(
        **read.model_dump(include={"model_filename", "model_type", "model_size", "model_n_params", "n_batch"}),
        **read.model_dump(include={"n_threads", "n_gpu_layers", "flash_attn", "n_prompt", "n_gen", "n_depth"}),
        **read.model_dump(include={"test_time", "avg_ts", "stddev_ts", "samples_ns"}),
        n_ubatch=min(read.n_batch, 512) if read.n_ubatch is None else read.n_ubatch,
        type_k=read.type_k or kv,
        type_v=read.type_v or kv,
        avg_ns=round(statistics.fmean(read.samples_ns)),
        stddev_ns=round(statistics.stdev(read.samples_ns)) if len(read.samples_ns) > 1 else 0,
        samples_ts=samples_ts,
        peak_memory_bytes=None,
    )


def _bench_environment(read: _BenchTest, value: Any) -> Environment:
    old = [name for name in _OLD_BACKENDS if value.get(name) is True]
    told = any(name in value for name in _OLD_BACKENDS)
    return Environment(
        llama_cpp=build(read.build_commit, read.build_number),
        backend=read.backends or ", ".join(old) or ("CPU" if told else UNKNOWN),
        system_info=UNKNOWN,
        cpu=read.cpu_info or UNKNOWN,
        gpu=read.gpu_info or None,
        n_threads=read.n_threads,
        n_gpu_layers=read.n_gpu_layers,
        repack=read.repack,
    )
