"""llama.cpp: what was built, what it can use, and whether it lives through decoding a few quantizations here."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from bot.doctor.finding import Finding, bad, clean, ok, some, unknown, warn
from core.format import size
from core.sandbox.reach import scrubbed_environment

#: Quantizations that are tried: what is repacked for SIMD or AMX, K-quants, a table-based one.
TYPES = ("Q4_0", "Q8_0", "Q4_K_M", "Q5_K_M", "Q2_K", "IQ4_XS")
#: Mean KLD (nats) of the demo model's quants from its F16: 0.0002 (Q8_0) to 0.08 (Q2_K) where all is well.
_MAX_KLD = 0.5
_SIMD = ("AVX", "AVX2", "AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16", "AMX_INT8", "NEON", "SVE")
#: A feature of llama.cpp's build and the flag of /proc/cpuinfo without which its code is an illegal instruction.
_FLAGS = {
    "AVX": "avx",
    "AVX2": "avx2",
    "F16C": "f16c",
    "FMA": "fma",
    "BMI2": "bmi2",
    "AVX512": "avx512f",
    "AVX512_VBMI": "avx512vbmi",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
    "AMX_INT8": "amx_int8",
}
_REBUILD = 'CMAKE_ARGS="-DGGML_NATIVE=OFF" pip install --force-reinstall --no-cache-dir --no-deps'
#: Signals that mean code which does not fit the machine.
_WRONG_CODE = ("SIGILL", "SIGSEGV", "SIGBUS", "SIGFPE")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a probing process ended: its JSON lines, its exit code (minus the signal's number), its last words."""

    lines: tuple[dict[str, Any], ...]
    code: int
    stderr: str = ""
    timed_out: bool = False
    limit_s: float = 0.0

    @property
    def signal(self) -> str:
        """The signal's name it died of, or ""."""
        if self.timed_out or self.code >= 0:
            return ""
        known = signal.Signals._value2member_map_
        return signal.Signals(-self.code).name if -self.code in known else f"signal {-self.code}"

    @property
    def why(self) -> str:
        """How it ended where it did not end well, as the end of a sentence."""
        if self.timed_out:
            return f"did not end within {self.limit_s:.0f} s"
        if self.signal:
            return f"died of {self.signal}"
        said = next((line["error"] for line in self.lines if "error" in line), "") or self.stderr
        return f"ended with code {self.code}" + (f" ({clean(str(said), limit=300)})" if said else "")


def run_probe(command: Sequence[str], *, limit_s: float) -> Ended:
    """Run a probing process to its end or its time limit, with the environment that a measurement has."""
    environment = scrubbed_environment(tempfile.gettempdir())
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    timed_out = False
    try:
        out, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        timed_out = True
        process.kill()
        out, err = process.communicate(timeout=10)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(timeout=10)
    return Ended(tuple(_read(out)), process.returncode, _last_line(err), timed_out, limit_s)


def _read(out: bytes) -> list[dict[str, Any]]:
    found = []
    for line in out.splitlines()[-1000:]:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _last_line(err: bytes) -> str:
    lines = [line for line in err.decode(errors="replace").splitlines() if line.strip()]
    return clean(lines[-1], limit=300) if lines else ""


def probe_build(*, limit_s: float = 30.0) -> Ended:
    """Ask llama.cpp what it is."""
    return run_probe([sys.executable, "-P", "-m", "jobs.probe", "build"], limit_s=limit_s)


def probe_decode(*, gpu_layers: int, limit_s: float = 90.0) -> Ended:
    """Have llama.cpp decode the demo model and some quantizations of it."""
    source = files("localhub.demo_model") / "quantcard-demo-F16.gguf"
    with as_file(source) as model, tempfile.TemporaryDirectory(prefix="quantcard-doctor-") as folder:
        command = [sys.executable, "-P", "-m", "jobs.probe", "decode", str(model), folder, str(gpu_layers), *TYPES]
        return run_probe(command, limit_s=limit_s)


@dataclass(frozen=True, slots=True)
class Cpu:
    """The CPU's name and flags as the kernel tells them; ``flags`` is empty where it does not."""

    name: str = ""
    flags: frozenset[str] = frozenset()

    @property
    def virtual(self) -> bool:
        """Whether this is a virtual machine."""
        return "hypervisor" in self.flags


