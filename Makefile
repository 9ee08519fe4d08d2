# One definition of every check: a person, a hook and CI call the same targets. `make help` lists them.
# Needs: Python >= 3.11, a Rust toolchain, a C compiler. Everything else is installed into .venv from pyproject.toml.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# Outside the checkout and shared by all checkouts: the Rust dependencies build once a machine, not once a clone.
export CARGO_TARGET_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/iroh-broker/target
PYTHON ?= python3
ARGS ?=
SECONDS ?= 60

# cargo-fuzz and what it builds: other flags than the extension's, so a directory of its own.
FUZZ_HOME := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/iroh-broker/fuzz
CARGO_FUZZ := $(FUZZ_HOME)/bin/cargo-fuzz

export VIRTUAL_ENV := $(CURDIR)/.venv
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# What the caller's shell has set must not reach the build: another environment would get the editable install.
unexport CONDA_PREFIX PYTHONHOME PYTHONPATH

CODE := $(wildcard broker tests benchmarks examples grafana scripts)
EXTENSION := broker/_gossip_ext.abi3.so
CRATE := gossip_ext/Cargo.toml
CRATE_SOURCES := $(CRATE) gossip_ext/Cargo.lock $(wildcard gossip_ext/build.rs) $(shell find gossip_ext/src -type d -o -name '*.rs')

# cargo test and clippy see pyo3 configured as maturin configures it for the wheel. So pyo3 is compiled once and not at
# every switch between them, and no libpython is needed to link the test binary (Rust tests stay off the Python API).
CARGO = PYO3_BUILD_EXTENSION_MODULE=1 \
	$(addprefix PYO3_CONFIG_FILE=,$(firstword $(wildcard $(CARGO_TARGET_DIR)/maturin/pyo3-config-*abi3*.txt))) cargo
CARGO_FLAGS := --locked --release --manifest-path $(CRATE)

# Debian packages that the tests marked `system` and the benchmarks start or call.
SYSTEM_PACKAGES := faketime iproute2 nats-server nftables openssl prometheus redis-server

# --- Set-up: three stamps, each rebuilt only when what it depends on has changed -----------------------------------

VENV_STAMP := .venv/.made
TOOLS_STAMP := .venv/.tools
EXTENSION_STAMP := .venv/.extension
FUZZ_STAMP := .venv/.fuzz
PICTURES_STAMP := .venv/.pictures
# A stamp without the thing it stands for (git clean, a copied tree) is no stamp.
ifeq ($(wildcard $(EXTENSION)),)
.PHONY: $(EXTENSION_STAMP)
endif

