# Start with `make demo` or `make test`. All targets use .venv, with the versions of requirements.lock.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PY := .venv/bin/python
DEMO_SECONDS ?=
DEMO_PORT ?= 9808
STACK_SECONDS ?=
FUZZ_SECONDS ?= 600
SOAK_SECONDS ?= 3600
# With this variable, each of the hundreds of processes that tests start compiles its imports again.
unexport PYTHONDONTWRITEBYTECODE
UV_VERSION := 0.13.8

.PHONY: help demo stack test coverage lint format truth faults alerts-live celery-integration fuzz mutants golden docs dashboards screenshots alerts pythons lowest latest celery-versions soak bench lock servers newer release-sources release-files release-image release-check clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

define NEW_VENV
{ python3 -m venv .venv || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
  && apt-get update -q && apt-get install -y -q python3-venv && python3 -m venv .venv; } \
  || { echo "make: python3 -m venv failed; on Debian: sudo apt-get install python3-venv" >&2; exit 1; }; } \
  && $(PY) -m pip install -q --disable-pip-version-check uv==$(UV_VERSION)
endef

# The lock file contains uv, so that the sync does not remove it.
.venv/synced: requirements.lock pyproject.toml
	@$(NEW_VENV)
	.venv/bin/uv pip sync -q --require-hashes --python $(PY) requirements.lock
	.venv/bin/uv pip install -q --python $(PY) --no-deps --no-build-isolation -e .
	@touch $@

# Less than a tenth of all. Where `.venv/synced` was made, it has no other versions.
.venv/demo: requirements.lock pyproject.toml
	@$(NEW_VENV)
	.venv/bin/uv pip install -q --python $(PY) --constraints requirements.lock --build-constraints requirements.lock -e '.[demo]'
	@touch $@

demo: .venv/demo  ## run an embedded broker, workers, a client and the exporter until Ctrl-C (or for DEMO_SECONDS=20)
	@exec .venv/bin/celery-exporter demo --port $(DEMO_PORT) $(if $(DEMO_SECONDS),--seconds $(DEMO_SECONDS))

stack: .venv/synced servers  ## run docker-compose.yml without Docker until Ctrl-C (or for STACK_SECONDS=60)
	@exec $(PY) deploy/stack.py $(if $(STACK_SECONDS),--seconds $(STACK_SECONDS))

test: .venv/synced servers newer lint coverage  ## run make lint and all tests, on real brokers, in six processes
	$(PY) -m pytest -n 6 --dist loadfile --no-loadscope-reorder --maxfail=25 --ignore=tests/unit

coverage: .venv/synced  ## run the unit tests, and print the branch coverage of the package by them, in percent
	@data=$$(mktemp -d) && trap 'rm -rf "$$data"' EXIT && export COVERAGE_FILE=$$data/coverage \
	  && .venv/bin/coverage run -m pytest tests/unit -q -n 4 --dist loadfile --maxfail=25 \
	  && .venv/bin/coverage combine -q && .venv/bin/coverage report --format=total

lint: .venv/synced  ## run ruff, mypy --strict, import-linter and codespell
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-cache
	.venv/bin/codespell
	.venv/bin/codespell --regex '[A-Z]+(?![a-z])|[A-Z]?[a-z]+' --dictionary tools/retired-words.txt

format: .venv/synced  ## format the code with ruff
	.venv/bin/ruff check --fix-only -q .
	.venv/bin/ruff format .

truth: .venv/synced servers  ## compare the counts of full scenarios with the records of the tasks, and print a table
	TRUTH_SIZE=full $(PY) -m pytest tests/accuracy -m ""

faults: .venv/synced servers  ## test every fault on every broker, including the long ones, and print a table; needs an idle machine
	MACHINE=quiet $(PY) -m pytest tests/resilience -m ""

alerts-live: .venv/synced servers newer  ## cause faults, and run the stack twice for 30 quiet minutes: compare what fires, and print tables
	$(PY) -m pytest tests/alerts -m ""

celery-integration: .venv/synced servers  ## run Celery's integration tests, and compare the counts with the records of their tasks
	PYTHONPATH=tests $(PY) -m celery_integration

pythons: .venv/synced  ## test the wheel on Python 3.11 to 3.15, as far as they are found (or on PYTHON=3.13)
	@tests/install-servers.sh redis-server rabbitmq-server
	PYTHONPATH=tests $(PY) -m compatibility pythons $(PYTHON)

