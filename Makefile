# `make demo` shows it, `make serve` runs it, `make test` tests it. Everything is installed into .venv.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
SETTINGS := OPENE2B_HOME E2B_DOMAIN OPENE2B_HOST E2B_API_PORT OPENE2B_PROXY_PORT OPENE2B_API_KEY \
  USE_IN_MEMORY_STORE OPENE2B_RUNTIME OPENE2B_OCI_BINARY OPENE2B_MAX_SANDBOXES OPENE2B_WARM_SLOTS \
  OPENE2B_TEAM_MAX_SANDBOXES OPENE2B_MAX_TIMEOUT_HOURS OPENE2B_SANDBOX_CPUS OPENE2B_SANDBOX_MEMORY_MIB \
  OPENE2B_SUBNET OPENE2B_NAMESERVERS OPENE2B_BASE_MIRROR OPENE2B_BASE_SUITE OPENE2B_BASE_IMAGE \
  OPENE2B_BASE_IMAGE_USERNAME OPENE2B_BASE_IMAGE_PASSWORD OPENE2B_TEST_HOME CI
empty :=
space := $(empty) $(empty)
comma := ,
# As root for what makes namespaces; files that root would leave in the clone are not written.
ROOT := $(if $(filter-out 0,$(shell id -u)),sudo --preserve-env=$(subst $(space),$(comma),$(strip $(SETTINGS)))) \
  env PYTHONDONTWRITEBYTECODE=1 PATH="$(PATH):/usr/sbin:/sbin"
PYTEST := $(ROOT) $(BIN)/python -m pytest -p no:cacheprovider

.DEFAULT_GOAL := help
.PHONY: help setup setup-tests demo serve down test check unit e2e bench endure chaos bundle generate lock clean

help: ## show this
	@grep -hE '^[a-z0-9-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

setup: ## install what is missing: system packages (one notice), Python packages into .venv
	@scripts/setup.sh

setup-tests:
	@scripts/setup.sh --tests

demo: setup ## the whole journey with the stock Python SDK; leaves nothing behind
	@$(ROOT) $(BIN)/opene2b demo

serve: setup ## run the server until Ctrl-C
	@exec $(ROOT) $(BIN)/opene2b serve

down: setup ## end all sandboxes and remove what they used
	@$(ROOT) $(BIN)/opene2b down

test: setup-tests lint ## every test: unit, integration, end to end
	@$(PYTEST) tests

check: setup lint unit ## format, lint, types, layering, unit tests; under a minute

.PHONY: lint
lint:
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

unit:
	@$(PYTEST) tests/unit

e2e: setup-tests ## the stock SDKs, newest and oldest supported, against a real server
	@$(PYTEST) tests/e2e

bench: setup ## what a client waits for; table, and JSON in bench-results/
	@$(ROOT) $(BIN)/python tests/performance/bench.py $(ARGS)
	@$(BIN)/python tests/performance/bench_envd.py
	@$(BIN)/python tests/performance/bench_proxy.py

chaos: setup ## kill the server's processes 200 times under load, and look that nothing is lost (4 min)
	@$(ROOT) $(BIN)/python tests/chaos/chaos.py $(ARGS)

endure: setup ## 100,000 commands, 10 GiB each way, a million names: memory and stalls of envd (5 min)
	@$(BIN)/python tests/performance/endure_envd.py $(ARGS)

bundle: setup ## envd as a directory that starts in any root filesystem, in ./bundle
	@$(BIN)/python -m opene2b.image.envd_bundle bundle

generate: setup ## generated code from proto/
	@scripts/generate.sh

lock: setup ## refresh the hash-locked requirements
	@scripts/lock.sh

clean: ## remove the virtual environments and caches of this clone
	rm -rf .venv .venv-oldest .mypy_cache .ruff_cache .pytest_cache bench-results bundle tests/e2e/js/node_modules
