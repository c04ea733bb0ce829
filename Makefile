# Everything a developer or CI does with this project. `make` lists it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help test lint demo demo-image bench bench-running guests host-packages lock clean

help:  ## list what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

test: host-packages $(STAMP) lint  ## everything that CI runs: lint, types, tests with real guests
	$(BIN)/pytest -n 3 --dist loadgroup

lint: $(STAMP)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

demo: host-packages $(STAMP)  ## build a guest, pack, sign, carry, rebuild, prove, boot it
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m fixtures.demo

demo-image: host-packages $(STAMP)  ## run the nightly job of examples/ci, step by step
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m fixtures.demo_image

bench: host-packages $(STAMP)  ## measure against peers, side by side; writes build/bench/
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m benchmarks.run

bench-running: host-packages $(STAMP)  ## measure VMs that run straight from a pack (an hour)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m benchmarks.running

guests: host-packages $(STAMP)  ## build the guests that tests and demo use
	$(BIN)/python -m fixtures.guests

host-packages:  ## install the tools that tests and demo need (apt; asks sudo)
	@tools/host-packages

$(STAMP): pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

lock: $(STAMP)  ## write requirements.lock anew from pyproject.toml
	$(BIN)/pip install --quiet pip-tools
	$(BIN)/pip-compile --quiet --strip-extras --extra dev --extra unpacker --generate-hashes --allow-unsafe \
	  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
	  --output-file requirements.lock pyproject.toml

clean:  ## remove what was built
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache
