# Everything a newcomer types. `make` alone lists the targets; each one sets itself up first.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.SILENT:
.DEFAULT_GOAL := help

VENV := .venv
PYTHON := $(VENV)/bin/python
PIP := $(PYTHON) -m pip --disable-pip-version-check --quiet --quiet
PYTEST := $(PYTHON) -m pytest
# What runs a second time with the compiler off: the code that other processes' memory and other
# machines' bytes reach first.
PLAIN_TESTS = $(wildcard tests/shm tests/iscsi/wire tests/ppe/rnic)
# The compiled tests in two halves of about the same length: what lies here, and everything else.
ONE_HALF := tests/iscsi tests/host
# Where `make experiments` keeps its results; with INTO= it goes on with a set that was interrupted.
RESULTS = $(or $(INTO),bench/results/lab/$(shell date +%F-%H%M%S))
BENCHMARKS := queue wait engine rdma iscsi iser

# What `make test` and `make check` make beside each other, two at a time (JOBS=1: one after the
# other, shown as it goes), in this order: the longest first, and guests, each an emulated CPU, beside
# compiled tests. A further guest run belongs behind the first half: it then starts when the guest
# before it has ended, beside the other half.
JOBS := 2
TESTS := test-one-half test-other-half lint test-plain
CHECKS := test-rdma test-one-half test-guest test-other-half lint test-plain
BESIDE = MAKE='$(MAKE)' JOBS=$(JOBS) SET_UP=yes .ci/beside

.PHONY: help setup setup-bench venv system-packages demo compile check test test-fast test-plain test-compiled \
	test-one-half test-other-half lint soak fuzz conformance conformance-all guest-image test-guest test-rdma \
	bench bench-calls experiments lock clean

help: ## list the targets
	awk -F ':[^#]*## ' '/^[a-z-]+:[^#]*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

# With SET_UP=yes it was done just now.
setup: $(if $(SET_UP),,system-packages venv) ## virtual environment, locked packages, reference tools; quick when done
	$(if $(SET_UP),,$(MAKE) --no-print-directory $(VENV)/.installed)

setup-bench: setup # a make of its own, because `venv` may just have removed the stamp
	$(MAKE) --no-print-directory $(VENV)/.installed-bench

