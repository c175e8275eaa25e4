# gridpipe: every task of the project, one line each. `make help` lists them.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
SCENARIO ?= steady
WORKERS ?= 2
FUZZ ?= 20
NODES ?= 1
# Seconds that ClickHouse is away in fault 8.
DOWN ?= 300
export TZ := UTC
# Everything that is written lies in .venv and var/, temporary files and caches included.
export TMPDIR := $(CURDIR)/var/tmp
export PIP_CACHE_DIR := $(CURDIR)/var/cache/pip
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup run demo test test-slow test-fuzz test-fault kafka check format bench bench-long bench-gate bench-smoke load clean lock audit sbom prometheus browser dashboards

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(VENV)/.installed ## create .venv and install everything, pinned by hash
	@mkdir -p $(TMPDIR) && chmod 700 var

$(VENV)/.installed: requirements/dev.txt pyproject.toml
	@mkdir -p $(TMPDIR)
	@test -x $(BIN)/python || { echo "creating .venv"; $(PYTHON) -c 'import sys; sys.exit("gridpipe needs Python 3.11 or newer; set PYTHON=python3.11" if sys.version_info < (3, 11) else 0)' && $(PYTHON) -m venv $(VENV); }
	@echo "installing pinned packages (about a minute the first time)"
	@$(BIN)/pip install -q --require-hashes -r requirements/dev.txt
	@$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	@touch $@

run: setup ## start the whole service with the simulated city on http://127.0.0.1:8080 (Ctrl-C stops it)
	@exec $(BIN)/gridpipe up

demo: setup ## feed the districts' published year, print published and measured side by side, exit 0
	@exec $(BIN)/gridpipe demo

test: setup ## every test that needs no other machine, on WORKERS=2 processes (a file stays on one)
	@$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 60 --durations-min 4

test-slow: setup ## the tests that `make test` names as slow (some minutes; CI runs them too)
	@SLOW=1 $(BIN)/pytest -m slow

test-fuzz: setup ## FUZZ=20 times as many hostile bytes and requests as in `make test`, and atheris on the decoders
	@$(BIN)/pip install -q --only-binary :all: --require-hashes -r requirements/fuzz.txt || echo "no atheris for this machine: its runs are skipped by name"
	@FUZZ=$(FUZZ) $(BIN)/pytest tests/hostile/test_decode_fuzz.py tests/hostile/test_openapi_fuzz.py tests/hostile/test_atheris.py -s

test-fault: setup ## kills, outages and pauses against the embedded broker and three Kafka brokers (ROUNDS=20, DOWN=300 s without ClickHouse)
	@FAULT=1 SLOW=1 DOWN=$(DOWN) $(BIN)/pytest -n $(WORKERS) --durations 15 --durations-min 60 tests/fault tests/traps tests/integration/test_worker_stream.py tests/property/test_protocol_model.py tests/e2e/test_log_roll.py tests/security/test_flood.py

kafka: setup ## a Kafka of our own on loopback until Ctrl-C (NODES=3 for three nodes)
	@exec $(BIN)/python -m infra.kafka --nodes $(NODES)

check: setup ## lint, format, strict types, secret scan, as in CI
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/gridpipe rules check
	@# The hook answers 3 when only line numbers of known false alarms moved; a copy keeps the checkout clean.
	@mkdir -p $(TMPDIR) && cp .secrets.baseline $(TMPDIR)/secrets.baseline
	@$(BIN)/detect-secrets-hook --baseline $(TMPDIR)/secrets.baseline $$(git ls-files) || test $$? -eq 3

format: setup ## apply the formatter and the safe lint fixes
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

prometheus: ## Debian's prometheus and promtool into var/prometheus, for the tests that need them (no root)
	@infra/prometheus/get.sh

browser: ## Debian's chromium and a Chinese font, for the tests of the live page (asks for root)
	@infra/browser/install.sh

dashboards: setup ## rewrite the Grafana dashboards from infra/grafana
	@$(BIN)/python -m infra.grafana.generate

bench: setup ## every benchmark but growth, peers included; report in var/bench (20 minutes at most, QUICK=1: a look)
	@$(BIN)/python -m benchmarks all $(if $(QUICK),--quick)

bench-long: setup ## cost and memory over 50 million events and 30 minutes, partitions, workers, windows, reads (hours)
	@code=0; for what in growth together reads report; do \
		$(BIN)/python -m benchmarks $$what $(if $(QUICK),--quick) || code=$$?; \
	done; exit $$code

bench-gate: setup ## fail when a speed ratio fell by more than 15 % (a minute and a half)
	@$(BIN)/python -m benchmarks.gate

bench-smoke: setup ## events/s from topic to ClickHouse, against a plain Faust agent
	@$(BIN)/python -m benchmarks.smoke

load: setup ## locust load test: make load SCENARIO=spike LOAD="--rate 5000 --seconds 60"
	@$(BIN)/python -m benchmarks.load $(SCENARIO) $(LOAD)

audit: setup ## known vulnerabilities of the pinned packages; says so where advisories cannot be reached (exit 3)
	@$(BIN)/python -m infra.security.audit

sbom: setup ## what the service is made of, as CycloneDX, in var/sbom
	@$(BIN)/python -m infra.security.sbom

lock: ## rewrite the pinned requirements from pyproject.toml (needs uv)
	uv pip compile pyproject.toml --generate-hashes --no-emit-index-url --no-annotate --no-header -p 3.11 --universal -q -o requirements/runtime.txt
	uv pip compile pyproject.toml --group dev --generate-hashes --no-emit-index-url --no-annotate --no-header -p 3.11 --universal -q -o requirements/dev.txt
	uv pip compile requirements/fuzz.in --generate-hashes --no-emit-index-url --no-annotate --no-header -p 3.11 --universal -q -o requirements/fuzz.txt

clean: ## remove .venv and var/
	rm -rf $(VENV) var
