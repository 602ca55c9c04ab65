"""What the doctor makes of llama.cpp's build and of how a probe ended (real signals: the integration tests)."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bot.doctor.llama import TYPES, Build, Cpu, Ended, build_of, judge_build, judge_decode, judge_gpu, read_cpu

INFO = "CPU : SSE3 = 1 | AVX = 1 | AVX2 = 1 | AVX512 = 0 | FMA = 1 | REPACK = 1 | "
NATIVE = "CPU : AVX = 1 | AVX2 = 1 | AVX512 = 1 | AMX_INT8 = 1 | REPACK = 1 |"
PLAIN = Cpu("EPYC", frozenset({"avx", "avx2", "fma", "f16c", "bmi2"}))
XEON = Cpu("Xeon", frozenset({"avx", "avx2", "fma", "f16c", "bmi2", "avx512f", "amx_int8"}))
VIRTUAL = Cpu("Xeon", XEON.flags | {"hypervisor"})
H200 = {"name": "NVIDIA H200", "memory": 150_000_000_000, "capability": "90", "driver": "570.1"}
CUDA = {"name": "CUDA0", "description": "NVIDIA H200", "type": "GPU", "memory": 150_000_000_000}
KLDS = {"F16": 0.0, **dict.fromkeys(TYPES, 0.01), "Q8_0": 0.0002}


def told(system_info: str = INFO, **more: Any) -> Ended:
    line = {"bindings": "0.3.36", "version": "0.5.0", "system_info": system_info, "offload": False, "devices": [],
            "gpus": [], **more}  # fmt: skip
    return Ended((line,), 0)


def built(**more: Any) -> Build:
    build = build_of(told(**more))
    assert build is not None
    return build


def decoded(klds: dict[str, float | None], *, code: int = 0, trying: str = "", **more: Any) -> Ended:
    lines: list[dict[str, Any]] = []
    for name, kld in klds.items():
        lines += [{"try": name}, {"done": name, "kld": kld}]
    return Ended((*lines, *([{"try": trying}] if trying else [])), code, **more)


def test_a_build_for_any_machine_is_well() -> None:
    (found,) = judge_build(told(), PLAIN)
    assert found.state == "ok"
    assert "0.3.36" in found.found and "AVX, AVX2, repacking" in found.found and "AVX512" not in found.found


def test_native_amx_on_a_virtual_machine_is_warned_of_with_the_rebuild() -> None:
    (found,) = judge_build(told(NATIVE), VIRTUAL)
    assert found.state == "warn" and "AMX" in found.found
    assert 'CMAKE_ARGS="-DGGML_NATIVE=OFF"' in found.fix and "llama-cpp-python==0.3.36" in found.fix
    (found,) = judge_build(told(NATIVE), XEON)
    assert found.state == "ok"


def test_a_build_for_another_cpu_is_bad() -> None:
    (found,) = judge_build(told(NATIVE), PLAIN)
    assert found.state == "bad" and "AMX_INT8, AVX512" in found.found and "SIGILL" in found.found
    assert "-DGGML_NATIVE=OFF" in found.fix


def test_a_build_without_simd_is_slow() -> None:
    (found,) = judge_build(told("CPU : SSE3 = 1 |"), PLAIN)
    assert found.state == "warn" and "slow" in found.found


@pytest.mark.parametrize(
    ("ended", "says"),
    [
        (Ended((), -signal.SIGILL), "died of SIGILL"),
        (Ended((), 1, "ModuleNotFoundError: No module named 'llama_cpp'"), "not installed"),
        (Ended((), 1, "OSError: libcudart.so.12: cannot open shared object file"), "libcudart.so.12"),
        (Ended(({"error": "libllama and llama-cpp-python disagree; reinstall."},), 5), "disagree"),
        (Ended((), -signal.SIGKILL, timed_out=True, limit_s=30), "did not end within 30 s"),
    ],
    ids=["crash", "missing", "library", "mismatch", "hang"],
)
def test_a_llama_cpp_that_can_not_be_asked_is_bad(ended: Ended, says: str) -> None:
    (found,) = judge_build(ended, PLAIN)
    assert found.state == "bad" and says in found.found and found.fix


@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize("name", ["SIGSEGV", "SIGILL", "SIGBUS"])
def test_a_crash_names_the_signal_the_quantization_and_the_rebuild(name: str, type_: str) -> None:
    ended = decoded({"F16": 0.0}, code=-signal.Signals[name], trying=type_)
    (found,) = judge_decode(ended, built(system_info=NATIVE), VIRTUAL)
    assert found.state == "bad"
    assert f"died of {name} while {type_} was decoded" in found.found and "AMX" in found.found
    assert found.fix.endswith("llama-cpp-python==0.3.36") and "-DGGML_NATIVE=OFF" in found.fix
    (found,) = judge_decode(ended, built(), PLAIN)
    assert found.state == "bad" and "AMX" not in found.found and "does not fit this machine" in found.found


def test_a_hang_and_a_lack_of_memory_are_told_as_such() -> None:
    (found,) = judge_decode(decoded({}, code=-9, trying="F16", timed_out=True, limit_s=90), built(), PLAIN)
    assert found.state == "bad" and "did not end within 90 s while F16 was decoded" in found.found
    (found,) = judge_decode(decoded({}, code=-9, trying="F16"), built(), PLAIN)
    assert found.state == "bad" and "out of memory" in found.found and "GGML_NATIVE" not in found.fix


def test_a_crash_before_anything_was_tried_names_none() -> None:
    (found,) = judge_decode(Ended((), -signal.SIGSEGV), None, Cpu())
    assert found.state == "bad" and "died of SIGSEGV on the CPU" in found.found


@pytest.mark.parametrize("kld", [None, 3.5, float("inf")])
def test_wrong_figures_are_bad_even_where_nothing_crashes(kld: float | None) -> None:
    (found,) = judge_decode(decoded({**KLDS, "Q4_0": kld}), built(), PLAIN)
    assert found.state == "bad" and "wrongly" in found.found and "Q4_0" in found.found


def test_what_was_decoded_is_told_and_what_was_not_is_unknown() -> None:
    (found,) = judge_decode(decoded({**KLDS}), built(), PLAIN)
    assert found.state == "ok" and f"{len(TYPES)} quantizations" in found.found and "0.0002 (Q8_0)" in found.found
    (found,) = judge_decode(decoded({name: kld for name, kld in KLDS.items() if name != "Q2_K"}), built(), PLAIN)
    assert found.state == "unknown" and "Q2_K" in found.found


def test_gpus_and_backends_go_together_or_not() -> None:
    assert judge_gpu(built(), gpu_layers=-1)[0].state == "ok"
    (found,) = judge_gpu(built(gpus=[H200]), gpu_layers=-1)
    assert found.state == "warn" and "without a GPU backend" in found.found
    assert "-DCMAKE_CUDA_ARCHITECTURES=90" in found.fix and "-DGGML_CUDA=on" in found.fix
    (found,) = judge_gpu(built(gpus=[H200], offload=True), gpu_layers=-1)
    assert found.state == "bad" and "finds none" in found.found
    (found,) = judge_gpu(built(gpus=[H200, H200], offload=True, devices=[CUDA]), gpu_layers=-1)
    assert found.state == "warn" and "1 of 2 GPUs" in found.found
    (found,) = judge_gpu(built(gpus=[H200], offload=True, devices=[CUDA]), gpu_layers=-1)
    assert found.state == "ok" and "150 GB" in found.found
    (found,) = judge_gpu(built(offload=True), gpu_layers=-1)
    assert found.state == "warn" and "no GPU is here" in found.found
    (found,) = judge_gpu(built(), gpu_layers=20)
    assert found.state == "warn" and "gpu_layers is 20" in found.found
    assert judge_gpu(None, gpu_layers=-1)[0].state == "unknown"


def test_a_drivers_words_do_not_reach_the_terminal_as_they_are() -> None:
    (found,) = judge_gpu(built(gpus=[{**H200, "name": "\x1b[31mH200\n"}]), gpu_layers=-1)
    assert "\x1b" not in found.found and "\n" not in found.found


def test_the_cpu_is_read_from_the_kernel(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("processor : 0\nmodel name\t: A CPU: fast\nflags\t\t: fpu avx hypervisor\n\nmodel name : other\n")
    cpu = read_cpu(path)
    assert cpu == Cpu("A CPU: fast", frozenset({"fpu", "avx", "hypervisor"})) and cpu.virtual
    assert not replace(cpu, flags=frozenset({"avx"})).virtual
    assert read_cpu(tmp_path / "none") == Cpu()
