# Everything a newcomer needs: make demo, make test. All of it happens in .venv, from requirements.lock.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PY := .venv/bin/python
DEMO_SECONDS ?=
DEMO_PORT ?= 9808
STACK_SECONDS ?=
FUZZ_SECONDS ?= 600
SOAK_SECONDS ?= 3600
# Where this is set, each of the hundreds of processes that tests start compiles all that it imports.
unexport PYTHONDONTWRITEBYTECODE
UV_VERSION := 0.13.8

.PHONY: help demo stack test coverage lint format truth faults celery-integration fuzz mutants golden docs dashboards screenshots alerts soak bench lock servers newer clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

# uv brings itself: it is in the lock file too, so that the sync keeps it.
.venv/synced: requirements.lock pyproject.toml
	@python3 -m venv .venv || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && apt-get update -q && apt-get install -y -q python3-venv && python3 -m venv .venv; } \
	  || { echo "make: python3 -m venv failed; on Debian: sudo apt-get install python3-venv" >&2; exit 1; }
	@$(PY) -m pip install -q --disable-pip-version-check uv==$(UV_VERSION)
	.venv/bin/uv pip sync -q --require-hashes --python $(PY) requirements.lock
	.venv/bin/uv pip install -q --python $(PY) --no-deps --no-build-isolation -e .
	@touch $@

demo: .venv/synced  ## an embedded broker, workers, a client and the exporter; Ctrl-C (or DEMO_SECONDS=20) ends it
	@exec .venv/bin/celery-exporter demo --port $(DEMO_PORT) $(if $(DEMO_SECONDS),--seconds $(DEMO_SECONDS))

stack: .venv/synced servers  ## docker-compose.yml without Docker; Ctrl-C (or STACK_SECONDS=60) ends it
	@exec $(PY) deploy/stack.py $(if $(STACK_SECONDS),--seconds $(STACK_SECONDS))

test: .venv/synced servers newer lint  ## everything, on real brokers, four files at a time
	$(PY) -m pytest -n 4 --dist loadfile --no-loadscope-reorder --maxfail=25

coverage: .venv/synced  ## branch coverage of the package by the unit tests, in percent
	@data=$$(mktemp) && trap 'rm -f "$$data"' EXIT && export COVERAGE_FILE=$$data \
	  && .venv/bin/coverage run --branch --source=celery_exporter -m pytest tests/unit -q \
	  && .venv/bin/coverage report --format=total

lint: .venv/synced  ## ruff, mypy --strict, and import-linter
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-cache

format: .venv/synced  ## let ruff lay the code out
	.venv/bin/ruff check --fix-only -q .
	.venv/bin/ruff format .

truth: .venv/synced servers  ## each scenario in full against what the tasks wrote down themselves, as a table
	TRUTH_SIZE=full $(PY) -m pytest tests/accuracy -m ""

faults: .venv/synced servers  ## every fault on every broker, the long ones too, as a table; on a quiet machine
	MACHINE=quiet $(PY) -m pytest tests/resilience -m ""

celery-integration: .venv/synced servers  ## Celery's own integration tests, and sums equal to what their tasks wrote: docs/explanation/accuracy.md
	PYTHONPATH=tests $(PY) -m celery_integration

fuzz: .venv/synced  ## hostile input for twice 10 minutes (FUZZ_SECONDS=600), as tables
	FUZZ_SECONDS=$(FUZZ_SECONDS) $(PY) -m pytest tests/fuzz -m ""
	FUZZ_SECONDS=$(FUZZ_SECONDS) $(PY) tests/fuzz/run_atheris.py

mutants: .venv/synced  ## break the core in a thousand places, and see whether a test notices
	tests/mutants.sh

golden: .venv/synced  ## write golden texts, and what is printed in docs/, anew, after a change that is meant
	UPDATE_GOLDEN=1 $(PY) -m pytest -q tests/unit/test_golden_replay.py tests/unit/top/test_app.py
	$(PY) deploy/kubernetes/generate.py
	$(PY) -m tools.docgen
	git diff --stat

docs: .venv/synced  ## build the pages into site/; a link that leads nowhere is an error
	.venv/bin/zensical build --clean --strict

alerts: .venv/synced  ## write alerts/celery.rules.yml anew from the mixin (Debian: apt-get install jsonnet)
	$(PY) -m tools.docgen
	jsonnet --string alerts/rules.jsonnet --output-file alerts/celery.rules.yml

dashboards: .venv/synced  ## write the JSON of the Grafana dashboards anew, after a change that is meant
	$(PY) -m dashboards
	git diff --stat dashboards

screenshots: .venv/synced servers  ## draw the dashboards and the status page into docs/img, from minutes of the demo
	@for program in node npm chromium; do \
	  command -v $$program >/dev/null || { echo "make screenshots needs $$program" >&2; exit 1; }; done
	PYTHONPATH=tests $(PY) -m dashboards.pictures.draw
	PYTHONPATH=tests $(PY) -m dashboards.pictures.status

soak: .venv/synced servers  ## an hour under load with churn (SOAK_SECONDS=3600): memory, threads, descriptors stay flat
	PYTHONPATH=tests SOAK_SECONDS=$(SOAK_SECONDS) $(PY) -m benchmarks.soak

bench: .venv/synced servers  ## CPU an event beside a floor and the peers, events a second, scrapes, memory: docs/explanation/performance.md and its chart
	PYTHONPATH=tests $(PY) -m benchmarks && $(PY) -m tools.docgen

servers:  ## redis-server, rabbitmq-server, prometheus and what else the tests start
	@tests/install-servers.sh

newer: servers  ## RabbitMQ 4 and Prometheus 3, which Debian 12 does not have, for the tests; 380 MB
	@tests/install-newer.sh rabbitmq-4 rabbitmq-server base-files coreutils dash grep sed
	@tests/install-newer.sh prometheus-3 prometheus base-files coreutils dash

lock:  ## newest versions that fit, pinned with their hashes
	.venv/bin/uv pip compile -q --universal --python-version 3.10 --generate-hashes --no-emit-index-url \
	  --no-annotate --upgrade --extra demo --extra top --group dev --group docs --group results -o requirements.lock pyproject.toml

clean:  ## forget the virtual environment and caches
	rm -rf .venv .venv-peer site .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis {tests/browser,tests/dashboards/types,dashboards/pictures}/node_modules
