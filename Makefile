# `make demo` and `make test` do all their own set-up on a fresh machine with Python 3.11.
PYTHON ?= python3
VENV_PYTHON := .venv/bin/python
PROMPT ?= Why is the sky blue? Answer in two sentences.
export BATON_CACHE ?= $(HOME)/.cache/baton

# Engines are shared by the tests of one process, so only tests without them run side by side. Each process imports
# everything; compiled code is kept, beside the sources or not, or a quarter of their time goes into compiling it again.
PYC := PYTHONDONTWRITEBYTECODE= PYTHONPYCACHEPREFIX=$(BATON_CACHE)/pycache
PURE := $(PYC) $(VENV_PYTHON) -m pytest -m "not engine and not ray" -q -n auto --dist loadfile

include models/Makefile.inc

.PHONY: help setup model demo test check proto chart openapi bench clean
.DEFAULT_GOAL := help

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup:  ## Make .venv and install everything, once
	@$(PYTHON) scripts/install.py cpu

model: setup  ## Prepare the demo's model, once
	@$(VENV_PYTHON) scripts/prepare_demo_model.py

demo: model  ## Ask a real model a question through prefill, handoff and decode: make demo PROMPT="..."
	@PROMPT='$(subst ','\'',$(PROMPT))'; bash scripts/demo.sh "$$PROMPT"

test: setup model  ## Run all tests, engines included
	@$(PURE); pure=$$?; $(VENV_PYTHON) -m pytest -m "engine or ray" && exit $$pure

check: setup  ## Format, lint, types, import direction and the pure tests; seconds
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m mypy
	.venv/bin/lint-imports
	$(PURE)

proto: setup  ## Generate the stubs in baton/ from proto/
	@PYTHON=$(VENV_PYTHON) scripts/generate_proto.sh

chart: setup  ## Write the chart's values.yaml, schema and dashboard from scripts/chart_values.py
	$(VENV_PYTHON) scripts/generate_chart.py

openapi: setup  ## Write interface/http/openapi.json by what the HTTP readers take
	$(VENV_PYTHON) scripts/generate_openapi.py

bench: setup  ## Compare with vLLM's own server on this machine; writes docs/benchmarks.json
	$(VENV_PYTHON) benchmarks/compare.py

clean:  ## Remove .venv and caches of the tools
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
