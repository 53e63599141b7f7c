# agentrun: `make demo` shows the main job, `make test` proves it. Both install what they need.

PREFIX ?= /usr
DESTDIR ?=
BINDIR := $(PREFIX)/bin
SBINDIR := $(PREFIX)/sbin
UNITDIR ?= $(PREFIX)/lib/systemd/system
LIBEXECDIR := $(PREFIX)/libexec/agentrun
PYTHON ?= $(firstword $(wildcard /usr/bin/python3) $(shell command -v python3))
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' agentrun/__init__.py)

VENV ?= .venv
VENV_STAMP := $(VENV)/.installed
VM := tests/vm/vm
CTL := $(VENV)/bin/python -c "from agentrun.cli.main import main; main()"

.PHONY: help install uninstall bpf demo test test-all reference lint native-test vm-test scx-test admission-test boost-test replay-test rates-test trace-test short-calls-test bench bench-isolation bench-scx clean
.DELETE_ON_ERROR:

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

install: ## install agentrun below PREFIX (and DESTDIR)
	PYTHON='$(PYTHON)' BINDIR='$(BINDIR)' SBINDIR='$(SBINDIR)' UNITDIR='$(UNITDIR)' \
		LIBEXECDIR='$(LIBEXECDIR)' DESTDIR='$(DESTDIR)' VERSION='$(VERSION)' sh agentrun/front/install.sh

bpf: ## build the BPF objects (clang); `make install` takes along what was built
	$(MAKE) -C bpf

uninstall: ## remove what install put there; configuration and records stay
	rm -f $(addprefix $(DESTDIR)$(BINDIR)/,agentrun agentrun-runc agentrun-crun agentrunctl)
	rm -f $(DESTDIR)$(SBINDIR)/agentrund
	rm -f $(addprefix $(DESTDIR)$(UNITDIR)/,agentrund.service agentrun-bpf.service agentrun-net.service \
		agentrun-scx.service)
	rm -rf $(DESTDIR)$(LIBEXECDIR) $(addprefix $(DESTDIR)$(LIBEXECDIR),.new .old)
	[ -n '$(DESTDIR)' ] || rmdir /sys/fs/cgroup/agentrun-starts-* 2>/dev/null || true

reference: $(VENV_STAMP) ## write the schemas and references that are made from code
	$(CTL) policy schema >configs/policy.schema.json
	$(CTL) policy reference >docs/policy-reference.md
	$(CTL) record schema >configs/record.schema.json
	$(CTL) record reference | \
		sed -i -e '/^<!-- fields/,/^<!-- end of fields/{//!d}' -e '/^<!-- fields/r /dev/stdin' docs/records.md

demo: ## show the main job: tool calls of one container, each in its own cgroup (DEMO=host: no VM)
	tests/demo/run

test: ## everything that CI runs: lint, native tests, integration tests in guests of two kinds
	tests/run all

test-all: ## the same with every engine, runtime and driver for every case (test: each two of them)
	tests/run all --matrix whole

lint: $(VENV_STAMP) ## format, lint, types, the oldest Python, shell scripts
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/vermin -t=3.10- --no-tips --violations agentrun
	$(VENV)/bin/shellcheck agentrun/front/agentrun.in agentrun/front/install.sh tests/demo/run

native-test: $(VENV_STAMP) bpf ## unit and contract tests, without a VM (root makes them complete)
	$(VENV)/bin/python -m pytest -q --durations=10 $(TESTS)

vm-test: bpf ## integration tests on real docker, podman, containerd, runc and crun, in guests of both kinds
	tests/run vm

scx-test: bpf ## the CPU scheduler, which is opt-in, in the test VM: what it must not break (not part of `make test`)
	tests/run vm scx

admission-test: bpf ## calls that wait before they start, in the test VM (its timing needs a quiet machine; not part of `make test`)
	tests/run vm admission

rates-test: ## network rates measured on docker and podman, in the test VM (wants a quiet machine; not part of `make test`)
	tests/run vm rates

boost-test: bpf ## what short calls and idle guarantees get, in the test VM (wants a quiet machine; not part of `make test`)
	tests/run vm boost

replay-test: ## `agentrunctl replay` with real containers, in the test VM (ten minutes; not part of `make test`)
	tests/run vm replay

short-calls-test: ## 2,000 calls that end at once, by each engine and runtime, in the fast guest (an hour; not part of `make test`)
	tests/run vm many-calls

trace-test: bpf ## `agentrunctl trace` with bcc, in the test VM (minutes; not part of `make test`)
	tests/run vm trace

bench: $(VENV_STAMP) ## bare runtimes against agentrun; rewrites the table in docs/benchmarks.md
	$(VENV)/bin/python tests/bench/bench.py

bench-isolation: $(VENV_STAMP) ## HIGH against LOW in eight arms, in the test VM (QUICK=1, TRACES=DIR, OUT=FILE)
	$(VENV)/bin/python tests/bench/isolation.py

bench-scx: bpf ## the CPU scheduler against EEVDF, in the test VM
	$(VM) run --name bench-scx --tcg-thread single -- \
		python3 -m pytest -s -m "figures and not counted" tests/integration/test_scx.py
	$(VM) run --name bench-scx-counted --smp 1 --tcg-thread counted -- \
		python3 -m pytest -s -m counted tests/integration/test_scx.py

$(VENV_STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV) 2>/dev/null || { { apt-get install -y -q python3-venv || \
		{ apt-get update -q && apt-get install -y -q python3-venv; }; } && $(PYTHON) -m venv $(VENV); }
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	touch $@

clean: ## remove what was built here (the VM image stays in its cache)
	$(MAKE) -C bpf clean
	rm -rf $(VENV) *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis build/test-logs