lowest: .venv/synced  ## test the wheel with the lowest versions of its dependencies
	@tests/install-servers.sh redis-server rabbitmq-server
	PYTHONPATH=tests $(PY) -m compatibility lowest

latest: .venv/synced  ## test the wheel with the newest versions of its dependencies
	@tests/install-servers.sh redis-server rabbitmq-server
	PYTHONPATH=tests $(PY) -m compatibility latest

celery-versions: .venv/synced  ## run workers of Celery 5.2 to 5.7 against the exporter (or of CELERY=5.4), and print a table
	@tests/install-servers.sh redis-server rabbitmq-server
	PYTHONPATH=tests $(PY) -m compatibility celery-versions $(CELERY)

fuzz: .venv/synced  ## fuzz for twice 10 minutes (FUZZ_SECONDS=600), and print tables
	FUZZ_SECONDS=$(FUZZ_SECONDS) $(PY) -m pytest tests/fuzz -m ""
	FUZZ_SECONDS=$(FUZZ_SECONDS) $(PY) tests/fuzz/run_atheris.py

mutants: .venv/synced  ## run mutation tests of the core
	$(PY) tests/mutants.py

golden: .venv/synced  ## update golden texts, Kubernetes manifests and generated parts of docs/ after an intended change
	UPDATE_GOLDEN=1 $(PY) -m pytest -q tests/unit/test_golden_replay.py tests/unit/top/test_app.py tests/unit/test_releases.py
	$(PY) deploy/kubernetes/generate.py
	$(PY) -m tools.docgen
	git diff --stat

docs: .venv/synced  ## build the pages into site/; a broken link is an error
	.venv/bin/zensical build --clean --strict

alerts: .venv/synced  ## generate alerts/celery.rules.yml from the mixin, and its copies (Debian: apt-get install jsonnet)
	$(PY) -m tools.docgen
	jsonnet --string alerts/rules.jsonnet --output-file alerts/celery.rules.yml
	$(PY) deploy/kubernetes/generate.py

dashboards: .venv/synced  ## generate the JSON of the Grafana dashboards, and their copies in the Helm chart
	$(PY) -m dashboards
	$(PY) deploy/kubernetes/generate.py
	git diff --stat dashboards

screenshots: .venv/synced servers  ## draw the dashboards and the pages, at 2 and 80 workers, into docs/img
	@for program in node npm chromium; do \
	  command -v $$program >/dev/null || { echo "make screenshots needs $$program" >&2; exit 1; }; done
	PYTHONPATH=tests $(PY) -m dashboards.pictures.draw
	PYTHONPATH=tests $(PY) -m dashboards.pictures.pages

soak: .venv/synced servers  ## check memory, threads and descriptors for an hour under load with churn (SOAK_SECONDS=3600)
	PYTHONPATH=tests SOAK_SECONDS=$(SOAK_SECONDS) $(PY) -m benchmarks.soak

bench: .venv/synced servers  ## measure the exporter and its peers, and write the tables and the chart of docs/explanation/performance.md and capacity.md
	PYTHONPATH=tests $(PY) -m benchmarks && PYTHONPATH=tests $(PY) -m benchmarks.capacity && $(PY) -m tools.docgen

servers:  ## install redis-server, rabbitmq-server, prometheus and the other programs that tests start
	@tests/install-servers.sh

newer: servers  ## download RabbitMQ 4 and Prometheus 3 for the tests, because Debian 12 has older ones; 380 MB
	@tests/install-newer.sh rabbitmq-4 rabbitmq-server base-files coreutils dash grep sed
	@tests/install-newer.sh prometheus-3 prometheus base-files coreutils dash

lock:  ## update requirements.lock to the newest versions, with hashes
	.venv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-annotate --upgrade --extra demo --extra top --extra otlp --group dev --group docs --group results -o requirements.lock pyproject.toml

release-sources: .venv/synced  ## check version, changelog, placeholders and work tree before a release
	$(PY) -m tools.release sources

release-files: .venv/synced  ## build and check wheel, source package, chart, notes and checksums, in dist/
	$(PY) -m tools.release files

release-image: .venv/synced  ## build the image with podman or docker, and run it
	$(PY) -m tools.release image

release-check: release-sources  ## do all of a release but the upload; takes an hour
	$(MAKE) test pythons docs release-files release-image

clean:  ## remove the virtual environment and caches
	rm -rf .venv .venv-peer site dist .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis {tests/browser,tests/dashboards/types,tests/distribution/actionlint,tests/harness/logql,tests/harness/helm,dashboards/pictures}/node_modules