def read_cpu(path: Path = Path("/proc/cpuinfo")) -> Cpu:
    """The first CPU's name and flags."""
    name, flags = "", frozenset[str]()
    try:
        for line in path.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and not name:
                name = value.strip()
            elif key.strip() in ("flags", "Features") and not flags:
                flags = frozenset(value.split())
    except OSError:
        pass
    return Cpu(name, flags)


@dataclass(frozen=True, slots=True)
class Build:
    """llama.cpp as it was built and the GPUs beside it, as :func:`jobs.probe.build` tells them."""

    bindings: str
    version: str
    features: frozenset[str]
    offload: bool
    devices: tuple[dict[str, Any], ...] = ()
    gpus: tuple[dict[str, Any], ...] = field(default=())

    @property
    def rebuild(self) -> str:
        """The command that builds it for any machine."""
        return f"{_REBUILD} llama-cpp-python=={self.bindings}"


def read_build(told: dict[str, Any]) -> Build:
    """What the probe printed, as a value."""
    info = str(told.get("system_info", ""))
    pairs = [part.rpartition(":")[2].split("=") for part in info.split("|")]
    features = frozenset(pair[0].strip() for pair in pairs if len(pair) == 2 and pair[1].strip() == "1")
    return Build(
        bindings=str(told["bindings"]),
        version=str(told["version"]),
        features=features,
        offload=bool(told["offload"]),
        devices=tuple(told["devices"]),
        gpus=tuple(told["gpus"]),
    )


def build_of(ended: Ended) -> Build | None:
    """The build, where the probe could tell it."""
    return read_build(ended.lines[0]) if ended.code == 0 and ended.lines and "bindings" in ended.lines[0] else None


def judge_build(ended: Ended, cpu: Cpu) -> list[Finding]:
    """Whether llama.cpp is there and made for this CPU."""
    build = build_of(ended)
    if build is None:
        if ended.signal:
            return [
                bad(
                    f"llama.cpp could not even be loaded: the probe {ended.why}.",
                    f"Rebuild it: {_REBUILD} llama-cpp-python (see docs/install.md).",
                )
            ]
        if "No module named" in ended.stderr:
            return [bad("llama-cpp-python is not installed.", "Install it: tools/setup.sh run (see docs/install.md).")]
        return [
            bad(
                f"llama.cpp could not be asked: the probe {ended.why}.",
                "Install it anew: tools/setup.sh run (see docs/install.md).",
            )
        ]
    simd = [name for name in _SIMD if name in build.features]
    found = (
        f"llama-cpp-python {clean(build.bindings)}, llama.cpp {clean(build.version)}, built with "
        f"{', '.join(simd) or 'no SIMD'}{', repacking' if 'REPACK' in build.features else ''}, on {clean(cpu.name)}"
        f"{' (a virtual machine)' if cpu.virtual else ''}"
    )
    missing = sorted(name for name, flag in _FLAGS.items() if name in build.features and flag not in cpu.flags)
    if cpu.flags and missing and "NEON" not in build.features:
        return [
            bad(
                f"{found}; this CPU has no {some(missing)}, so that measurements will die of SIGILL.",
                f"Rebuild it: {build.rebuild}",
            )
        ]
    if not simd and cpu.flags:
        return [warn(f"{found}: measurements will be slow.", f"Rebuild it: {build.rebuild}")]
    if "AMX_INT8" in build.features and cpu.virtual:
        return [
            warn(
                f"{found}. AMX on a virtual machine is known to die of SIGSEGV for K-quants; the check 'decode' tells "
                "whether it does here.",
                f"If it does, or if this image is to run elsewhere: {build.rebuild}",
            )
        ]
    return [ok(f"{found}.")]


