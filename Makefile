# make demo   the whole path on a real model (full: under 25 minutes on 2 cores; make demo QUICK=1: under 5)
# make test   the tests                        make lint   style, types, import contracts
# make lock   write requirements.lock anew from a fresh environment      make readme  the tables of README.md anew
# All of them first build .venv; that and the demo's model and text need the package registry, nothing after does.

PYTHON ?= python3
VENV   ?= .venv
QUICK  ?=
OUTPUT ?= demo-output
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test slow lint format readme lock setup clean
.DEFAULT_GOAL := setup

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "pospatch needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

demo: $(STAMP)
	$(BIN)/pospatch demo $(if $(QUICK),--quick) --output $(OUTPUT)

# one thread a process, and as many processes as there are cores: tiny models gain nothing from threads
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadgroup

slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadgroup -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

readme: $(STAMP)
	$(BIN)/python -m tests.readme

# torch is pinned in the same call as everything else, so that pip cannot swap it; "+cpu" is dropped from its version,
# since the local build tag does not exist on every registry.
lock:
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet "torch==2.13.0" ".[dev]"
	{ sed -n '/^#/p;/^[^#]/q' requirements.lock; \
	  .venv-lock/bin/python -m pip freeze --exclude pospatch | sed 's/+cpu$$//'; } > requirements.new
	mv requirements.new requirements.lock && rm -rf .venv-lock

clean:
	rm -rf $(VENV) .venv-lock .mypy_cache .pytest_cache .ruff_cache .import_linter_cache build dist
