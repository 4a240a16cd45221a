# `make demo`, `make test`, `make bench`: from a fresh clone, on Debian with gcc and Python 3.11, without questions.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROGRAMS := build/programs

# What the programs, the tests and the demo need from Debian. What is WANTED is used where it can be had, and not
# asked for: clang for variants of the programs, chromium for the page, Go for its pprof, dwz and debuginfod for debug files.
PACKAGES := dpdk dpdk-dev libdpdk-dev pkg-config gcc libc6-dev gdb python3-venv
WANTED := clang-14 chromium golang-go dwz debuginfod

# The tests start a thousand Python processes: what they import is compiled once.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1	\2/p' Makefile

demo: setup native programs ## build a program with planted bugs, track it and show what is found
	@echo "== tests/programs/demo.c has three bugs planted: a leak, a duplicate free and a stray free =="
	$(BIN)/rtetrack-frida spawn --dump-file build/demo-dump.csv --summary build/demo-summary.json $(PROGRAMS)/demo
	@$(BIN)/python tests/programs/demo_verdict.py build/demo-summary.json

test: check native programs source-programs ## everything: ruff, mypy, pytest
	$(BIN)/pytest -n 2 tests/unit $(PYTEST_OPTIONS)
	$(BIN)/pytest -n 2 --dist loadgroup -m 'not alone' tests/integration $(PYTEST_OPTIONS)
	$(BIN)/pytest -m alone tests/integration $(PYTEST_OPTIONS)

check: setup ## ruff and mypy only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict

programs: system ## the test programs, into build/programs
	@$(MAKE) -s -C tests/programs OUT=$(abspath $(PROGRAMS))

# The test programs once more, with DPDK built by clang and with link-time optimization. Without its source: none.
source-programs: setup programs
	@tests/programs/dpdk-from-source.sh build/dpdk-source $(BIN)
	@$(MAKE) -s -C tests/programs OUT=$(abspath $(PROGRAMS)) SOURCE=$(abspath build/dpdk-source) from-source

bench: setup native programs ## measure what tracking costs
	@test -f bench/run.py || { echo "There is no benchmark in bench/run.py." >&2; exit 1; }
	$(BIN)/python bench/run.py $(BENCH_OPTIONS)

man: setup ## the man pages in docs/man, from the commands' own help
	$(BIN)/python docs/man/make.py

# The native engine by the system's compiler; without one TinyCC compiles it in the target.
native: system
	@$(PYTHON) frida_rtetrack/native/build.py || true

setup: system $(VENV)/.stamp ## the Python environment in .venv

$(VENV)/.stamp: pyproject.toml setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

# Debian's packages. Asks nothing, and does nothing where they are there.
system: build/.system

build/.system: Makefile
	@mkdir -p build
	@missing=; for package in $(PACKAGES); do \
	  case "$$package" in \
	    python3-venv) $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null && continue ;; \
	    gcc|gdb) command -v $$package >/dev/null && continue ;; \
	    pkg-config) command -v pkg-config >/dev/null && continue ;; \
	  esac; \
	  dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$package"; \
	done; \
	wanted=; for package in $(WANTED); do \
	  case "$$package" in \
	    clang-14) { command -v clang-14 || command -v clang; } >/dev/null && continue ;; \
	    chromium) { command -v chromium || command -v google-chrome; } >/dev/null && continue ;; \
	    golang-go) command -v go >/dev/null && continue ;; \
	  esac; \
	  wanted="$$wanted $$package"; \
	done; \
	test -n "$$missing$$wanted" || { touch $@; exit 0; }; \
	if [ "$$(id -u)" = 0 ]; then become=; \
	elif sudo -n true 2>/dev/null; then become="sudo -n"; \
	elif [ -z "$$missing" ]; then touch $@; exit 0; \
	else echo "Missing Debian packages: install them with \`apt-get install$$missing\` as root, then run make again." >&2; exit 1; fi; \
	$$become env DEBIAN_FRONTEND=noninteractive apt-get update -q >/dev/null || exit 1; \
	if [ -n "$$missing" ]; then \
	  $$become env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing >build/apt.log 2>&1 \
	    || { cat build/apt.log >&2; echo "These Debian packages could not be installed:$$missing." >&2; exit 1; }; \
	fi; \
	for package in $$wanted; do \
	  $$become env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$package >>build/apt.log 2>&1 \
	    || echo "Without $$package: the tests that need it are left out." >&2; \
	done; \
	touch $@

clean: ## remove what was built
	rm -rf build $(VENV) *.egg-info frida_rtetrack/native/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

.PHONY: help demo test check man native programs source-programs bench setup system clean
