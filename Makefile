# Each target does the set-up it needs: 'make test' works on a fresh machine. Variables:
#   FAMILY=onedl|openmmlab   which OpenMMLab packages (openmmlab lives in .venv-openmmlab)
#   PYTHON=python3.12        which interpreter the environment is made with
#   TORCH=torch==2.12.0 TORCH_INDEX=<url>   another torch, as for a GPU
#   MAX_JOBS=1               compilers at a time while mmcv is compiled
#   ARGS='...'               passed on by demo, test, test-all, bench and bench-losses
PYTHON ?= python3
FAMILY ?= onedl
TORCH ?=
TORCH_INDEX ?=
# Processes that share the tests; each computes with one thread.
TEST_JOBS ?= 2
ARGS ?=

VENV := $(if $(filter openmmlab,$(FAMILY)),.venv-openmmlab,.venv)
BIN := $(VENV)/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(TEST_JOBS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help env demo test test-all check format bench bench-losses clean clean-env

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' Makefile
	@sed -n 's/^#  /  variable /p' Makefile

env:  ## the set-up alone: a virtual environment with torch, the OpenMMLab family and densekd
	@command -v $(PYTHON) >/dev/null || { echo "make env: there is no '$(PYTHON)' here: install \
	Python 3.10, 3.11 or 3.12, or name one with PYTHON=..." >&2; exit 1; }
	@$(PYTHON) tools/setup_env.py --family '$(FAMILY)' --venv '$(VENV)' --torch '$(TORCH)' \
		--torch-index '$(TORCH_INDEX)'

demo: env  ## distil a small detector on the embedded digits
	@$(BIN)/densekd demo $(ARGS)

test: env  ## the quick tests and the doctests
	@$(PYTEST) $(ARGS)

test-all: env  ## the slow tests as well
	@$(PYTEST) --run-all $(ARGS)

check: env  ## am I done? format, lint, spelling, types, import layers, tests, doctests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/python tools/check_layers.py
	$(PYTEST)

format: env  ## let ruff format the code and repair what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: env  ## time a training step with and without distillation
	@$(BIN)/python tools/benchmark_step.py $(ARGS)

bench-losses: env  ## time and memory of each loss beside its plain formula
	@$(BIN)/python tools/benchmark_losses.py $(ARGS)

# data, work_dirs, demo results and the cache of compiled wheels are yours: nothing here deletes them.
clean:  ## remove what tools left behind: caches and packaging output
	rm -rf build dist densekd.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find densekd tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

clean-env:  ## remove the environment of FAMILY
	rm -rf $(VENV)
