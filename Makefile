PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# How many processes run tests, each with servers of its own; a mark `xdist_group` keeps tests in one of them.
PYTEST_PROCESSES ?= 2
PYTEST := $(BIN)/python -m pytest -n $(PYTEST_PROCESSES) --dist loadgroup

.PHONY: help demo serve test test-fast test-real-servers chaos bench paper lint format types openapi openapi-check lock dockerfile-check clean
.DEFAULT_GOAL := help

help: ## List every target
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-18s %s\n", $$1, $$2}'

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed (make PYTHON=...)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

demo: $(VENV)/.installed ## Train, ingest, upgrade and query real images over HTTP; IMAGES=<folder or Parquet> for your own
	$(BIN)/python -m demo $(if $(IMAGES),--images "$(IMAGES)") $(DEMO_OPTIONS)

serve: $(VENV)/.installed ## Start everything embedded, data in ./data
	$(BIN)/gallery-upgrade serve

test: $(VENV)/.installed ## Run every test against embedded servers
	$(PYTEST) $(PYTEST_OPTIONS)

test-fast: $(VENV)/.installed ## Run the tests that need no server: under a minute
	$(PYTEST) tests/unit $(PYTEST_OPTIONS)

test-real-servers: $(VENV)/.installed ## Run what uses servers against redis-server and a PostgreSQL over TCP
	$(PYTEST) tests/integration tests/end_to_end tests/chaos --servers=real --servers-required $(PYTEST_OPTIONS)

chaos: $(VENV)/.installed ## The long forms: 36 seeded SIGKILL storms on 200,000 items (needs redis-server), the model at length
	$(BIN)/python -m tests.chaos.storm $(CHAOS_OPTIONS)
	$(BIN)/python -m pytest tests/chaos/test_model.py --hypothesis-profile=long

bench: $(VENV)/.installed ## Measure the budgets of docs/ (scale, reliability, search, load); leave the machine alone meanwhile
	$(BIN)/python -m benchmarks.networks
	$(BIN)/python -m benchmarks.upgrade
	$(BIN)/python -m benchmarks.upgrade --apart
	$(BIN)/python -m benchmarks.scale --items 10000 --items 100000 --items 1000000
	$(BIN)/python -m benchmarks.scale --items 200000 --workers 1 --workers 2 --workers 4
	$(BIN)/python -m benchmarks.cutover
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.eta
	$(BIN)/python -m benchmarks.judging
	$(BIN)/python -m benchmarks.judging --items 50000 --repeats 3
	$(BIN)/python -m benchmarks.evaluating
	$(BIN)/python -m benchmarks.serving
	$(BIN)/python -m benchmarks.serving --width 96 --clients 64
	$(BIN)/python -m benchmarks.shadowing
	$(BIN)/python -m benchmarks.search --items 100000 --items 1000000
	$(BIN)/python -m benchmarks.load

paper: $(VENV)/.installed ## Rerun the paper's tables on CIFAR-100 and write docs/results.md; IMAGES=<folder with train and test.parquet>
	$(BIN)/python -m benchmarks.paper "$(or $(IMAGES),../shared/data/cifar100)"

lint: $(VENV)/.installed ## Check style, and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.installed ## Rewrite files in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.installed ## Check types
	$(BIN)/mypy

openapi: $(VENV)/.installed ## Write docs/openapi.json from the code
	$(BIN)/gallery-upgrade openapi > docs/openapi.json

openapi-check: $(VENV)/.installed ## Fail if docs/openapi.json is not what the code says
	$(BIN)/gallery-upgrade openapi | diff docs/openapi.json -

dockerfile-check: $(VENV)/.installed ## Lint the Dockerfile
	$(BIN)/hadolint Dockerfile

lock: $(VENV)/.installed ## Resolve requirements.lock again from pyproject.toml
	$(BIN)/pip install --quiet pip-tools
	$(BIN)/pip-compile --quiet --strip-extras --extra cpu --extra dev --extra training --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links --no-emit-trusted-host -o requirements.lock pyproject.toml
	sed -i 's/^torch==\([0-9.]*\).*/torch==\1/; /^#/d; /^$$/d' requirements.lock

clean: ## Remove what make built
	rm -rf $(VENV) *.egg-info .pytest_cache .ruff_cache .mypy_cache
