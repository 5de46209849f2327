# Everything a developer runs. Each target prepares what it needs; nothing is installed by hand.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup venv packages test test-nightly lint format bench bench-full peers demo lock clean

PYTHON ?=
JOBS ?= 2
ARGS ?=
export PYTHON JOBS

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: venv packages ## Make .venv and install missing tools (tools: as root, with apt)

venv:
	@.ci/setup venv

packages:
	@.ci/setup packages

test: setup ## Run the tests; JOBS=2 ARGS="-k name" COVERAGE=1
	@.ci/test $(ARGS)

test-nightly: setup ## Run all tests, also the slow ones
	@COVERAGE=$${COVERAGE:-1} .ci/test -m "nightly or not nightly" $(ARGS)

lint: venv ## Check style, types, imports and the layout of the repository
	@.venv/bin/python -m ruff check .
	@.venv/bin/python -m ruff format --check .
	@.venv/bin/python -m mypy
	@.venv/bin/python -m mypy --config-file .ci/mypy-windows.ini
	@.venv/bin/lint-imports
	@.venv/bin/python .ci/layout.py

format: venv ## Format the code
	@.venv/bin/python -m ruff format .
	@.venv/bin/python -m ruff check --fix .

bench: setup peers ## Measure beside other tools, 1 GiB, minutes; ARGS="full --rounds 3"
	@.venv/bin/python -m benchmarks $(ARGS)

bench-full: setup peers ## The same with a disk of 4 GiB
	@.venv/bin/python -m benchmarks --size 4GiB $(ARGS)

peers:
	@.ci/setup bench

demo: setup ## Back up, browse, damage, verify and restore a disk made for it
	@PATH="$(CURDIR)/.venv/bin:$$PATH" docs/demo/run.sh

lock: venv ## Write the installed versions to requirements.lock
	@.venv/bin/python -m pip freeze --exclude-editable >requirements.lock

clean: ## Remove everything that is not in the repository's history
	@rm -rf .venv build dist .coverage-data .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
