# Each target sets up what it needs: a venv in .venv, installed once and again only when pyproject.toml changes.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PEERS  := .venv-peers

# Processes of the tests, which mostly wait; JOBS=1 goes one by one.
JOBS ?= 4
# What starts servers is marked `slow` by the module, and of that a test of each engine and each command is `smoke`.
FAST := -m 'smoke or not (slow or timing or soak)' --hypothesis-profile fast

# To compile all modules and rewrite all assertions anew would take each of these processes some seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo peers test test-all check-results soak fuzz lint format clean
.DEFAULT_GOAL := help

help:            ## this list
	@grep -hE '^[a-z-]+: .*##|^[a-z-]+:  *##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | while IFS="$$(printf '\t')" read -r t d; do printf '  make %-10s %s\n' "$$t" "$$d"; done

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "prefork needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(READY)   ## measure 1 worker against 4 and print the table (under 90 s after installing)
	$(BIN)/loadtest run loadtest/plans/demo.toml

peers: $(PEERS)/.ready ## install the servers that plans compare with, into a venv of their own

$(PEERS)/.ready: loadtest/peers/requirements.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	grep -v '^#' $< | while read peer; do \
	  $(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check "$$peer" || \
	    echo "$$peer cannot be installed, so its rows will be left out (uWSGI needs gcc, bjoern also libev-dev)" >&2; done
	touch $@

test: $(READY)   ## what starts no server, and a smoke test of each engine and command (a minute or two)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(FAST)

test-all: $(READY) ## all tests but the soak, slow fault and load tests included (under 40 minutes)
	$(BIN)/python -m tests.support.full --jobs $(JOBS) $(RETRY)

check-results: $(READY) ## report every run under results/ again, and compare the pages' figures (part of test-all)
	$(BIN)/python -m pytest -m '' tests/loadtest/report/test_results.py

soak: $(READY)   ## the long tests; results go to results/
	$(BIN)/python -m pytest -m soak --results=results

fuzz: $(READY)   ## a million inputs for the HTTP parser; INPUTS=n SECONDS=s for other amounts
	$(BIN)/python -m tests.http.fuzz --inputs $(or $(INPUTS),1000000) --seconds $(or $(SECONDS),0)

lint: $(READY)   ## ruff, mypy strict, and the import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

format: $(READY) ## let ruff format and fix what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:           ## remove the venv and every cache
	rm -rf $(VENV) $(PEERS) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build
