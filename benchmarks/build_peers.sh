#!/usr/bin/env bash
# Builds llama-perplexity and llama-bench from the very source that the pinned llama-cpp-python vendors.
# usage: benchmarks/build_peers.sh DIR      (needs cmake; some 8 minutes on 2 cores, once)
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?Say where to put the tools: benchmarks/build_peers.sh DIR}
version=$(sed -n 's/^llama-cpp-python==//p' requirements.lock)
command -v cmake >/dev/null 2>&1 || { echo "Error: cmake is needed and was not found; install it." >&2; exit 1; }
mkdir -p "$out/src"
python=.venv/bin/python
[ -x "$python" ] || python=python3
"$python" -m pip download --quiet --no-deps --no-binary :all: "llama-cpp-python==$version" -d "$out"
tar xzf "$out"/llama_cpp_python-"$version".tar.gz -C "$out/src" --strip-components=1
# shellcheck disable=SC2086
cmake -S "$out/src/vendor/llama.cpp" -B "$out/build" -DCMAKE_BUILD_TYPE=Release ${CMAKE_ARGS:--DGGML_NATIVE=OFF} \
  -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF >"$out/log" 2>&1
cmake --build "$out/build" --target llama-perplexity llama-bench -j "$(nproc)" >>"$out/log" 2>&1
echo "$out/build/bin"
