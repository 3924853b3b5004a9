.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
SITE ?= site
API := aggregators attacks channels client coupling federation fusion guard lora optimizers preaggregators realign \
       regularizers rng server tasks tracking types

.PHONY: help demo test test-slow lint format docs clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: .venv/.ready ## Set up and run the main job: sixteen devices, eight tasks, a jammed uplink
	$(BIN)/fedfusion run experiment=quickstart

test: .venv/.ready ## Set up and run the tests, under 8 minutes on 2 cores
	$(BIN)/python -m pytest -n auto --maxprocesses=4 --dist loadscope

test-slow: .venv/.ready ## The tests that take longer
	$(BIN)/python -m pytest -m slow

lint: .venv/.ready ## ruff, mypy and the layers of the house
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.ready ## Put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/.ready ## Write the API pages into site/
	@$(BIN)/python -W error::UserWarning -m pdoc --docformat numpy --math -o $(SITE) fedfusion $(addprefix fedfusion.,$(API))

clean: ## Remove the environment and caches, but no runs
	rm -rf .venv .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
