# Everything a person runs here. Each target installs what it needs; the second run does only what changed.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
export PYTHON
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
export PATH := $(BIN):$(PATH)
STAMPS := .venv/stamps
# The tests and the examples need no network, and prove it.
export HF_HUB_OFFLINE := 1
# Many tests are of files on a disk, and /tmp may be in RAM: GoogleTest and pytest have their folders here.
export TEST_TMPDIR := $(CURDIR)/build/tmp/
export PYTEST_DEBUG_TEMPROOT := $(TEST_TMPDIR)
# What is there is in no repository, for tests of scripts that ask git.
export GIT_CEILING_DIRECTORIES := $(CURDIR)/build

NATIVE_SOURCES := $(shell find csrc include bindings -type f) CMakeLists.txt pyproject.toml
CXX_FILES = $(shell git ls-files -co --exclude-standard '*.h' '*.cpp' '*.cu' | sort)
SHELL_FILES := .ci/run $(wildcard scripts/*.sh)
# Of hundreds of tests only what is not a pass is shown, and the summary.
UNLESS_PASSED := | { grep -v -E '^ +Start +[0-9]+:|^ *[0-9]+/[0-9]+ Test .* Passed ' || true; }
# As the preset dev compiles: what the C++ tests test is what the package is made of, and a cache has it. Installing strips it.
export CXX
export SKBUILD_CMAKE_DEFINE := CMAKE_CXX_FLAGS_RELEASE=-O3 -g1 -DNDEBUG
# The others need a GPU.
CPU_BENCHMARKS := $(filter-out benchmarks/cuda_%,$(wildcard benchmarks/*.py))
OUTPUT ?= build/gpu-check/result.json
OPTIONS ?=
# Of the models of `make models`: transformers, diffusers, timm or torchvision.
SOURCE ?= transformers
# Where: cpu, or cuda:0 on a machine that has one, where half of their bytes are streamed.
DEVICE ?= cpu
TSAN_PROGRAMS := device memory codec store io scheduler engine

.PHONY: help
help:  ## Show the targets
	@awk -F':.*## ' '/^[a-z_-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: packages
packages:
	@mkdir -p $(TEST_TMPDIR)
	@scripts/install_debian_packages.sh build

$(STAMPS)/venv: requirements/runtime.txt requirements/dev.txt scripts/create_venv.sh | packages
	@scripts/create_venv.sh .venv
	@mkdir -p $(STAMPS) && touch $@

# Editable: Python sources are live, and the build folder is kept, so that a change in C++ compiles what it touches.
$(STAMPS)/package: $(STAMPS)/venv $(NATIVE_SOURCES)
	@echo "==> building the extension and installing tensorstream into .venv"
	@python -m pip --disable-pip-version-check install --quiet --no-build-isolation --no-deps -e .
	@touch $@

.PHONY: setup
setup: packages $(STAMPS)/venv  ## Install Debian packages, .venv and the locked Python packages

.PHONY: build
build: packages $(STAMPS)/package  ## Build the extension and install the package into .venv

.PHONY: test
test: test-cpp test-python  ## Run all C++ and Python tests

.PHONY: test-cpp
test-cpp: setup  ## Build and run the C++ tests
	@echo "==> building and running the C++ tests (preset dev)"
	@cmake --preset dev --log-level=WARNING
	@cmake --build --preset dev
	@ctest --preset dev $(UNLESS_PASSED)

# The engine's CUDA device runs on it where there is no GPU.
.PHONY: fake-cuda
fake-cuda: setup
	@cmake --preset dev --log-level=WARNING >/dev/null
	@cmake --build --preset dev --target fake_cuda fake_nvrtc >/dev/null

.PHONY: test-python
test-python: build fake-cuda  ## Run the Python tests
	@echo "==> running the Python tests"
	@python -m pytest -n 2

# Rows are kept in build/, so that a run that was ended goes on; remove the file to begin anew.
.PHONY: models
models: build  ## Run every model type of SOURCE plain and offloaded, and write its table to docs/
	@case "$(SOURCE)" in timm|torchvision) \
	  export PYTHONPATH="$(CURDIR)/build/model_types/packages"; \
	  python -m pip install --quiet --no-deps --upgrade --target "$$PYTHONPATH" -r requirements/models.txt;; esac; \
	cd tests/python && python -m model_matrix $(SOURCE) --device $(DEVICE) --rows "$(CURDIR)/build/model_types/$(SOURCE)-$(subst :,-,$(DEVICE)).json" --docs "$(CURDIR)/docs"

.PHONY: demo
demo: build  ## Run the examples: an encoder and a Llama within budgets smaller than their weights
	@echo "==> examples/encoder_search.py: a sentence encoder in a third of its weights"
	@python examples/encoder_search.py
	@echo "==> examples/llama_generate.py: 2 GB of Llama in 400 MB"
	@python examples/llama_generate.py

.PHONY: asan
asan: setup  ## Run the C++ tests under the address and undefined-behaviour sanitizers
	@scripts/install_debian_packages.sh asan
	@echo "==> building and running the C++ tests (preset asan)"
	@cmake --preset asan --log-level=WARNING
	@cmake --build --preset asan
	@ctest --preset asan $(UNLESS_PASSED)

.PHONY: tsan
tsan: setup  ## Run the threaded layers' C++ tests under the thread sanitizer
	@echo "==> building and running the tests of $(TSAN_PROGRAMS) (preset tsan)"
	@cmake --preset tsan --log-level=WARNING
	@scripts/run_without_aslr.sh cmake --build --preset tsan --target $(TSAN_PROGRAMS:%=%_tests)
	@scripts/run_without_aslr.sh ctest --preset tsan $(UNLESS_PASSED)

.PHONY: lint
lint: build  ## Check format, Python, types, spelling and shell scripts
	@echo "==> ruff, mypy, codespell, shellcheck, clang-format, the extension's stub"
	@ruff check --quiet .
	@ruff format --quiet --check .
	@mypy
	@codespell
	@shellcheck $(SHELL_FILES)
	@clang-format --dry-run -Werror $(CXX_FILES)
	@python -m nanobind.stubgen -q -m tensorstream._native -o build/_native.pyi
	@diff -u python/tensorstream/_native.pyi build/_native.pyi || { echo "python/tensorstream/_native.pyi is stale: run make stub" >&2; exit 1; }

.PHONY: tidy
tidy: setup  ## Run clang's warnings, its thread-safety analysis and clang-tidy
	@scripts/install_debian_packages.sh tidy
	@echo "==> clang -Wthread-safety and clang-tidy on csrc (preset tidy)"
	@cmake --preset tidy --log-level=WARNING
	@run-clang-tidy-16 -quiet -p build/tidy -j $$(nproc) "$(CURDIR)/csrc/.*\.cpp" >build/tidy/report.txt 2>&1 \
	  || { grep -A 3 -E '(error|warning): ' build/tidy/report.txt; exit 1; }

.PHONY: format
format: setup  ## Rewrite C++ and Python sources in the project's format
	@ruff check --quiet --fix-only .
	@ruff format --quiet .
	@clang-format -i $(CXX_FILES)

.PHONY: stub
stub: build  ## Write the type stub of the extension from the extension
	@python -m nanobind.stubgen -q -m tensorstream._native -o python/tensorstream/_native.pyi

.PHONY: layers
layers:  ## Check layers, includes, imports, sizes and names of files
	@$(PYTHON) scripts/check_layers.py

.PHONY: docs
docs:  ## Check that the documents name only files, targets and presets that exist
	@$(PYTHON) scripts/check_docs.py
	@$(PYTHON) scripts/result_tables.py --check

.PHONY: tables
tables:  ## Write the tables of the documents from benchmarks/results
	@$(PYTHON) scripts/result_tables.py

.PHONY: guards
guards: build fake-cuda  ## Take each guard out in turn and see a test fail
	@TENSORSTREAM_FAKE_CUDA="$(CURDIR)/build/dev/tests/cpp/fake_cuda/libfake_cuda.so" python scripts/check_guards.py

.PHONY: wheel
wheel: setup  ## Build the wheel into dist/ and check what it contains and links
	@echo "==> building the wheel and checking it"
	@rm -rf dist
	@python -m pip --disable-pip-version-check wheel --quiet --no-build-isolation --no-deps -w dist .
	@python scripts/check_wheel.py dist/*.whl

.PHONY: bench
bench: build  ## Run the C++ and Python benchmarks
	@echo "==> building and running the benchmarks (preset release)"
	@cmake --preset release --log-level=WARNING
	@cmake --build --preset release
	@for program in build/release/benchmarks/*_benchmark; do "$$program"; done
	@for program in $(CPU_BENCHMARKS); do python "$$program"; done

# Where the GPU is, nothing is installed but the package itself, into the Python that is first on the path.
.PHONY: gpu-check
gpu-check:  ## Build, test, memcheck and measure on this machine's GPU (OUTPUT=, OPTIONS=)
	@rm -f $(STAMPS)/package
	@$(PYTHON) scripts/gpu_check.py --output $(OUTPUT) $(OPTIONS)

.PHONY: lock
lock:  ## Write the lock files in requirements/ anew
	@scripts/lock_requirements.sh

.PHONY: clean
clean:  ## Remove everything that was built or installed here
	@rm -rf build dist .venv .demo .pytest_cache .mypy_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
