# `make demo` and `make test` set up a virtual environment of their own in .venv.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.DELETE_ON_ERROR:
.PHONY: demo test test-all lint docs clean

demo: .venv/demo.stamp ## evolve a loss and train with it; DATA_DIR=DIR for a prepared CIFAR-10
	$(BIN)/edl demo $(if $(DATA_DIR),--data-dir "$(DATA_DIR)") $(ARGS)

test: .venv/dev.stamp ## the quick tests; ARGS="-m slow" for the slow ones, ARGS="tests/test_pairs.py" for some
	$(PYTEST) -m "not slow" $(ARGS)

test-all: .venv/dev.stamp ## all tests
	$(PYTEST) $(ARGS)

lint: .venv/dev.stamp ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: .venv/dev.stamp ## the documentation, as a site in build/docs
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -c docs . build/docs

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "edl_jax needs Python 3.11 or newer; set PYTHON=python3.12, say"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/demo.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-compile --editable ".[studies]"
	touch $@

.venv/dev.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-compile --editable ".[dev]"
	touch $@

clean: ## remove the environment and caches, not the runs
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