# A test of its own, not a file rule: a virtual environment copied from another machine has its
# files and still does not run.
venv:
	if $(PYTHON) -c 'import sys, pip; assert sys.version_info >= (3, 11)' 2>/dev/null; then exit 0; fi
	find_python() {
		for name in python3 python3.14 python3.13 python3.12 python3.11; do
			if $$name -c 'import sys, venv, ensurepip; assert sys.version_info >= (3, 11)' \
				2>/dev/null; then echo $$name; return; fi
		done
	}
	found=$$(find_python)
	if [ -z "$$found" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
		echo 'setup: installing python3 and python3-venv'
		export DEBIAN_FRONTEND=noninteractive
		apt-get update -qq
		apt-get install -y -qq --no-install-recommends python3 python3-venv >/dev/null
		found=$$(find_python)
	fi
	if [ -z "$$found" ]; then
		echo 'setup: needs Python 3.11 or newer with venv: apt-get install python3 python3-venv' >&2
		exit 1
	fi
	echo "setup: $$($$found --version), virtual environment in $(VENV)"
	$$found -m venv --clear $(VENV)

$(VENV)/.installed: requirements.lock pyproject.toml
	echo 'setup: installing the locked packages'
	$(PIP) install --require-hashes -r requirements.lock
	$(PIP) install --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/.installed-bench: requirements-bench.lock $(VENV)/.installed
	echo 'setup: installing what the benchmarks compare with'
	$(PIP) install --require-hashes -r requirements-bench.lock
	touch $@

# Never fails: what cannot be installed is listed, and the tests that need it are counted as not
# run. (With CI=true in the environment they fail instead; tests/conftest.py.)
system-packages:
	PATH=$$PATH:/usr/sbin:/sbin
	missing=()
	need() { command -v "$$1" >/dev/null || missing+=("$$2"); }
	need gcc gcc
	need g++ g++
	need tgtd tgt
	need iscsi-ls libiscsi-bin
	need qemu-img qemu-utils
	need sg_vpd sg3-utils
	need qemu-system-x86_64 qemu-system-x86
	need debugfs e2fsprogs
	need tshark tshark
	compgen -G '/usr/lib/*/qemu/block-iscsi.so' >/dev/null || missing+=(qemu-block-extra)
	test -d /usr/lib/python3/dist-packages/pyverbs || missing+=(python3-pyverbs)
	test -e /usr/include/rdma/rdma_cma.h || missing+=(libibverbs-dev librdmacm-dev)
	if [ $${#missing[@]} = 0 ]; then exit 0; fi
	list="$${missing[*]}"
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
		echo "setup: these system packages are missing, so the tests that need them do not run:"
		echo "    sudo apt-get install --no-install-recommends $$list"
		exit 0
	fi
	echo "setup: installing $$list"
	export DEBIAN_FRONTEND=noninteractive
	policy=/usr/sbin/policy-rc.d
	if [ ! -e $$policy ]; then # tgt's package would start a target that listens on every address
		trap 'rm -f '$$policy EXIT
		printf '#!/bin/sh\nexit 101\n' >$$policy
		chmod 755 $$policy
	fi
	if ! { apt-get update -qq && \
		apt-get install -y -qq --no-install-recommends $$list >/dev/null; }; then
		echo "setup: apt could not install $$list; the tests that need them do not run" >&2
	elif [[ " $$list " == *' tgt '* ]] && command -v systemctl >/dev/null; then
		systemctl disable tgt >/dev/null 2>&1 || true # nor should it start at the next boot
	fi

demo: setup ## a pinned engine moves verified iSCSI reads and writes
	$(PYTHON) -m ppe demo

# All of them run even when one fails: one look shows everything that is wrong.
test: setup compile ## lint, the tests as plain Python, the tests compiled
	$(BESIDE) 'make test' $(TESTS)

check: setup compile ## all that guards a submission: make test, and the virtual machines
	$(BESIDE) 'make check' $(CHECKS)

# What both halves of the compiled tests need, by two processes: numba compiles one function at a
# time. What is wrong here is wrong in the tests, which say it better.
compile: setup
	echo 'compiling for this processor'
	$(PYTHON) -c 'import host.inline, iscsi.session.doors, iscsi.target.mirror_doors' 2>/dev/null &
	$(PYTHON) -c 'import ppe.cycle.services.datamover, ppe.cycle.services.rdma, ppe.cycle.services.iser, iscsi.target.pump' 2>/dev/null || true
	wait

test-fast: setup ## the tests that take less than a quarter of a second each
	$(PYTEST) -q -m 'not slow and not soak and not interop and not guest and not rdma_guest'

test-plain: setup # the same source with the compiler switched off
	test -n '$(PLAIN_TESTS)' || { echo 'no tests to run as plain Python' >&2; exit 1; }
	echo 'plain Python (NUMBA_DISABLE_JIT=1): $(PLAIN_TESTS)'
	NUMBA_DISABLE_JIT=1 $(PYTEST) -q $(PLAIN_TESTS)
	echo 'plain Python: the engine in its caller'"'"'s thread, under tests/host'
	NUMBA_DISABLE_JIT=1 $(PYTEST) -q tests/host -k inline

test-compiled: test-one-half test-other-half

test-one-half: setup
	echo 'compiled: $(ONE_HALF)'
	$(PYTEST) -q $(ONE_HALF)

test-other-half: setup
	echo 'compiled: tests without $(ONE_HALF)'
	$(PYTEST) -q $(ONE_HALF:%=--ignore=%)

lint: setup ## ruff, mypy --strict, the import law
	failed=
	run() { echo "$$*"; "$(VENV)/bin/$$@" || failed+=" $$1"; }
	run ruff check --quiet .
	run ruff format --check --quiet .
	run mypy
	run lint-imports --no-cache
	if [ -n "$$failed" ]; then echo "lint failed in:$$failed" >&2; exit 1; fi

conformance: setup ## every suite of libiscsi's test tool, on the LUNs they want (WRITE=1: to docs)
	$(PYTHON) -m tests.interop.conformance $(if $(WRITE),--write)

conformance-all: setup ## the same in every placement of the target, and on LUNs in files
	failed=
	for placement in stream datamover engine; do
		$(PYTHON) -m tests.interop.conformance --placement "$$placement" || failed+=" $$placement"
		$(PYTHON) -m tests.interop.conformance --placement "$$placement" --file \
			|| failed+=" $$placement-file"
	done
	if [ -n "$$failed" ]; then echo "conformance failed in:$$failed" >&2; exit 1; fi

soak: setup ## minutes long: a thousand killed clients, ten million sleeps
	$(PYTEST) -m soak -o timeout=0 -o faulthandler_timeout=0

fuzz: setup ## hostile bytes at both roles (FUZZ_SECONDS=120 SEED=7); guilty ones are kept
	$(PYTHON) -m tests.robustness.fuzz --seconds $(or $(FUZZ_SECONDS),120) $(if $(SEED),--seed $(SEED))
	$(PYTHON) -m tests.robustness.simulator --seed $(or $(SEED),1) --steps 3000 --faults 0.02 \
		--seconds $(or $(FUZZ_SECONDS),120)

guest-image: setup ## the virtual machine for test-guest, from Debian's packages (140 MB, once)
	$(PYTHON) -m tests.guest.image

test-guest: guest-image ## Linux's own initiator and target, and pulled plugs, in a virtual machine
	$(PYTEST) -q -m guest -o faulthandler_timeout=400 tests

test-rdma: setup ## verbs, the wire and iSER: rxe and siw in a virtual machine (360 MB, once)
	$(PYTHON) -m tests.guest.rdma_image
	$(PYTHON) -m tests.guest.debian13
	$(PYTEST) -q -m rdma_guest -o faulthandler_timeout=400 tests

bench: setup-bench ## every benchmark with its references; results in bench/results
	for name in $(BENCHMARKS); do $(PYTHON) -m ppe bench "$$name"; done

bench-calls: setup-bench ## what one call costs as Python sees it (pytest-benchmark)
	$(PYTEST) bench/calls --benchmark-only -o 'python_files=bench_*.py' -o timeout=0

# What failed does not keep the others from running, nor the page from being made.
experiments: setup-bench ## the built-in experiments in their short form, and a page of them (INTO=DIR)
	into='$(RESULTS)' failed=
	for file in bench/lab/experiments/*.toml; do
		name=$$(basename "$$file" .toml)
		if [ -e "$$into/$$name/plan.json" ]; then
			$(PYTHON) -m ppe experiment run "$$into/$$name" --resume || failed+=" $$name"
		else
			$(PYTHON) -m ppe experiment run "$$name" --short --into "$$into/$$name" || failed+=" $$name"
		fi
	done
	$(PYTHON) -m ppe experiment report "$$into"
	if [ -n "$$failed" ]; then
		echo "runs failed in:$$failed; again: make experiments INTO=$$into" >&2
		exit 1
	fi

# Needs uv (any recent version). Hashes are of every file of a release, so one lock serves every
# platform; the lock names no index.
lock: # renew both lock files within pyproject.toml's bounds
	uv=$$(PATH=$$PATH:$(VENV)/bin command -v uv) || { echo 'make lock needs uv' >&2; exit 1; }
	compile() {
		"$$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes \
			--no-emit-index-url --custom-compile-command 'make lock' --upgrade pyproject.toml "$$@"
	}
	compile --group dev --output-file requirements.lock
	compile --extra bench --extra plot --constraint requirements.lock \
		--output-file requirements-bench.lock

clean: ## remove the virtual environment and every cache of the tools
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
