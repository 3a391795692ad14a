# Every target sets up what it needs: Python 3.10 to 3.13, a C++ compiler and make are enough. `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# What decides the contents of the virtual environment; the shim's headers are read when a kernel is compiled.
SETUP_INPUTS := $(wildcard pyproject.toml setup.py constraints.txt csrc/*.cpp csrc/*.h \
                           csrc/simulator/*.cpp csrc/simulator/*.h csrc/simulator/*.S csrc/simulator/include/simt.h)
CPP_SOURCES := find csrc mps_flash_attn tests -type f \
               \( -name '*.h' -o -name '*.cpp' -o -name '*.mm' -o -name '*.metal' -o -path 'csrc/*/include/*' \) -print0

.DEFAULT_GOAL := help
.PHONY: help install demo test check-apple check-gpu lint format bench bench-gpu clean

help:
	@echo 'make demo         train a small GPT with our attention and with PyTorch'\''s, compare, plot to out/gpt_mini.png'
	@echo 'make test         run every test, two at a time'
	@echo 'make check-apple  build and run what is for Macs against stand-ins, in a Debian root with Swift; needs root'
	@echo 'make check-gpu    on a machine with an NVIDIA GPU: all tests on it, and its memory and race checkers'
	@echo 'make lint         ruff, mypy --strict and clang-format; changes nothing'
	@echo 'make format       let ruff and clang-format rewrite the sources'
	@echo 'make bench        time and memory of attention beside PyTorch'\''s, results and plots in out/'
	@echo 'make bench-gpu    the same on an NVIDIA GPU, beside each of PyTorch'\''s backends'
	@echo 'make install      only set up the virtual environment in $(VENV)'
	@echo 'make clean        remove $(VENV), build products and out/ (compiled kernels stay in the user'\''s cache folder)'
	@echo
	@echo 'Arguments:  make demo ARGS="--steps 50"   make test ARGS="-k causal"   make install PYTHON=python3.12'

install: $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/python examples/gpt_mini.py $(ARGS)

# Two workers share the cores: PyTorch's own threads would only wait for each other.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --durations 15 $(ARGS)

# The launches through Swift run in the Debian root; those through torch.mps.compile_shader, and what is compared with
# downloads, run here.
check-apple: $(INSTALLED)
	tests/apple/in_root.sh tests/apple/build_swift.sh test
	MPS_FLASH_ATTN_CHECK_APPLE=metal OMP_NUM_THREADS=1 tests/apple/in_root.sh \
	    $(BIN)/python -m pytest -n 2 tests/apple --ignore tests/apple/metadata $(ARGS)
	MPS_FLASH_ATTN_CHECK_APPLE=torch_mps OMP_NUM_THREADS=1 \
	    $(BIN)/python -m pytest -n 2 tests/apple $(ARGS)
	MPS_FLASH_ATTN_CHECK_APPLE=torch_mps OMP_NUM_THREADS=1 \
	    $(BIN)/python -m pytest -n 2 --runtime torch_mps tests/ops/test_attention.py $(ARGS)

# The operations' tests with their tensors copied to the GPU, what only a GPU shows, and compute-sanitizer.
check-gpu: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 8 -m cuda tests/runtime $(ARGS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 8 --runtime cuda tests/ops $(ARGS)
	$(BIN)/python -m tests.sanitizer

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	@echo 'clang-format --dry-run -Werror'
	@$(CPP_SOURCES) | xargs -0 $(BIN)/clang-format --dry-run -Werror

format: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	@$(CPP_SOURCES) | xargs -0 $(BIN)/clang-format -i

bench: $(INSTALLED)
	$(BIN)/python benchmarks/run.py --op attention --backward --json out/attention.jsonl $(ARGS)
	$(BIN)/python benchmarks/run.py --op attention --counters --json out/counters.jsonl
	$(BIN)/python benchmarks/run.py --op attention --memory --json out/memory.jsonl
	$(BIN)/python benchmarks/run.py --op attention --overhead --json out/overhead.jsonl
	$(BIN)/python benchmarks/run.py --op gemm --ladder --json out/gemm.jsonl --plot out/ladder.png

# Attention: lengths from 512 to 16,384 at 16,384 tokens and a width of 2,048, in each dtype.
bench-gpu: $(INSTALLED)
	$(BIN)/python benchmarks/run.py --op gemm --device cuda --ladder --json out/gemm.jsonl --plot out/ladder.png
	for dtype in float32 float16 bfloat16; do \
	    $(BIN)/python benchmarks/run.py --op gemm --device cuda --dtype $$dtype --size 4096 8192 --json out/gemm.jsonl \
	        || exit 1; \
	done
	for dtype in float16 bfloat16 float32; do for causal in '' --causal; do \
	    $(BIN)/python benchmarks/run.py --op attention --device cuda --backward --dtype $$dtype $$causal \
	        --tokens 16384 --width 2048 --length 512 1024 2048 4096 8192 16384 --head-dim 64 128 256 \
	        --json out/cuda.jsonl --plot out/cuda.png $(ARGS) || exit 1; \
	done; done
	for op in norm softmax cross_entropy elementwise; do for dtype in float32 float16 bfloat16; do \
	    $(BIN)/python benchmarks/run.py --op $$op --device cuda --backward --dtype $$dtype --json out/operations.jsonl \
	        || exit 1; \
	done; done

clean:
	rm -rf $(VENV) build dist out *.egg-info mps_flash_attn/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The constraints hold for the build environment too: pip reads them there from the environment alone, under one
# name up to pip 25.2 and under the other from 25.3 on.
$(INSTALLED): $(SETUP_INPUTS) | $(BIN)/pip
	PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
	    $(BIN)/python -m pip install --disable-pip-version-check -e '.[test,check,demo,dev]'
	@touch $@

$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || { \
	    echo 'make: no $(PYTHON) found; install Python 3.10 to 3.13: sudo apt-get install python3 python3-venv python3-dev'; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
	    echo "make: $(PYTHON) is $$($(PYTHON) --version); Python 3.10 to 3.13 is needed: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
	    echo 'make: $(PYTHON) cannot create virtual environments: sudo apt-get install python3-venv'; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig as s; \
	    sys.exit(not os.path.exists(os.path.join(s.get_path("include"), "Python.h")))' || { \
	    echo 'make: the headers of $(PYTHON) are missing: sudo apt-get install python3-dev'; exit 1; }
	@command -v $(firstword $(CXX)) >/dev/null || { \
	    echo 'make: no C++ compiler found: sudo apt-get install g++ (or set CXX)'; exit 1; }
	$(PYTHON) -m venv $(VENV)
