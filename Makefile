# Every target does its own set-up; nothing has to be installed first but Python with venv.

PYTHON ?= python3
PREFIX ?= /usr/local
DESTDIR ?=
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 3

.DEFAULT_GOAL := help
.PHONY: help run test lint venv bench check-load check-kernel check-s3 clean install uninstall

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

$(VENV)/.bench: $(VENV)/.test
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[bench]'
	@touch $@

venv: $(VENV)/.test ## make .venv with the runtime, the extras and the test tools

run: $(VENV)/.runtime ## pack a sample image, serve it over HTTP and NBD on loopback, say how to read it
	@exec $(BIN)/python tests/sample.py

test: $(VENV)/.test ## run the tests
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal tests

lint: $(VENV)/.test ## check style and types
	@$(BIN)/ruff check --quiet hexz tests hexz_serve.py
	@$(BIN)/ruff format --quiet --check hexz tests hexz_serve.py
	@$(BIN)/mypy

bench: $(VENV)/.bench ## compare with other servers side by side; tables, JSON and plots in build/bench
	@$(BIN)/python -m tests.benchmarks

check-load: $(VENV)/.test ## 2,250 HTTP connections at once, good and bad: what the good ones wait, and the memory (80 s)
	@$(BIN)/python -m tests.http.load

check-s3: $(VENV)/.test ## the reading part of a public S3 test suite, fetched from the package index (30 s)
	@$(BIN)/python -m tests.s3.conformance

check-kernel: $(VENV)/.test ## boot a throw-away Linux guest whose kernel attaches, compares and mounts NBD exports (30 s)
	@$(BIN)/python -m tests.kernel.check

LIBDIR = $(PREFIX)/lib/hexz-serve
DOCDIR = $(PREFIX)/share/doc/hexz-serve
UNITDIR ?= $(PREFIX)/lib/systemd
SYSTEM_PYTHON ?= /usr/bin/python3
UNITS = hexz-serve@.service hexz-serve-activated@.service hexz-serve-http@.socket hexz-serve-nbd@.socket
FILL = sed -e 's|@PYTHON@|$(SYSTEM_PYTHON)|' -e 's|@LIBDIR@|$(LIBDIR)|' -e 's|@DOCDIR@|$(DOCDIR)|'

install: ## install for the system's python3 (PREFIX=/usr/local, DESTDIR for packages)
	@install -d $(DESTDIR)$(LIBDIR) $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(DOCDIR) $(DESTDIR)$(UNITDIR)/system $(DESTDIR)$(UNITDIR)/user
	@install -m 644 hexz_serve.py $(DESTDIR)$(LIBDIR)/
	@for file in $$(find hexz -name '*.py' -o -name py.typed); do install -D -m 644 $$file $(DESTDIR)$(LIBDIR)/$$file; done
	@printf '#!/bin/sh\nexec $(SYSTEM_PYTHON) -I $(LIBDIR)/hexz_serve.py "$$@"\n' > $(DESTDIR)$(PREFIX)/bin/hexz-serve
	@printf '#!/bin/sh\nPYTHONPATH=$(LIBDIR) exec $(SYSTEM_PYTHON) -m hexz "$$@"\n' > $(DESTDIR)$(PREFIX)/bin/hexz
	@chmod 755 $(DESTDIR)$(PREFIX)/bin/hexz-serve $(DESTDIR)$(PREFIX)/bin/hexz
	@install -m 644 README.md LICENSE systemd/example.conf $(DESTDIR)$(DOCDIR)/
	@for unit in $(UNITS); do $(FILL) systemd/$$unit > $(DESTDIR)$(UNITDIR)/system/$$unit; done
	@$(FILL) systemd/user/hexz-serve@.service > $(DESTDIR)$(UNITDIR)/user/hexz-serve@.service

uninstall: ## remove what install put there
	@rm -rf $(DESTDIR)$(LIBDIR) $(DESTDIR)$(DOCDIR)
	@rm -f $(DESTDIR)$(PREFIX)/bin/hexz-serve $(DESTDIR)$(PREFIX)/bin/hexz
	@for unit in $(UNITS); do rm -f $(DESTDIR)$(UNITDIR)/system/$$unit; done
	@rm -f $(DESTDIR)$(UNITDIR)/user/hexz-serve@.service

clean: ## remove what the targets made
	@rm -rf $(VENV) build .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
