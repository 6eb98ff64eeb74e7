# Needs Python 3.11 or newer, make, and a package index. `make help` explains.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

# Test processes, one a core; a test that is left over goes to whoever is done first.
PARALLEL := --numprocesses logical --maxprocesses 4 --dist worksteal

.PHONY: help demo ui test check soak bench bench-exports bench-serve bench-page bench-prefix bench-workers bench-ray bench-full format clean
.DEFAULT_GOAL := help

help:  ## say what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/.demo  ## train, compare and try the bundled encoder on bundled reviews
	$(BIN)/lorafit demo

ui: .venv/.ui  ## the page in the browser: train, compare and try without code
	$(BIN)/lorafit ui

test: .venv/.dev  ## the fast tests, under six minutes on two cores
	$(BIN)/pytest $(PARALLEL) -m "not slow and not soak"

check: .venv/.dev  ## the whole gate: format, lint, types, import layers, all tests; under twenty minutes
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest $(PARALLEL) -m "not soak"

soak: .venv/.dev  ## the tests with long counts
	$(BIN)/pytest -m soak

bench: .venv/.dev  ## measure the main job into results/, and the speed beside plain and tuned peers; about ten minutes
	$(BIN)/python benchmarks/main_job.py
	$(BIN)/python benchmarks/handover.py
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/table.py

bench-exports: .venv/.dev  ## export the demo's bundle to every form, and measure each; about ten minutes
	$(BIN)/python benchmarks/exports.py
	$(BIN)/python benchmarks/table.py

bench-serve: .venv/.dev  ## measure the service beside bulk prediction and a plain service; about a quarter of an hour
	$(BIN)/python benchmarks/serve.py
	$(BIN)/python benchmarks/table.py

bench-page: .venv/.dev  ## measure how long a visitor of the page waits; about five minutes
	$(BIN)/python benchmarks/page.py
	$(BIN)/python benchmarks/table.py

bench-prefix: .venv/.dev  ## measure what running the frozen layers once is worth; about half an hour
	$(BIN)/python benchmarks/prefix.py
	$(BIN)/python benchmarks/table.py

bench-workers: .venv/.dev  ## measure two processes beside one; about eight minutes
	$(BIN)/python benchmarks/workers.py
	$(BIN)/python benchmarks/table.py

bench-ray: .venv/.dev  ## measure a folder answered on Ray beside a file by one process; about a quarter of an hour
	$(BIN)/python benchmarks/ray_scoring.py
	$(BIN)/python benchmarks/capacity.py
	$(BIN)/python benchmarks/table.py

bench-full: .venv/.dev  ## measure everything published into results/, beside every peer; hours
	$(BIN)/python benchmarks/main_job.py
	$(BIN)/python benchmarks/handover.py
	$(BIN)/python benchmarks/speed.py --full
	$(BIN)/python benchmarks/accuracy.py
	$(BIN)/python benchmarks/duplicates.py
	$(BIN)/python benchmarks/exports.py
	$(BIN)/python benchmarks/bulk.py
	$(BIN)/python benchmarks/serve.py
	$(BIN)/python benchmarks/page.py
	$(BIN)/python benchmarks/prefix.py
	$(BIN)/python benchmarks/workers.py
	$(BIN)/python benchmarks/ray_scoring.py
	$(BIN)/python benchmarks/capacity.py
	$(BIN)/python benchmarks/quality.py  # rows that stand are not measured again
	$(BIN)/python benchmarks/table.py

format: .venv/.dev  ## mend format and imports
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove the environment and what tools left
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

.venv/.python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lorafit needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv .venv
	touch $@

.venv/.demo: .venv/.python pyproject.toml constraints.txt
	$(INSTALL) '.[demo]'
	touch $@

.venv/.ui: .venv/.python pyproject.toml constraints.txt
	$(INSTALL) '.[demo,ui,explain]'
	touch $@ .venv/.demo

.venv/.dev: .venv/.python pyproject.toml constraints.txt
	$(INSTALL) '.[demo,dev]'
	touch $@ .venv/.demo .venv/.ui

