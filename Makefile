# Every target sets up what it needs: a machine with Python 3.11 and make is enough.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# make demo DATA=ratings.parquet: your own log instead of a made-up one; DEMO_EXIT=1: stop after showing it
DATA ?=
DEMO_EXIT ?=
DEMO_ARGS ?=
# make stress ONLY="swap flip": these stress tests; without it all of them
ONLY ?=
NIGHTLY_DEMO_ARGS ?=

.PHONY: help venv demo nightly-demo test stress lint clean

help:
	@echo "make demo    train, build a bundle, start Redis and the service, recall (DATA=log, DEMO_EXIT=1)"
	@echo "make nightly-demo  three nights while a service answers; the second build is bad and refused"
	@echo "make test    run every test"
	@echo "make stress  faults and swaps under load on real processes (ONLY=\"swap flip\": these)"
	@echo "make lint    ruff and mypy"
	@echo "make venv    only the environment, in $(VENV)"
	@echo "make clean   remove environment, caches and what the demo wrote"

venv: $(READY)

$(READY): requirements.lock pyproject.toml setup.py $(wildcard model/engines/native/* index_builder/native/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed, found: $$($(PYTHON) --version); set PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY)
	@DEMO_EXIT=$(DEMO_EXIT) $(BIN)/python deploy/demo.py $(if $(DATA),--data "$(DATA)") $(DEMO_ARGS)

nightly-demo: $(READY)
	@$(BIN)/python deploy/nightly_demo.py $(NIGHTLY_DEMO_ARGS)

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal

stress: $(READY)
	$(BIN)/python -m loadtest.stress.run $(ONLY)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) state .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
