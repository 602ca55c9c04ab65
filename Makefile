# `make demo` and `make test` do all the set-up themselves. Needs: Python 3.11+, make, a C and a C++ compiler.
.PHONY: help setup setup-dev demo test test-fast lint format bench lock clean
BIN := .venv/bin
# Test files side by side; each worker measures with a process of its own.
WORKERS ?= 2

help:
	@echo "make demo    set up, then the whole main job on this machine; keeps serving (ARGS=--once: ends)"
	@echo "make test    set up, then all tests"
	@echo "make lint    ruff and mypy"
	@echo "make bench   speed against llama.cpp's own tools, as ratios"
	@echo "make lock    pin the newest allowed packages anew"

setup:
	@tools/setup.sh run

setup-dev:
	@tools/setup.sh dev

demo: setup
	@$(BIN)/quantcard demo $(ARGS)

test: setup-dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

test-fast: setup-dev
	$(BIN)/python -m pytest tests/unit $(ARGS)

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup-dev
	$(BIN)/python -m benchmarks $(ARGS)

lock: setup-dev
	$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links --no-annotate --no-header -q -o requirements.lock
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra cuda --extra ray --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links --no-annotate --no-header -q -c requirements.lock -o requirements-dev.lock

clean:
	rm -rf .venv .quantcard-demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
