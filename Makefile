# Every target sets up all it needs itself, in .venv; the second time that takes no time.
#
#   make demo    tune for this machine, train a small Mamba, write a report
#   make test    ruff, mypy, pytest
#   make lint    ruff and mypy alone
#   make readme  brings the tables of results in README and docs up to date
#   make venv    the environment alone
#   make clean   removes .venv and whatever tools left behind

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# CuPy launches the CUDA C++ kernels; without an NVIDIA driver it has nothing to launch them on.
comma := ,
EXTRAS := dev$(if $(shell command -v nvidia-smi),$(comma)cuda13)
PYTEST ?= -q
# Tests under tests/gpu need a device.
GPU_TESTS = $(shell $(BIN)/python -c 'import torch; print("" if torch.cuda.is_available() else "--ignore=tests/gpu")')

.DEFAULT_GOAL := help
.PHONY: help venv compiler demo test lint readme clean

help:
	@sed -n 's/^#   //p' Makefile

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "scanc needs Python 3.11 or newer and '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || echo absent): make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv"; rm -rf $(VENV); exit 1; }
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@

# The CPU backend compiles C++; scanc runs without, on torch operations, and says so.
compiler:
	@command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "installing g++"; apt-get update -qq && apt-get install -y -qq g++ >/dev/null; \
		else \
			echo "no C++ compiler found: CPU kernels will be torch operations, which are slow; install g++ or clang++"; \
		fi

demo: $(STAMP) compiler
	$(BIN)/scanc demo

# Tables of results in README and docs, from the files in perf/results.
readme: $(STAMP)
	$(BIN)/python -m scanc.perf.tables README.md $(wildcard docs/*.md)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy -p scanc

# Two processes share the cores, so OpenMP's threads sleep rather than spin while they wait.
test: lint compiler
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest $(PYTEST) -n 2 tests $(GPU_TESTS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
