# Everything a newcomer needs: `make run` and `make test`. Each sets the machine up by itself.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
TEST_STAMP := $(VENV)/.set-up-tests
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)

# Of `make image`: which image, what builds it (docker, podman or buildah), from which base if not from the Dockerfile's,
# and what else the builder is to be told.
VARIANT ?= cpu
BUILDER ?= docker
BASE ?=
BUILD_OPTIONS ?=

.PHONY: help setup run test test-all test-kube chaos lint proto image clean
.DEFAULT_GOAL := help

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(STAMP)  ## Make .venv with everything pinned, compile the kernels, and fetch SmolLM2
	@$(BIN)/python -m workers.native.build >/dev/null
	@$(BIN)/phalanx models pull smollm2 >/dev/null

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"Phalanx needs Python 3.11 or later, and $(PYTHON) is {sys.version.split()[0]}: make PYTHON=python3.12 ...")'
	@echo "Setting up $(VENV) (some minutes the first time: PyTorch and Ray are large)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

run: setup  ## Start a local two-rank cluster, ask it a question, stream the answer
	@$(BIN)/phalanx demo

$(TEST_STAMP): $(STAMP)
	@echo "Installing Triton, whose interpreter and compiler test the kernels for GPUs"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[kernels]'
	@touch $@

test: setup $(TEST_STAMP) lint  ## Lint, types and the tests
	@$(BIN)/python -m pytest -m "not slow"

test-all: setup $(TEST_STAMP) lint  ## The same with every layout of every model
	@$(BIN)/python -m pytest

test-kube: setup  ## The chart's pods on the image of `make image BUILDER=podman` (needs root and podman)
	@$(BIN)/python -m pytest tests/k8s/test_built_image.py

FAULTS ?= 100
chaos: setup  ## A storm of FAULTS=100 faults over network namespaces, and what became of every stream (needs root)
	@$(BIN)/python -m tests.chaos.storm --faults $(FAULTS)

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

proto: setup  ## Generate the gRPC stubs from proto/phalanx/v1/*.proto
	@$(BIN)/python proto/generate.py

image:  ## Build the container image phalanx:VERSION-VARIANT (VARIANT=cpu or cuda, BUILDER=docker or podman)
	@$(BUILDER) build --file k8s/Dockerfile --build-arg VARIANT=$(VARIANT) $(if $(BASE),--build-arg BASE=$(BASE)) \
		$(BUILD_OPTIONS) --tag phalanx:$(VERSION)-$(VARIANT) .

clean:  ## Remove the virtual environment and caches (not the models)
	rm -rf $(VENV) *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
