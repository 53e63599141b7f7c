# agentrun: `make demo` shows the main job, `make test` proves it. Both install what they need.

PREFIX ?= /usr
DESTDIR ?=
BINDIR := $(PREFIX)/bin
LIBEXECDIR := $(PREFIX)/libexec/agentrun
PYTHON ?= $(firstword $(wildcard /usr/bin/python3) $(shell command -v python3))
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' agentrun/__init__.py)

VENV ?= .venv
VENV_STAMP := $(VENV)/.stamp
VM := tests/vm/vm

.PHONY: help install uninstall demo test lint unit contract vm-test bench clean
.DELETE_ON_ERROR:

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

install: ## install agentrun below PREFIX (and DESTDIR)
	PYTHON='$(PYTHON)' BINDIR='$(BINDIR)' LIBEXECDIR='$(LIBEXECDIR)' DESTDIR='$(DESTDIR)' \
		VERSION='$(VERSION)' sh agentrun/front/install.sh

uninstall: ## remove what install put there; configuration and records stay
	rm -f $(addprefix $(DESTDIR)$(BINDIR)/,agentrun agentrun-runc agentrun-crun agentrunctl)
	rm -rf $(DESTDIR)$(LIBEXECDIR)
