"""llama.cpp's own tools, built from the very sources that the installed llama-cpp-python was built from, and run."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from benchmarks.children import Ended, last_words, run
from benchmarks.models import cache_folder
from benchmarks.table import BenchError

TOOLS = ("llama-perplexity", "llama-bench")
#: What tools/setup.sh builds llama-cpp-python with.
DEFAULT_FLAGS = "-DGGML_NATIVE=OFF"
#: Only what is not needed is left out; nothing here changes code that is measured.
_LEAN = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_CURL=OFF",
)
_PERCENT = re.compile(r"^\[\s*(\d+)(%|/(\d+))\]")


@dataclass(frozen=True, slots=True)
class Peers:
    """A folder with llama-perplexity, llama-bench and the shared libraries that both sides load."""

    folder: Path
    flags: str

    def version(self) -> str:
        """llama.cpp's version as the tool says it, e.g. '0.5.0-dev (build 1, commit 0c1e570)'."""
        ended = self._run("llama-perplexity", "--version")
        found = re.search(r"^version: (.+)$", ended.errors + "\n" + ended.printed, re.MULTILINE)
        return found[1] if found else "unknown"

    def perplexity(self, *arguments: object) -> Ended:
        """Run llama-perplexity, its log stamped with the time."""
        return self._run("llama-perplexity", *arguments, "--log-timestamps", "--log-prefix", "--log-colors", "off")

    def bench(self, *arguments: object) -> Ended:
        """Run llama-bench; it prints JSON."""
        return self._run("llama-bench", *arguments, "-o", "json")

    def _run(self, tool: str, *arguments: object) -> Ended:
        # LD_LIBRARY_PATH goes before the place where the libraries lay when the tool was linked.
        environment = {**os.environ, "LD_LIBRARY_PATH": str(self.folder), "LC_ALL": "C.UTF-8"}
        return run([self.folder / tool, *map(str, arguments)], name=tool, environment=environment)


def existing(folder: Path) -> Peers:
    """The tools in a folder that somebody built.

    Raises:
        BenchError: one of them, or libllama, is not there.
    """
    folder = folder.resolve()
    missing = [name for name in (*TOOLS, "libllama.so") if not (folder / name).exists()]
    if missing:
        raise BenchError(f"{folder} has no {' and no '.join(missing)}: give the folder of a shared llama.cpp build.")
    return Peers(folder, "as built in --peers")


def cmake_flags() -> str:
    """The CMake flags that llama-cpp-python was built with: CMAKE_ARGS as for tools/setup.sh, else its default."""
    flags = os.environ.get("CMAKE_ARGS", "").strip() or DEFAULT_FLAGS
    spec = find_spec("llama_cpp")
    libraries = Path(spec.origin).parent / "lib" if spec and spec.origin else Path()
    if (libraries / "libggml-cuda.so").exists() and "GGML_CUDA" not in flags:
        flags += " -DGGML_CUDA=ON"
    return flags


def cache_key(package_version: str, flags: str) -> str:
    """Name of the cache's folder for a version and its flags."""
    slug = re.sub(r"[^A-Za-z0-9=_.]+", "-", flags).strip("-")
    if len(slug) > 60:
        slug = hashlib.sha256(flags.encode()).hexdigest()[:16]
    return f"{package_version}-{slug}"


def build(say: Callable[[str], None]) -> Peers:
    """The tools for the installed version, from the cache or built into it.

    Raises:
        BenchError: a program, the network or the compiler failed; the message says which.
    """
    flags, installed = cmake_flags(), version("llama-cpp-python")
    home = cache_folder() / "peers" / cache_key(installed, flags)
    if not (home / "bin" / ".complete").exists():
        home.mkdir(parents=True, exist_ok=True)
        with (home / ".lock").open("w") as lock:
            # Another run may be building the same.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (home / "bin" / ".complete").exists():
                _build(home, installed, flags, say)
    found = existing(home / "bin")
    return Peers(found.folder, flags)


