# Installs everything into VENV and changes nothing else on the machine.

VENV ?= .venv
BIN := $(VENV)/bin
# The first suitable Python; if there is none, any Python, so that the error message below can name it.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& { echo $$python; exit; }; done; echo python3)
# Number of parallel test processes; each uses one thread, so that they do not compete for cores.
JOBS ?= 2
# Real image sets for the accuracy check of `make bench`, which is left out where there are none.
DATA ?= ../shared/data
# Tests that share what is slow to make run in one process; the slowest groups start first.
IN_GROUPS := --dist loadgroup --no-loadscope-reorder
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help venv demo lint test azure-sdk real-weights coverage docs bench gpu clean
.DELETE_ON_ERROR:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(VENV)/.installed-dev ## create .venv if it is missing and install with the extras test, dev and yolo

demo: $(VENV)/.installed ## train, package and serve a detector on a small data set and query it
	$(BIN)/python examples/demo.py --output demo

lint: $(VENV)/.installed-dev ## check style, formatting, types and import layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(VENV)/.installed-dev ## run the whole test suite
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n $(JOBS) $(IN_GROUPS)

azure-sdk: .venv-azure/.installed ## install Azure's Python SDK in .venv-azure, for the tests that write jobs with it

.venv-azure/.installed: tests/azure/requirements.txt | $(BIN)/python
	$(BIN)/python -m venv .venv-azure
	.venv-azure/bin/python -m pip install --disable-pip-version-check --quiet -r $<
	@touch $@

real-weights: $(VENV)/.installed-dev ## write published weights into weights/, for tests and benchmarks
	$(BIN)/python benchmarks/real_weights.py weights

coverage: $(VENV)/.installed-dev ## run the whole test suite and report the lines of trainer/ and serving/ it misses
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n $(JOBS) $(IN_GROUPS) \
		--cov --cov-report=term --cov-report=html

docs: $(VENV)/.installed-dev ## write the pages of docs/ that are generated from the code
	$(BIN)/python -m tools.settings_page > docs/settings.md
	$(BIN)/python -m tools.automode_page > docs/automode.md
	$(BIN)/python -m tools.licences_page > docs/licences.md

bench: $(VENV)/.installed-bench ## compare with alternatives: the quick CPU benchmarks, 15 minutes
	$(BIN)/python benchmarks/training.py --only resnet50 yolo11n fasterrcnn
	$(BIN)/python benchmarks/input_pipeline.py --only lines images loader --rounds 2
	$(BIN)/python benchmarks/startup.py --rounds 1
	$(BIN)/python benchmarks/evaluation.py --images 500
	$(BIN)/python benchmarks/serving.py --models resnet18 --contenders ceiling serve mlflow litserve \
		--rounds 2 --seconds 5 --warm-up 2
	$(BIN)/python benchmarks/real_weights.py weights --only lite0
	test ! -d $(DATA) || $(BIN)/python benchmarks/few_images.py --data-root $(DATA) --only few --rounds 1 \
		--image-size 128 --results benchmarks/few_images-quick.json

gpu: $(VENV)/.installed-bench ## check and measure on one GPU in ten minutes; results in benchmarks/gpu/
	benchmarks/gpu.sh $(BIN)/python benchmarks/gpu

clean: ## remove .venv, the demo, builds and caches (keeps runs/)
	rm -rf $(VENV) .venv-azure demo build dist *.egg-info
	rm -rf .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -type d -name __pycache__ -prune -exec rm -rf {} +

# Stamp files: reinstall only when pyproject.toml changes.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(INSTALL) -e '.[yolo]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(INSTALL) -e '.[test,dev,yolo]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-bench: pyproject.toml | $(BIN)/python
	$(INSTALL) -e '.[bench,yolo]'
	@touch $(VENV)/.installed $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
		echo "Python 3.11, 3.12 or 3.13 is needed; $(PYTHON) is: $$($(PYTHON) --version 2>&1)." >&2; \
		echo "If one is installed elsewhere, run: make PYTHON=/path/to/python3.12 ..." >&2; \
		exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -f $@; \
		echo "$(PYTHON) could not create $(VENV); on Debian and Ubuntu: apt-get install python3-venv" >&2; \
		exit 1; }
