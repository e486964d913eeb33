# Everything a fresh machine with Python 3.11 to 3.14 (with venv and pip) needs. PYTHON=... names another interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready.stamp
RIVALS := $(VENV)/rivals
RIVALS_READY := $(VENV)/rivals.stamp
# A gateway, and llama.cpp's own quantisation, which its wheel leaves out.
NPM_RIVALS := @portkey-ai/gateway@1.15.2 @node-llama-cpp/linux-x64@3.22.1
NPM_READY := $(if $(shell command -v node && command -v npm),$(VENV)/npm.stamp)
LOCKER := $(VENV)/locker
UV_VERSION := 0.13.8
ARGS ?=

# The locks name everything, so pip has nothing to resolve (--no-deps): older ones stumble over extras among hashes.
PIP_FLAGS := --quiet --disable-pip-version-check --no-input
COMPILE := $(LOCKER)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"

.PHONY: help setup drive test test-all lint format bench docs console lock clean
.DEFAULT_GOAL := help

help:
	@echo "make drive     the main job: a car and a cloud over a recorded cellular link (ARGS=... for its flags)"
	@echo "make test      the tests, without the slow ones (ARGS=... for pytest); make test-all for all of them"
	@echo "make lint      ruff, mypy --strict, the structure gate"
	@echo "make bench     every bench, quick, with its rival in the same run; the soak takes three minutes of it"
	@echo "make docs      check the links of every page"
	@echo "make console   build the console's page again (needs Node 20.19 or newer; the built files are committed)"
	@echo "make lock      resolve requirements/*.lock again;  make clean  remove what make built"

setup: $(READY)

$(READY): pyproject.toml requirements/dev.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || \
		{ echo "Codriver's locked set-up needs Python 3.11 to 3.14: run make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@echo "Setting up $(VENV), once ..."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) --no-deps --require-hashes -r requirements/dev.lock
	$(BIN)/python -m pip install $(PIP_FLAGS) --no-deps --no-build-isolation -e .
	@touch $@

drive: $(READY)
	$(BIN)/codriver drive $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-all: $(READY)
	$(BIN)/python -m pytest $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict src tools
	$(BIN)/python tools/structure.py

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(RIVALS_READY): requirements/rivals.lock $(READY)
	test -x $(RIVALS)/bin/python || $(PYTHON) -m venv $(RIVALS)
	$(RIVALS)/bin/python -m pip install $(PIP_FLAGS) --no-deps --require-hashes -r requirements/rivals.lock
	@touch $@

# Only where there is node; a bench runs without it.
$(VENV)/npm.stamp: $(RIVALS_READY)
	npm install --silent --no-audit --no-fund --no-save --prefix $(RIVALS) $(NPM_RIVALS) \
		&& touch $@ || echo "Rivals of npm could not be installed: their rows will say so." >&2

# A bench finds its rivals in $CODRIVER_RIVALS and says which one it had to leave out.
# LiteLLM would otherwise fetch its price list from the network at every start.
bench: $(READY) $(RIVALS_READY) $(NPM_READY)
	LITELLM_LOCAL_MODEL_COST_MAP=True CODRIVER_RIVALS=$(abspath $(RIVALS)) $(BIN)/codriver bench all --quick $(ARGS)

docs: $(READY)
	$(BIN)/python tools/check_links.py

console:
	cd console && npm ci && npm run build

lock:
	test -x $(LOCKER)/bin/python || $(PYTHON) -m venv $(LOCKER)
	$(LOCKER)/bin/python -m pip install $(PIP_FLAGS) uv==$(UV_VERSION)
	$(COMPILE) $(ARGS) --extra openvino --extra onnx --extra bench --extra otel --extra optimize --extra litert --extra dev \
		-o requirements/dev.lock pyproject.toml
	$(COMPILE) $(ARGS) -o requirements/rivals.lock requirements/rivals.in

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
