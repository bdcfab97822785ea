# Needs Python 3.11 or newer and make; everything else is installed into .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
WORKERS ?= 2
ARGS ?=
# Counting takes 1.6 times as long, and its gate holds where all tests run: .ci/run counts.
COVERAGE ?=
BIN := .venv/bin
READY := .venv/.ready

# Let Python keep its bytecode: importing torch and transformers takes twice as long without.
unexport PYTHONDONTWRITEBYTECODE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test lint format docs tutorials benchmarks constraints clean
.DEFAULT_GOAL := help

help:  ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */  make \1 /' | \
		awk '{ printf "  %s %-12s", $$1, $$2; $$1 = $$2 = ""; sub(/^ */, ""); print }'

demo: $(READY)  ## set up .venv when missing, then train and score an adapter (ARGS="--seed 1" passes arguments on)
	$(BIN)/python recipes/asr_librispeech.py $(ARGS)

test: $(READY)  ## set up .venv when missing, then run the tests (ARGS="-k config" passes arguments on, COVERAGE=1 counts)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal $(if $(COVERAGE),--cov --cov-report=term) $(ARGS)

lint: $(READY)  ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## mend style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## write the pages that are made from the code, and build the site into build/site, offline
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

tutorials: $(READY)  ## run the tutorials in full and write what they print into their pages (ARGS="docs/start.md" for some)
	$(BIN)/python docs/execute.py $(ARGS)

benchmarks: $(READY)  ## measure speed and memory, and write docs/benchmarks.md (ARGS=--quick: a rehearsal, page in runs/)
	$(BIN)/python benchmarks/run_all.py $(ARGS)

constraints: $(READY)  ## renew constraints.txt from pyproject.toml (then run the tests before committing it)
	$(BIN)/uv pip compile -q --upgrade --no-annotate --no-header --extra dev --extra gpu --extra ray -o .venv/pins pyproject.toml
	{ echo "# The exact versions this project is tested with, extras included (Linux, Python 3.11)."; \
	  echo "# Renew after a change of dependencies with: make constraints"; cat .venv/pins; } > constraints.txt

clean:  ## remove caches and build output; keeps .venv and runs
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage* *.egg-info
	find $(wildcard speech_adapters recipes benchmarks tests) -name __pycache__ -type d -prune -exec rm -rf {} +

# uv installs in a sixth of pip's time; where it cannot be had or cannot reach the index, pip does the same.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no python3.11 found; install it or run 'make PYTHON=/path/to/python'"; exit 2; }
	@echo "Setting up .venv with $(PYTHON) (PyTorch and its libraries: about 3 GB to download, 6 GB on disk)"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	{ $(BIN)/python -m pip install -q uv && $(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[dev]'; } \
		|| $(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $@
