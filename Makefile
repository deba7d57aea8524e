# Everything a fresh machine needs: `make quickstart` shows the main job, `make demo` that transfer
# pays, `make test` proves it.
# VENV= names another environment, PYTHON= another Python (3.11 or newer).

VENV ?= .venv
PYTHON ?= python3
PYTEST_ARGS ?=
TEST_PROCESSES ?= 2

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

TOGETHER := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES)

.PHONY: quickstart demo test test-cluster test-all test-lowest lint format clean

quickstart: $(VENV)/.dtl-installed
	$(BIN)/dtl train configs/quickstart/text.yaml

# Does transfer pay? A network trained on the alphabet, adapted to scanned digits.
demo: $(VENV)/.dtl-installed
	$(BIN)/dtl compare configs/quickstart/vision.yaml
	$(BIN)/dtl report comparisons/vision

# Tests that measure seconds come last, one at a time; those of a real Slurm are test-cluster.
test: $(VENV)/.dtl-installed-dev
	$(TOGETHER) --ignore=tests/cluster -m "not slow and not serial" $(PYTEST_ARGS)
	$(BIN)/python -m pytest -m "not slow and serial" $(PYTEST_ARGS)

test-cluster: $(VENV)/.dtl-installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" tests/cluster $(PYTEST_ARGS)

test-all: $(VENV)/.dtl-installed-dev
	$(TOGETHER) -m "not serial" $(PYTEST_ARGS)
	$(BIN)/python -m pytest -m "serial" $(PYTEST_ARGS)

# The unit tests on the lowest versions that pyproject.toml allows, in an environment of their own.
test-lowest: $(VENV)-lowest/.dtl-installed-lowest
	OMP_NUM_THREADS=1 $(VENV)-lowest/bin/python -m pytest -n $(TEST_PROCESSES) \
	  -m "not slow and not serial" tests/unit tests/contracts $(PYTEST_ARGS)

lint: $(VENV)/.dtl-installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy dtl
	$(BIN)/lint-imports

format: $(VENV)/.dtl-installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .venv-lowest build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "dtl needs Python 3.11 or newer; name one: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.dtl-installed: pyproject.toml | $(BIN)/python
	@echo "Installing dtl and what it needs into $(VENV); the first time takes some minutes."
	$(INSTALL) -e '.[all]'
	@touch $@

$(VENV)-lowest/.dtl-installed-lowest: pyproject.toml tests/lowest-versions.txt
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet --disable-pip-version-check \
	  -e '.[test]' -c tests/lowest-versions.txt
	@touch $@

$(VENV)/.dtl-installed-dev: pyproject.toml | $(BIN)/python
	@echo "Installing dtl and its tests into $(VENV); the first time takes some minutes."
	$(INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.dtl-installed
