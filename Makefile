# Shale. `make` prints the targets.

VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?=
COMPILER := $(if $(filter default,$(origin CXX)),,$(CXX))
DOCKER ?= docker
IMAGE ?= shale
MODELS ?= $(CURDIR)/demo/models

PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# cmake comes with the system or from PyPI; scikit-build-core takes either.
CMAKE_WHEEL := $(if $(shell command -v cmake 2>/dev/null),,cmake)
# Warnings of the C++ sources are errors in CI; a user's newer compiler must not stop a build.
WERROR ?= $(if $(CI),ON,OFF)
NATIVE := $(wildcard CMakeLists.txt cmake/*.cmake) $(shell find runner/kernels/csrc -type f 2>/dev/null)

READY := $(VENV)/.stamp-venv
BUILT := $(VENV)/.stamp-built
TESTED := $(VENV)/.stamp-test
LINTED := $(VENV)/.stamp-lint

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test check fmt soak bench wheel wheel-check image demo-model clean

help: ## print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# ---- the environment: each stamp stands for one thing that is up to date ------------------------

$(READY): tools/bootstrap.sh
	@PYTHON="$(PYTHON)" CXX="$(COMPILER)" tools/bootstrap.sh $(VENV)
	@touch $@

$(BUILT): pyproject.toml $(NATIVE) | $(READY)
	@echo "shale: installing (the kernels are compiled; this takes a minute or two the first time)"
	@$(PIP) install $(CMAKE_WHEEL) --group build
	@$(PIP) install --no-build-isolation --config-settings cmake.define.SHALE_WERROR=$(WERROR) --editable .
	@touch $@

$(TESTED): pyproject.toml | $(BUILT)
	@$(PIP) install --group test
	@touch $@

$(LINTED): pyproject.toml | $(BUILT)
	@$(PIP) install --group lint
	@touch $@

# ---- use ---------------------------------------------------------------------------------------

run: $(BUILT) ## start the server with the demo model (SHALE_HOST, SHALE_MODELS are respected)
	@export SHALE_MODELS="$${SHALE_MODELS:-$${OLLAMA_MODELS:-$(MODELS)}}"; \
	$(BIN)/python tools/announce.py & exec $(BIN)/shale serve

test: $(BUILT) $(TESTED) ## run the whole test suite
	@$(BIN)/python -m pytest

# ---- keep in order -----------------------------------------------------------------------------

CXX_SOURCES = $(shell find runner/kernels/csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' 2>/dev/null)

check: $(BUILT) $(LINTED) $(TESTED) ## format, lint, types, layering, C++ format, Dockerfile
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layering.py tests/test_docker.py
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)
	if test -x $(BIN)/hadolint; then $(BIN)/hadolint docker/Dockerfile; fi

fmt: $(BUILT) $(LINTED) ## format everything, fix what can be fixed
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

# ---- measure -----------------------------------------------------------------------------------

# llama.cpp is built here, natively, once. A Python that has llama_cpp already: SHALE_PEER_PYTHON=/path/to/python.
PEER_VENV := .venv-peer
SHALE_PEER_PYTHON ?= $(CURDIR)/$(PEER_VENV)/bin/python
PEER := $(if $(filter $(CURDIR)/$(PEER_VENV)/bin/python,$(SHALE_PEER_PYTHON)),$(PEER_VENV)/.stamp-built)
BENCH_FLAGS ?=

$(PEER_VENV)/.stamp-built: tools/bench/ldtilecfg.h
	@echo "shale: building llama.cpp for the comparison (about ten minutes, once)"
	@PYTHON="$(PYTHON)" CXX="$(COMPILER)" tools/bootstrap.sh $(PEER_VENV)
	@CXXFLAGS="-include $(CURDIR)/tools/bench/ldtilecfg.h" CMAKE_ARGS="-DGGML_NATIVE=ON" \
		$(PEER_VENV)/bin/python -m pip install --quiet --no-cache-dir --no-binary llama-cpp-python llama-cpp-python
	@touch $@

soak: $(BUILT) $(TESTED) ## 200 random loads and requests with kills and shrinking devices, outside the suite
	@$(BIN)/python tools/soak.py --steps 200

bench: $(BUILT) $(PEER) ## measure against llama.cpp on the same file (BENCH_FLAGS=--quick)
	@SHALE_PEER_PYTHON="$(SHALE_PEER_PYTHON)" $(BIN)/python -m tools.bench $(BENCH_FLAGS)

# ---- ship --------------------------------------------------------------------------------------

wheel: $(BUILT) ## build dist/shale-*.whl
	@$(PIP) wheel --no-build-isolation --no-deps --wheel-dir dist .
	@ls -l dist/*.whl

wheel-check: wheel ## install the wheel in a clean environment, outside the checkout, and ask the demo model
	@tools/check_wheel.sh dist/*.whl demo/models

image: ## build the container image (needs Docker)
	$(DOCKER) build --file docker/Dockerfile --tag $(IMAGE) .

demo-model: $(BUILT) ## train the demo model again (45 minutes on two cores; installs torch)
	@$(PIP) install --group train
	$(BIN)/python demo/data.py
	$(BIN)/python demo/train.py
	$(BIN)/python demo/export.py

clean: ## remove what was built, the environment included
	rm -rf $(VENV) $(PEER_VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis demo/work bench-models
	rm -f runner/kernels/_cpu*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
