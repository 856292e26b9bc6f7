.DEFAULT_GOAL := help
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup serve test test-fast test-client check format contract demo-adapters bundled-encoder image

help: ## List these targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

setup: $(STAMP) ## Create .venv with pinned dependencies and this project in it.

$(STAMP): pyproject.toml clients/python/pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt hatchling editables
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e clients/python -e '.[train,dev]'
	touch $(STAMP)

serve: $(STAMP) ## Serve the bundled encoder and the demo tasks on 127.0.0.1:8000.
	$(BIN)/labelmux serve

test: $(STAMP) ## Run the whole test suite.
	$(BIN)/python -m pytest

test-fast: $(STAMP) ## Run the tests that are not marked slow.
	$(BIN)/python -m pytest -m "not slow"

check: $(STAMP) ## Lint, formatting, types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## Rewrite the code in the house format.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
