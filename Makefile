# One environment holds both trees. `make` alone lists the targets.
#
#   make test ARGS="-k text"        more arguments for pytest (or for the demo)
#   make test PYTHON=/usr/bin/python3.11 VENV=/somewhere/else

PYTHON ?= python3.11
VENV ?= .venv
ARGS ?=
RUN := $(VENV)/bin/python -m

.DEFAULT_GOAL := help
.PHONY: help env demo test test-all lint format clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 14

env: ## create the environment; make it anew when a requirement list changed
	@bash tools/environment.sh "$(PYTHON)" "$(VENV)"

demo: env ## make a video from a prompt with the tiny release
	$(RUN) tools.demo $(ARGS)

test: env ## the quick suite
	$(RUN) pytest -m "not slow" $(ARGS)

test-all: env ## every test, the slow ones too
	$(RUN) pytest $(ARGS)

lint: env ## ruff and pyright; changes nothing
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) pyright --pythonpath $(VENV)/bin/python

format: env ## let ruff repair and format the code
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

clean: ## remove caches and stray compiler output; keeps the environment, runs/ and outputs/
	find . -path "./$(VENV)" -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf .pytest_cache .ruff_cache rank_0 kernel_meta