def judge_gpu(build: Build | None, *, gpu_layers: int) -> list[Finding]:
    """Whether GPUs and what llama.cpp was built for go together."""
    if build is None:
        return [unknown("llama.cpp could not be asked about GPUs (see 'llama.cpp').")]
    built = [one for one in build.devices if "GPU" in str(one.get("type", ""))]
    seen = some(f"{one['name']}, {size(int(one['memory']))}" for one in build.gpus)
    if build.gpus and not build.offload:
        architectures = ";".join(sorted({str(one["capability"]) for one in build.gpus}))
        return [
            warn(
                f"{len(build.gpus)} GPUs are here ({seen}; driver {clean(str(build.gpus[0]['driver']))}), but "
                "llama.cpp was built without a GPU backend: everything is measured on the CPU.",
                f'CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES={architectures}" '
                "tools/setup.sh run",
            )
        ]
    if build.gpus and not built:
        return [
            bad(
                f"{len(build.gpus)} GPUs are here ({seen}), but llama.cpp's GPU backend finds none of them.",
                "Check that the CUDA runtime it was built with fits the driver (nvidia-smi), or rebuild it here.",
            )
        ]
    if built:
        listed = some(f"{one['name']}: {one['description']}, {size(int(one['memory']))}" for one in built)
        if len(build.gpus) > len(built):
            return [
                warn(
                    f"llama.cpp uses {len(built)} of {len(build.gpus)} GPUs ({listed}).",
                    "Unset CUDA_VISIBLE_DEVICES to use them all, if that is not meant.",
                )
            ]
        return [ok(f"llama.cpp can use {listed}{'; gpu_layers is 0, so it will not' if gpu_layers == 0 else ''}.")]
    if build.offload:
        return [
            warn(
                "llama.cpp was built with a GPU backend, but no GPU is here.",
                "Start the container with --gpus all, load the driver, or accept that the CPU measures.",
            )
        ]
    if gpu_layers > 0:
        return [
            warn(
                f"gpu_layers is {gpu_layers}, but there is no GPU, and llama.cpp was built without a GPU backend.",
                "Unset QUANTCARD_GPU_LAYERS.",
            )
        ]
    return [ok("No GPU, and llama.cpp was built without a GPU backend: the CPU measures.")]


def judge_decode(ended: Ended, build: Build | None, cpu: Cpu, *, where: str = "the CPU") -> list[Finding]:
    """Whether llama.cpp lives through decoding, and whether what it gives is right."""
    tried = [str(line["try"]) for line in ended.lines if "try" in line]
    done = {str(line["done"]): line["kld"] for line in ended.lines if "done" in line}
    rebuild = build.rebuild if build else f"{_REBUILD} llama-cpp-python"
    if ended.timed_out or ended.code != 0:
        during = f" while {tried[-1]} was decoded" if tried and tried[-1] not in done else ""
        found = f"The probe {ended.why}{during} on {where}"
        if ended.signal in _WRONG_CODE or "illegal instruction" in ended.stderr.lower():
            amx = build is not None and "AMX_INT8" in build.features
            known = (
                ": the native build's AMX code, which this virtual machine does not run"
                if amx and cpu.virtual
                else ": this build's code does not fit this machine"
            )
            return [bad(f"{found}{known}. Every measurement of such a file will die.", f"Rebuild it: {rebuild}")]
        if ended.signal == "SIGKILL":
            return [bad(f"{found}: probably out of memory.", "Free memory, or raise the container's limit.")]
        said = f" Last words: {ended.stderr}" if ended.stderr and ended.signal else ""
        return [bad(f"{found}.{said}", f"Rebuild it: {rebuild}")]
    wrong = {name: kld for name, kld in done.items() if kld is None or not kld < _MAX_KLD}
    if wrong:
        figures = some(f"{name} ({'not finite' if kld is None else f'{kld:.2f} nats'})" for name, kld in wrong.items())
        return [
            bad(
                f"llama.cpp decodes on {where}, but wrongly: mean KLD from F16 of {figures}; below {_MAX_KLD} is "
                "expected.",
                f"Rebuild it: {rebuild}",
            )
        ]
    if missing := [name for name in ("F16", *TYPES) if name not in done]:
        return [unknown(f"The probe did not tell of {some(missing)} on {where}.")]
    return [
        ok(
            f"F16 and {len(done) - 1} quantizations of the demo model decoded on {where}; mean KLD from F16 "
            f"{done['Q8_0']:.4f} (Q8_0) to {max(done.values()):.4f} nats."
        )
    ]
