# `make demo` and `make test` set up everything they need below .venv; the rest assumes nothing either.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Where it is set (in many images), each of the hundreds of processes that the tests start would compile what it imports: seconds every time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test test-all test-fast test-cluster lint compile docs lock clean

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

# The rings of the tests are explained in tests/rings.py.
test: $(STAMP) lint test-fast  ## what CI runs: lint, unit, contract, compiled, and a few releases end to end on real Ray (under 12 minutes)
	$(BIN)/python -m pytest -m core

test-all: $(STAMP) lint test-fast  ## everything, every fault, and the end-to-end core once more (under 45 minutes)
	$(BIN)/python -m pytest -m "core or full"
	$(BIN)/python -m pytest -m core

test-fast: $(STAMP)  ## without Ray, in two processes: a file's tests in one (4 minutes)
	$(BIN)/python -m pytest -m fast -n 2 --dist loadfile

test-cluster: $(STAMP)  ## contract and end-to-end core on the cluster of KUBECONFIG (a real one); skipped loudly without
	KUBE_API=kubeconfig $(BIN)/python -m pytest tests/contract tests/e2e -m "fast or core"

lint: $(STAMP)  ## formatting, style, types, layers, compiled files, generated pages
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.10 --follow-imports skip --no-warn-return-any -p kfp_components.router
	$(BIN)/lint-imports
	$(BIN)/python -m pipelines.compile --check
	$(BIN)/python docs/generate.py --check

docs: $(STAMP)  ## write docs/troubleshooting.md from the errors that the sources raise
	$(BIN)/python docs/generate.py

compile: $(STAMP)  ## write compiled/
	$(BIN)/python -m pipelines.compile

RESOLVE = $(BIN)/uv pip compile setup.py --universal --python-version 3.11 --generate-hashes --no-header --quiet

lock:  ## resolve requirements.lock again, for all Python versions, and from it what the component image installs
	$(RESOLVE) --extra all --override requirements.overrides -o requirements.lock
	$(RESOLVE) --extra mlflow --extra s3 --extra signing --extra quality --constraint requirements.lock -o deploy/requirements.image.lock

clean:  ## remove what was built (not the embedded cluster: `kfp-serving local down`)
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