def _build(home: Path, installed: str, flags: str, say: Callable[[str], None]) -> None:
    tools_path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": tools_path, "CMAKE_ARGS": flags}
    cmake = shutil.which("cmake", path=tools_path)
    if cmake is None:
        raise BenchError(
            "cmake is needed to build llama.cpp's tools and was not found; install it (Debian and Ubuntu: apt-get "
            "install cmake; or pip install cmake), or give a build of your own with --peers DIR."
        )
    for names, what in (((os.environ.get("CC"), "cc", "gcc", "clang"), "C"), ((os.environ.get("CXX"), "c++"), "C++")):
        if not any(name and shutil.which(name, path=tools_path) for name in names):
            raise BenchError(
                f"A {what} compiler is needed to build llama.cpp's tools and was not found; install one (Debian and "
                "Ubuntu: apt-get install build-essential)."
            )
    log, source, work = home / "log", home / "source", home / "build"
    log.write_text("")
    say(f"Building llama-perplexity and llama-bench of llama-cpp-python {installed} ({flags}) into {home}, once …")
    if not (source / "vendor" / "llama.cpp" / "CMakeLists.txt").exists():
        say("… fetching its source package (77 MB)")
        _fetch(home, source, installed, environment, log)
    lean = [*_LEAN, *flags.split()]
    generator = ["-G", "Ninja"] if shutil.which("ninja", path=tools_path) else []
    configure = [cmake, "-S", str(source / "vendor" / "llama.cpp"), "-B", str(work), *generator, *lean]
    _logged("configure llama.cpp", configure, environment, log)
    targets = ["--target", *TOOLS, "-j", str(os.cpu_count() or 1)]
    _logged("compile llama.cpp", [cmake, "--build", str(work), *targets], environment, log, say)
    shutil.rmtree(home / "bin", ignore_errors=True)
    shutil.copytree(work / "bin", home / "bin", symlinks=True)
    (home / "bin" / ".complete").touch()
    for folder in (source, work):
        shutil.rmtree(folder, ignore_errors=True)


def _fetch(home: Path, source: Path, installed: str, environment: Mapping[str, str], log: Path) -> None:
    package = home / "package"
    shutil.rmtree(package, ignore_errors=True)
    download = [
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps"),
        # Of this package alone: ':all:' would compile cmake itself.
        *("--no-binary", "llama-cpp-python", f"llama-cpp-python=={installed}", "-d", str(package)),
    ]
    _logged(f"fetch the sources of llama-cpp-python {installed} (is there a network?)", download, environment, log)
    archives = sorted(package.glob("llama_cpp_python-*.tar.gz"))
    if not archives:
        raise BenchError(f"pip fetched no source package of llama-cpp-python {installed}; see {log}.")
    part = home / "source.part"
    shutil.rmtree(part, ignore_errors=True)
    with tarfile.open(archives[0]) as archive:
        archive.extractall(part, filter="data")
    (inner,) = part.iterdir()
    shutil.rmtree(source, ignore_errors=True)
    inner.rename(source)
    shutil.rmtree(part)
    shutil.rmtree(package)


def _logged(
    what: str,
    command: list[str],
    environment: Mapping[str, str],
    log: Path,
    say: Callable[[str], None] | None = None,
) -> None:
    """Run a step of the build with its output in the log; tell every tenth of its progress.

    Raises:
        BenchError: it failed; with its last lines.
    """
    told = 0
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=dict(environment),
            start_new_session=True,
        )
        assert process.stdout
        try:
            for line in process.stdout:
                file.write(line)
                done = percent(line)
                if say and done is not None and done >= told + 10:
                    told = done - done % 10
                    say(f"… {told} %")
            process.wait()
        finally:
            if process.poll() is None:
                # The compilers too.
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
            process.stdout.close()
    if process.returncode:
        raise BenchError(f"Could not {what}: {last_words(log.read_text(errors='replace'))} (all of it: {log})")


def percent(line: str) -> int | None:
    """How far a build is, by a line of make's ("[ 12%] ...") or ninja's ("[12/300] ...")."""
    found = _PERCENT.match(line)
    if not found:
        return None
    return int(found[1]) if found[3] is None else 100 * int(found[1]) // max(1, int(found[3]))
