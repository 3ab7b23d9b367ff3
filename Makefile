# Every target does its own set-up; nothing has to be installed first but Python with venv.

PYTHON ?= python3
PREFIX ?= /usr/local
DESTDIR ?=
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 3

.DEFAULT_GOAL := help
.PHONY: help run test lint venv bench clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

$(VENV)/bin/python:
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml | $(VENV)/bin/python
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[crypto]'
	@touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[crypto,test]'
	@touch $@ $(VENV)/.runtime

venv: $(VENV)/.test ## make .venv with the runtime, the extras and the test tools

run: $(VENV)/.runtime ## pack a sample image, serve it over HTTP and NBD on loopback, say how to read it
	@exec $(BIN)/python tests/sample.py

test: $(VENV)/.test ## run the tests
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal tests

lint: $(VENV)/.test ## check style and types
	@$(BIN)/ruff check --quiet hexz tests hexz_serve.py
	@$(BIN)/ruff format --quiet --check hexz tests hexz_serve.py
	@$(BIN)/mypy

bench: $(VENV)/.test ## compare with other servers side by side; tables, JSON and plots in build/bench
	@$(BIN)/python -m tests.benchmarks

clean: ## remove what the targets made
	@rm -rf $(VENV) build .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
