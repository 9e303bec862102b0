# `make demo` and `make test` set up everything they need below .venv; the rest assumes nothing either.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PYTHONWARNINGS ?= ignore

.PHONY: help setup demo test test-fast lint compile snippets bench clean

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

$(STAMP): requirements.lock setup.py VERSION
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.5"
	$(BIN)/uv pip sync --quiet --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

setup: $(STAMP)  ## install what the lock file says into .venv

demo: $(STAMP)  ## a good version promoted and a bad one caught, on this machine
	$(BIN)/kfp-serving demo

test: $(STAMP) lint  ## everything: lint, unit, contract, compiled, and end to end on real Ray
	$(BIN)/python -m pytest

test-fast: $(STAMP)  ## without Ray and without kfp.local: under three minutes
	$(BIN)/python -m pytest -m "not ray and not kfp and not slow"

lint: $(STAMP)  ## formatting, style, types, layers, compiled files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pipelines.compile --check

compile: $(STAMP)  ## write compiled/
	$(BIN)/python -m pipelines.compile

lock:  ## resolve requirements.lock again, for all Python versions
	$(BIN)/uv pip compile setup.py --extra all --universal --python-version 3.11 --generate-hashes --no-header --quiet --override requirements.overrides -o requirements.lock

clean:  ## remove what was built (not the embedded cluster: `kfp-serving local down`)
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
