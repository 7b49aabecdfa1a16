# Everything runs in a virtual environment of its own, made on first use and again when the pins change.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
PARITY_STAMP := $(VENV)/parity_installed
# Quick tests of numbers that `make parity` runs again with all of XLA's optimizations, as users' programs have them.
AS_USERS := tests/test_ops_cpu.py tests/test_ops_cpu_transforms.py tests/test_train.py

.PHONY: help run test parity lint format clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/'

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(f"Python 3.11 or newer is needed, $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=/path/to/python3.11" if v < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@touch $@

run: $(STAMP)  ## train a CNN on the digits that ship with scikit-learn: results in runs/
	$(BIN)/python experiments/classify.py

test: $(STAMP)  ## run the tests
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

$(PARITY_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[parity]'
	@touch $@

parity: $(PARITY_STAMP)  ## slow tests: every model takes a step, and equals its peers, which it installs
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 CNNJAX_EXHAUSTIVE=1 $(BIN)/python -m pytest tests/parity $(AS_USERS) --numprocesses 2 --dist worksteal
	$(BIN)/python -m pytest -m exhaustive --numprocesses 2 --dist worksteal

lint: $(STAMP)  ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## put the code into the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the virtual environment and caches; runs/ stays
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache *.egg-info
