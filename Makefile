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
# make stress ONLY=fuzz FUZZ_SECONDS=300: the part that runs by the clock, shorter
FUZZ_SECONDS ?=
# make venv HASHED=1: only files whose SHA-256 stands in requirements.hashed.lock (Linux, x86-64, Python 3.11)
HASHED ?=
NIGHTLY_DEMO_ARGS ?=

SCALE_VENV := .venv-scale
SCALE_TESTS := tests/scale

.PHONY: help venv demo nightly-demo test stress scale console openapi lint sbom audit clean

help:
	@echo "make demo    train, build a bundle, start Redis and the service, recall (DATA=log, DEMO_EXIT=1)"
	@echo "make nightly-demo  three nights while a service answers; the second build is bad and refused"
	@echo "make test    run every test"
	@echo "make stress  faults and swaps under load on real processes (ONLY=\"swap flip\": these)"
	@echo "make scale   several processes, machines and replicas, with Ray and Milvus in an environment of their own"
	@echo "make console the console's tests in a real browser, and its pictures into docs/console"
	@echo "make openapi  write docs/openapi.json anew after a change of the API"
	@echo "make lint    ruff and mypy"
	@echo "make sbom    sbom.json: what the environment is made of (CycloneDX)"
	@echo "make audit   known vulnerabilities of the locked versions (pip-audit; needs the network)"
	@echo "make venv    only the environment, in $(VENV)"
	@echo "make clean   remove environment, caches and what the demo wrote"

venv: $(READY)

$(READY): requirements.lock pyproject.toml setup.py $(wildcard model/engines/native/* index_builder/native/* service/native/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed, found: $$($(PYTHON) --version); set PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(if $(HASHED),$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
		--requirement requirements.hashed.lock)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY)
	@DEMO_EXIT=$(DEMO_EXIT) $(BIN)/python deploy/demo.py $(if $(DATA),--data "$(DATA)") $(DEMO_ARGS)

nightly-demo: $(READY)
	@$(BIN)/python deploy/nightly_demo.py $(NIGHTLY_DEMO_ARGS)

# Three at a time on two cores: most tests wait for servers and processes.
test: $(READY)
	$(BIN)/python -m pytest -n 3 --dist worksteal

# Atheris has no wheels for every platform: the rest of the test runs without it, and its report says so.
stress: $(READY)
	$(if $(or $(filter fuzz,$(ONLY)),$(if $(ONLY),,all)),-$(BIN)/python -m pip install --quiet \
		--disable-pip-version-check --constraint requirements.lock "atheris>=2.3")
	$(BIN)/python -m loadtest.stress.run $(ONLY) $(if $(FUZZ_SECONDS),--seconds $(FUZZ_SECONDS))

# The second environment: Ray and Milvus bring 30 packages that nothing else needs.
$(SCALE_VENV)/.ready: $(READY) requirements.scale.lock
	$(PYTHON) -m venv $(SCALE_VENV)
	$(SCALE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		--requirement requirements.lock --requirement requirements.scale.lock
	$(SCALE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

scale: $(SCALE_VENV)/.ready
	$(SCALE_VENV)/bin/python -m pytest $(SCALE_TESTS)
	$(SCALE_VENV)/bin/python -m pytest tests/end_to_end -m any_target --target replicas

console: $(READY)
	@command -v chromedriver >/dev/null || { echo "chromium and chromedriver are needed: apt-get install chromium chromium-driver"; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock "selenium>=4.20"
	mkdir -p docs/console
	CONSOLE_SCREENSHOTS=docs/console $(BIN)/python -m pytest tests/end_to_end/test_console.py

openapi: $(READY)
	UPDATE_OPENAPI=1 $(BIN)/python -m pytest tests/service/test_api_contract.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

sbom: $(READY)
	$(BIN)/python deploy/sbom.py > sbom.json
	@echo "wrote sbom.json"

audit: $(READY)
	test -x .venv-audit/bin/pip-audit || { $(PYTHON) -m venv .venv-audit \
		&& .venv-audit/bin/python -m pip install --quiet --disable-pip-version-check "pip-audit>=2.7"; }
	.venv-audit/bin/pip-audit --disable-pip --no-deps --requirement requirements.lock

clean:
	rm -rf $(VENV) $(SCALE_VENV) .venv-audit sbom.json state .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
