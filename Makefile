# Two commands matter to a newcomer: make demo, make test. Each builds .venv and installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench soak docs clean

help: ## show the commands
	@grep -E '^[a-z%-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

$(VENV)/.base: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --no-compile --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(VENV)/.base ## run the whole life cycle on this machine, offline, in a few minutes
	$(BIN)/tidemill demo $(DEMO)

test: $(VENV)/.dev ## run the test suite
	$(BIN)/python -m pytest -m 'not soak' $(TESTS)

lint: $(VENV)/.dev ## ruff, strict mypy, import contracts
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## rewrite the sources in the house style
	$(BIN)/ruff check --fix --quiet src tests benchmarks
	$(BIN)/ruff format src tests benchmarks

docs: $(VENV)/.dev ## regenerate the parts of docs/ that come from the code
	$(BIN)/python docs/generate.py

soak: $(VENV)/.dev ## the long tests: kills, load, many rounds
	$(BIN)/python -m pytest -m soak --hypothesis-profile soak $(TESTS)

bench: $(VENV)/.dev ## every benchmark, one after the other
	for file in benchmarks/bench_*.py; do $(BIN)/python $$file || exit 1; done

bench-%: $(VENV)/.dev ## one benchmark, e.g. bench-gateway
	$(BIN)/python benchmarks/bench_$*.py

clean: ## remove what was built and the demo's store
	rm -rf $(VENV) .tidemill-demo .pytest_cache .mypy_cache .ruff_cache build dist
