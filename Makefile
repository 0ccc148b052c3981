PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# How many processes run tests, each with servers of its own; a mark `xdist_group` keeps tests in one of them.
PYTEST_PROCESSES ?= 2
PYTEST := $(BIN)/python -m pytest -n $(PYTEST_PROCESSES) --dist loadgroup

.PHONY: help demo serve test test-fast test-processes test-browser test-real-servers test-stores fuzz chaos bench paper lint format types openapi client openapi-check metrics lock dockerfile-check clean
.DEFAULT_GOAL := help

help: ## List every target
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-18s %s\n", $$1, $$2}'

$(VENV)/.installed: requirements.lock pyproject.toml client/pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed (make PYTHON=...)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable client --editable .
	@touch $@

demo: $(VENV)/.installed ## Train, ingest, upgrade and query real images over HTTP; IMAGES=<folder or Parquet> for your own, KEEP=1 to look around in the console
	$(BIN)/python -m demo $(if $(IMAGES),--images "$(IMAGES)") $(if $(KEEP),--keep) $(DEMO_OPTIONS)

serve: $(VENV)/.installed ## Start everything embedded, data in ./data
	$(BIN)/gallery-upgrade serve

test: $(VENV)/.installed ## Run the tests of the rules, the API and the workers against embedded servers: 8 to 14 minutes
	$(PYTEST) tests/unit tests/integration $(PYTEST_OPTIONS)

test-processes: $(VENV)/.installed ## Run those in which whole processes are served, killed and started again: 5 to 7 minutes
	$(PYTEST) tests/end_to_end tests/chaos $(PYTEST_OPTIONS)

test-fast: $(VENV)/.installed ## Run the tests that need no server, and neither train, judge nor build an index: under a minute
	$(PYTEST) tests/unit $(addprefix --ignore=tests/unit/,edge index models workers) $(PYTEST_OPTIONS)

test-browser: $(VENV)/.installed ## Use the console in Chromium, against a real service: under 4 minutes (needs chromium)
	$(BIN)/python -m pytest tests/browser $(PYTEST_OPTIONS)

test-real-servers: $(VENV)/.installed ## Run what uses servers against redis-server and a PostgreSQL over TCP
	$(PYTEST) tests/integration tests/end_to_end tests/chaos --servers=real --servers-required $(PYTEST_OPTIONS)

test-stores: $(VENV)/.installed ## Run what uses Milvus and Chroma against their servers, from wheels in .venv-stores: 20 minutes
	$(BIN)/python -m tests.store_servers $(PYTEST_OPTIONS)

fuzz: $(VENV)/.installed ## Ask the API 10,000 things that its description allows, and does not (schemathesis); FUZZ_OPTIONS=--keys as keys of every scope, beside another tenant
	$(BIN)/python -m tests.fuzzing $(FUZZ_OPTIONS)

chaos: $(VENV)/.installed ## The long forms: 36 seeded SIGKILL storms on 200,000 items (needs redis-server), the model at length
	$(BIN)/python -m tests.chaos.storm $(CHAOS_OPTIONS)
	$(BIN)/python -m pytest tests/chaos/test_model.py --hypothesis-profile=long

bench: $(VENV)/.installed ## Measure the budgets of docs/ (scale, reliability, search, load); leave the machine alone meanwhile
	$(BIN)/python -m benchmarks.networks
	$(BIN)/python -m benchmarks.confined
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
	$(BIN)/python -m benchmarks.several_processes
	$(BIN)/python -m benchmarks.news
	$(BIN)/python -m benchmarks.querying --items 100000 --items 1000000
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

openapi: $(VENV)/.installed ## Write docs/openapi.json from the code, and the client from it
	$(BIN)/gallery-upgrade openapi > docs/openapi.json
	$(BIN)/python client/generate.py

client: $(VENV)/.installed ## Write the client's operations, answers and errors from docs/openapi.json and the code
	$(BIN)/python client/generate.py

openapi-check: $(VENV)/.installed ## Fail if docs/openapi.json is not what the code says
	$(BIN)/gallery-upgrade openapi | diff docs/openapi.json -

metrics: $(VENV)/.installed ## Write the table of docs/operations/metrics.md from the code
	sed -i '/^| name |/,$$d' docs/operations/metrics.md
	$(BIN)/gallery-upgrade metrics >> docs/operations/metrics.md

dockerfile-check: $(VENV)/.installed ## Lint the Dockerfile
	$(BIN)/hadolint Dockerfile

lock: $(VENV)/.installed ## Resolve requirements.lock again from pyproject.toml
	$(BIN)/pip install --quiet pip-tools
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir build/client client
	$(BIN)/pip-compile --quiet --strip-extras --extra cpu --extra dev --extra training --no-header --no-annotate \
		--find-links build/client --no-emit-index-url --no-emit-find-links --no-emit-trusted-host -o requirements.lock pyproject.toml
	sed -i 's/^torch==\([0-9.]*\).*/torch==\1/; /^gallery-upgrade-client/d; /^#/d; /^$$/d' requirements.lock

clean: ## Remove what make built
	rm -rf $(VENV) *.egg-info client/*.egg-info .pytest_cache .ruff_cache .mypy_cache
