# make demo    set everything up, then train, export, verify, run and bench on the weekly CO2 record
# make test    set everything up, then check format, lint, types and run the tests
# Both keep their virtual environment (.venv), so a second call starts at once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# The model's matrices are small: a second thread costs more than it gives, and two jobs then share two cores.
export OMP_NUM_THREADS ?= 1
export MPLBACKEND ?= Agg
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup native demo test test-gpu lint format slow wheel clean

help:
	@sed -n 's/^# //p;/^$$/q' Makefile
	@echo "also: make setup | native | lint | format | slow | test-gpu | wheel | clean"

setup: $(STAMP) native

# The CPU library, with which `auto` runs odestream's own cells; without a compiler, they run on ONNX Runtime.
native: $(STAMP)
	$(BIN)/python -m odestream.runtime.kernels.build || true

demo: native
	PATH="$(CURDIR)/$(BIN):$$PATH" bash benchmarks/demo.sh

test: lint
	$(BIN)/python -m pytest -n auto --dist worksteal

# On a machine with an NVIDIA GPU and nvcc: build for it, check against torch, sanitize, and time beside the peers.
test-gpu: $(STAMP)
	$(BIN)/python -m odestream.runtime.kernels.build --cuda
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python benchmarks/gpu.py

lint: $(STAMP)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/mypy benchmarks

format: $(STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

wheel: $(STAMP)
	$(BIN)/python -m build --no-isolation --wheel

clean:
	rm -rf $(VENV) .cache .hypothesis build dist *.egg-info runs/demo runtime/kernels/lib

# setuptools comes first because the package itself is then built without a second, isolated environment.
# The links show mypy the folders under the names they install as; it does not follow an editable install.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "$(PYTHON) is older than Python 3.10; run make with PYTHON=python3.11 or another newer one" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) has no venv module; install it (Debian, Ubuntu: apt install python3-venv)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt setuptools
	$(BIN)/python -m pip install --constraint constraints.txt --no-build-isolation --editable '.[cpu,train,trt-rtx,dev]'
	mkdir -p $(VENV)/src/odestream
	for layer in runtime models export; do ln -sfn ../../../$$layer $(VENV)/src/odestream/$$layer; done
	touch $@