$(VENV_STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; \"$(PYTHON)\" is not. Try: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	.venv/bin/python -m pip install --quiet --upgrade 'pip>=25.1'  # the first with --group (PEP 735)
	@touch $@

$(TOOLS_STAMP): pyproject.toml $(VENV_STAMP)
	.venv/bin/python -m pip install --quiet --group dev
	@touch $@

$(EXTENSION_STAMP): $(TOOLS_STAMP) $(CRATE_SOURCES)
	@for tool in cargo cc; do command -v $$tool >/dev/null || \
		{ echo "$$tool is needed to build the extension: a Rust toolchain and a C compiler." >&2; exit 1; }; done
	@echo "Building the extension into $(CARGO_TARGET_DIR) (minutes the first time, seconds after)"
	@touch $@.begun  # as old as the build's beginning: a source saved during the build is built next time
	PIP_QUIET=1 .venv/bin/maturin develop --release
	@mv $@.begun $@

$(FUZZ_STAMP): $(TOOLS_STAMP)
	@.venv/bin/python -m pip install --quiet --only-binary atheris --group fuzz || { \
		echo "atheris has no wheel for this machine: x86-64 Linux with Python 3.11 to 3.14 has one. Without it go" >&2; \
		echo "make test, and .venv/bin/python -m tests.fuzz hypothesis, which is most of it." >&2; exit 1; }
	@touch $@

$(PICTURES_STAMP): $(TOOLS_STAMP)
	.venv/bin/python -m pip install --quiet --group pictures
	@touch $@

$(CARGO_FUZZ):
	@echo "Building cargo-fuzz into $(FUZZ_HOME) (a minute, once a machine)"
	CARGO_TARGET_DIR=$(FUZZ_HOME)/target cargo install cargo-fuzz --version '~0.13' --locked --quiet --root $(FUZZ_HOME)

.PHONY: setup
setup: $(EXTENSION_STAMP)  ## Make .venv, install the tools, build the extension; Python edits are live

# --- What a person types -------------------------------------------------------------------------------------------

.PHONY: demo
demo: setup  ## Hub and spokes on this machine's live data (ARGS="--spokes 5 --seconds 20")
	.venv/bin/broker demo $(ARGS)

.PHONY: test
test: setup  ## Every test that needs nothing more than the set-up (ARGS="-k name"; ARGS="-n0 --pdb")
	$(CARGO) test $(CARGO_FLAGS) --test '*' --quiet
	.venv/bin/python -m pytest -n 2 --dist loadfile $(ARGS)

.PHONY: test-system
test-system: setup system-packages  ## The tests that need Debian packages, Docker, namespaces, a browser or minutes
	.venv/bin/python -m pytest -m system $(ARGS)

.PHONY: system-packages
system-packages:
	@missing=$$(for name in $(SYSTEM_PACKAGES); do \
		dpkg-query -W -f '$${Status}' $$name 2>/dev/null | grep -q 'ok installed' || echo -n " $$name"; done); \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		export DEBIAN_FRONTEND=noninteractive; apt-get update -qq; apt-get install -y -qq --no-install-recommends $$missing; \
	else \
		echo "These tests need Debian packages that are not installed. As root, type:" >&2; \
		echo "  apt-get update && apt-get install --no-install-recommends$$missing" >&2; exit 1; \
	fi

.PHONY: lint
lint: setup  ## ruff, mypy strict, stubtest, rustfmt, clippy: as CI sees them
	.venv/bin/ruff check $(CODE)
	.venv/bin/ruff format --check $(CODE)
	.venv/bin/mypy $(CODE)
	.venv/bin/python -m mypy.stubtest broker._gossip_ext --mypy-config-file pyproject.toml
	cargo fmt --manifest-path $(CRATE) --check
	$(CARGO) clippy $(CARGO_FLAGS) --all-targets --quiet -- -D warnings

.PHONY: format
format: setup  ## Let ruff and rustfmt put the code in order
	.venv/bin/ruff check --fix $(CODE)
	.venv/bin/ruff format $(CODE)
	cargo fmt --manifest-path $(CRATE)

.PHONY: fuzz
fuzz: setup $(FUZZ_STAMP) $(CARGO_FUZZ)  ## Fuzz each target for SECONDS=60 (ARGS="calls hub", --help; tests/fuzz/README.md)
	PATH="$(dir $(CARGO_FUZZ)):$$PATH" CARGO_TARGET_DIR=$(FUZZ_HOME)/target \
		.venv/bin/python -m tests.fuzz --seconds $(SECONDS) $(ARGS)

.PHONY: chaos
chaos: setup system-packages  ## Every scenario of broker/lab/scenarios.toml on a lab of namespaces (ARGS="--seed 7")
	.venv/bin/broker lab chaos $(ARGS)

.PHONY: fifty
fifty: setup system-packages  ## Fifty nodes in containers, 20 events/s each, and nothing lost (Docker, 4 processors, 6 GB)
	.venv/bin/python -m pytest -m large $(ARGS)

.PHONY: dashboards
dashboards: setup  ## Write grafana/dashboards/*.json from grafana/boards/
	.venv/bin/python -m grafana.draw

.PHONY: pictures
pictures: setup system-packages $(PICTURES_STAMP)  ## Draw what the dashboards show of a testbed into docs/images (2 min)
	.venv/bin/python -m grafana.pictures $(ARGS)

.PHONY: sim
sim: setup  ## Hubs and spokes in virtual time (SEEDS=10000; one again: SEED=7 ONLY=0,3-5 TRACE=1)
	.venv/bin/python -m tests.sim $(if $(SEED),--seed $(SEED) $(if $(ONLY),--only $(ONLY)) $(if $(TRACE),--trace), \
		--seeds $(or $(SEEDS),1000)) $(ARGS)

.PHONY: bench
bench: setup system-packages  ## Measure, with peers in the same run (ARGS=--help)
	.venv/bin/python -m benchmarks $(ARGS)

.PHONY: clean
clean:  ## Remove what was built in the checkout; the shared Rust target directory stays
	rm -rf .venv dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .fuzz $(EXTENSION)
	find $(CODE) -name __pycache__ -prune -exec rm -rf {} +
	@echo "Kept, shared with other checkouts: $(CARGO_TARGET_DIR)"

.PHONY: help
help:  ## This list
	@grep -hE '^[a-z-]+:.*  ## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*  ## /\1\t/' | expand -t 16
