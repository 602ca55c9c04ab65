#!/usr/bin/env bash
# Sets up .venv with pinned packages; what is missing on the machine is named in one sentence.
# usage: tools/setup.sh run|dev      (dev adds what the tests need)
set -euo pipefail
cd "$(dirname "$0")/.."
mode=${1:-run}
venv=.venv

die() { echo "Error: $*" >&2; exit 1; }

find_python() {
  for name in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11 python; do
    if command -v "$name" >/dev/null 2>&1 &&
      "$name" -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' >/dev/null 2>&1; then
      command -v "$name"
      return
    fi
  done
}

[ "$mode" = run ] || [ "$mode" = dev ] || die "tools/setup.sh takes 'run' or 'dev'."
python=$(find_python)
[ -n "$python" ] || die "Python 3.11 or newer is needed and was not found; install it (or set PYTHON=/path/to/python3)."
"$python" -c 'import venv, ensurepip' >/dev/null 2>&1 ||
  die "Python's venv module is missing; install it (Debian and Ubuntu: apt-get install python3-venv)."

lock=requirements.lock
[ "$mode" = dev ] && lock=requirements-dev.lock
# AMX code that a native build picks on some virtual machines dies with SIGSEGV for K-quants; see docs/install.md.
export CMAKE_ARGS=${CMAKE_ARGS:--DGGML_NATIVE=OFF}
version=$(sed -n 's/^llama-cpp-python==//p' requirements.lock)
stamp=$({ cat requirements.lock "$lock" pyproject.toml; echo "$CMAKE_ARGS $python"; } | cksum | tr ' ' '-')
if [ -f "$venv/.stamp-$mode" ] && [ "$(cat "$venv/.stamp-$mode")" = "$stamp" ]; then exit 0; fi

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }

# llama-cpp-python is compiled here once; the wheel is kept for the next checkout, by version, flags and Python.
tag=$("$venv/bin/python" -c 'import sys, platform; print(f"cp{sys.version_info[0]}{sys.version_info[1]}-{platform.machine()}")')
wheels=${QUANTCARD_WHEELS:-${XDG_CACHE_HOME:-$HOME/.cache}/quantcard/wheels}/$version-$tag-$(echo "$CMAKE_ARGS" | cksum | cut -d' ' -f1)
wheel=$(ls "$wheels"/llama_cpp_python-*.whl 2>/dev/null | head -n 1 || true)
if [ -z "$wheel" ]; then
  command -v "${CC:-cc}" >/dev/null 2>&1 || command -v gcc >/dev/null 2>&1 || command -v clang >/dev/null 2>&1 ||
    die "A C compiler is needed to build llama.cpp and was not found; install one (Debian and Ubuntu: apt-get install build-essential)."
  command -v "${CXX:-c++}" >/dev/null 2>&1 || command -v g++ >/dev/null 2>&1 || command -v clang++ >/dev/null 2>&1 ||
    die "A C++ compiler is needed to build llama.cpp and was not found; install one (Debian and Ubuntu: apt-get install g++)."
  echo "Building llama-cpp-python $version ($CMAKE_ARGS), once: some 4 minutes on 2 cores …" >&2
  mkdir -p "$wheels"
  build=$(mktemp -d)
  trap 'rm -rf "$build"' EXIT
  # Not from pip's cache: a wheel there may have been built with other flags.
  if ! "$venv/bin/python" -m pip --disable-pip-version-check wheel --no-cache-dir --no-deps --wheel-dir "$build" \
    "llama-cpp-python==$version" >"$build/log" 2>&1; then
    tail -n 30 "$build/log" >&2
    die "llama-cpp-python $version could not be built; the reason stands above (often no network, or too old a compiler)."
  fi
  mv "$build"/llama_cpp_python-*.whl "$wheels"/
  wheel=$(ls "$wheels"/llama_cpp_python-*.whl | head -n 1)
fi
echo "Installing pinned packages from $lock …" >&2
pip install --no-deps "$wheel" || die "The built llama-cpp-python could not be installed."
pip install -r "$lock" || die "The packages in $lock could not be installed; check the network and pip's message above."
log=$(pip install --no-deps -e . 2>&1) || { echo "$log" >&2; die "quantcard itself could not be installed into $venv."; }
echo "$stamp" >"$venv/.stamp-$mode"
