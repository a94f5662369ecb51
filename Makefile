# Everything a newcomer needs: `make compare` answers the question, `make test` checks the code.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
BENCH  := --shapes 32,64,128,4 8,128,256,4 4,512,512,8 1,2048,512,8 --against mha x-transformers hf hf-compiled --out benchmarks/results


# Which versions to install: the pinned ones, or for another torch: make setup TORCH='torch==2.11.*' CONSTRAINTS=
CONSTRAINTS ?= -c constraints.txt
TORCH       ?= torch

.PHONY: setup compare test test-slow test-models test-gpu check words docs dist format bench hooks clean
.DEFAULT_GOAL := help

help: ## list these targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY) ## make .venv and install querykey with its development extras

# torch comes first and pinned: left to a dependency, pip would choose a build of several gigabytes.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "querykey needs Python 3.11 or newer, this is " + sys.version.split()[0] + ". Say which to use: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) '$(TORCH)'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) '$(TORCH)' -e '.[dev]'
	touch $@

compare: setup ## train the default plan and answer: do queries and keys need different weights?
	$(BIN)/querykey compare why --out runs/why

test: setup ## the quick test suite (under 5 minutes on 2 cores)
	$(BIN)/python -m pytest -q -n auto --dist loadfile

test-slow: setup ## the tests that take minutes
	$(BIN)/python -m pytest -q -m slow

test-models: setup ## tests on trained models: make test-models QUERYKEY_MODELS=FOLDER
	QUERYKEY_MODELS=$(QUERYKEY_MODELS) $(BIN)/python -m pytest -q -m models

test-gpu: setup ## tests and benchmarks on a GPU, about five minutes
	$(BIN)/python benchmarks/gpu.py

check: setup ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

words: setup ## words that the glossary has replaced, where they are left
	$(BIN)/python tests/glossary.py

docs: setup ## the site of guides and API reference, into site/ (needs no network)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

dist: setup ## the wheel and the source distribution, into dist/
	rm -rf dist
	$(BIN)/python -m build

format: setup ## mend formatting and what lint can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup ## time the layer against lower bounds and other libraries, into benchmarks/results (about 10 minutes)
	$(BIN)/querykey bench $(BENCH)
	$(BIN)/querykey bench $(BENCH) --passes prefill training --causal

hooks: setup ## run the checks before every commit
	$(BIN)/pre-commit install

clean: ## remove what the other targets made, except runs
	rm -rf $(VENV) site dist build .mypy_cache .ruff_cache .pytest_cache
