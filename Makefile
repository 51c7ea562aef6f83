# Two commands do everything: `make demo` runs the main job, `make test` passes the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

ENGINES := .venv-engines

.PHONY: install install-dev demo test lint bench results engines test-engines fidelity lock clean

install: $(VENV)/.installed

install-dev: $(VENV)/.installed-dev

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.lock
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.lock
	@touch $@

demo: install ## a fleet of emulated workers under three policies, one honest table
	$(BIN)/amf demo $(DEMO_ARGS)

test: install-dev lint ## everything that must pass
	$(BIN)/pytest

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install-dev ## decision time and gateway overhead, as ratios; writes out/bench/*.json
	$(BIN)/python bench/decisions.py --json out/bench/decisions.json
	$(BIN)/python bench/overhead.py --json out/bench/overhead.json
	$(BIN)/python bench/tokenising.py --json out/bench/tokenising.json
	$(BIN)/python bench/simulation.py --json out/bench/simulation.json

results: install ## every study into docs/results.md; TRACES=FOLDER adds recordings, RESULTS_ARGS=--resume keeps what is done
	$(BIN)/amf experiment all --markdown docs/results.md $(if $(TRACES),--trace $(TRACES)) $(RESULTS_ARGS)

engines: ## a real vLLM (3.4 GB, Linux on x86-64, Python 3.11 or 3.12), llama.cpp and SGLang (0.2 GB each) for CPU, apart from all else
	$(PYTHON) bench/real/install.py $(ENGINES)

test-engines: install-dev engines ## the tests that need real engines; they are started and stopped by them
	$(BIN)/pytest -m live tests/live

fidelity: install-dev engines ## the simulated worker against a real vLLM; writes out/fidelity.json and docs/fidelity.md
	$(BIN)/python bench/fidelity.py --json out/fidelity.json --page docs/fidelity.md $(FIDELITY_ARGS)

lock: install-dev ## pin every dependency anew
	$(BIN)/pip install --quiet pip-tools
	$(BIN)/pip-compile --quiet --strip-extras --generate-hashes --allow-unsafe --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-header -o requirements.lock pyproject.toml
	$(BIN)/pip-compile --quiet --strip-extras --generate-hashes --allow-unsafe --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-header --extra dev -c requirements.lock -o requirements-dev.lock pyproject.toml

clean:
	rm -rf $(VENV) $(ENGINES) out .pytest_cache .mypy_cache .ruff_cache .hypothesis
