# Each command does its own set-up first and repeats none of it: see scripts/setup.sh.
.DEFAULT_GOAL := help
PYTHON_BIN := .venv/bin
UV_VERSION := 0.13.9

.PHONY: help demo demo-slurm demo-sites test check format bench lock setup clean

help:  ## Say what there is to make
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo:  ## Run the main job on real input, on this machine
	@scripts/setup.sh demo
	@examples/xmm/demo.sh

demo-slurm:  ## The same on a real Slurm, started on this machine
	@scripts/setup.sh demo-slurm
	@examples/xmm/demo-slurm.sh

demo-sites:  ## At four sites at once: two Slurms, Grid Engine, HTCondor; and a map of what ran where
	@scripts/setup.sh demo-sites
	@examples/xmm/demo-sites.sh

# Three files at a time on two cores, the longest first: most tests wait, for guests that boot and for faults that take their time.
test: check  ## Run the checks, then the whole test suite
	@$(PYTHON_BIN)/pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder \
		tests/e2e tests/contract tests/properties tests/simulation tests/unit

check: setup  ## Lint, formatting, strict typing, import rules
	@$(PYTHON_BIN)/ruff check
	@$(PYTHON_BIN)/ruff format --check
	@$(PYTHON_BIN)/mypy
	@$(PYTHON_BIN)/lint-imports

format: setup  ## Put the source in its usual form
	@$(PYTHON_BIN)/ruff check --fix-only
	@$(PYTHON_BIN)/ruff format

bench: setup  ## Measure, print and write the figures
	@$(PYTHON_BIN)/python -m benchmarks

setup:  ## Set up for tests and development
	@scripts/setup.sh test

# The lock: exact versions and hashes of what pyproject.toml asks for. Names no index, so that pip's own settings hold.
COMPILE := $(PYTHON_BIN)/uv pip compile --quiet --generate-hashes --no-emit-index-url --no-annotate \
	--python-version 3.11 --custom-compile-command 'make lock' --upgrade
lock: setup  ## Renew the requirements locks from pyproject.toml
	@$(PYTHON_BIN)/python -m pip --quiet install uv==$(UV_VERSION)
	@$(COMPILE) pyproject.toml --extra plots --group dev --output-file requirements-dev.txt
	@$(COMPILE) pyproject.toml --extra plots --group build --constraints requirements-dev.txt --output-file requirements.txt
	@$(COMPILE) requirements-data.in --no-deps --output-file requirements-data.txt

clean:  ## Remove what set-up and the checks made in this folder
	@rm -rf .venv build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
