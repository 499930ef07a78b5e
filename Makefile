# Needs python3 (3.11 or later), pip, git and make. Everything goes into .venv and sample/ below this directory.
#
#   make run                    a sample drive of real checkpoints: scanned, listed, converted, verified
#   make run DRIVE=/mnt/models  the same on a folder of yours, which is only read
#   make test                   the tests           make lint types   ruff, mypy --strict
#   make docs                   regenerate docs/    make bench        the figures of the README

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Where Python is told to write no bytecode (PYTHONDONTWRITEBYTECODE), every command would compile modelhub anew: half a second each.
COMPILE := $(BIN)/python -m compileall -q hub plugins
JOBS ?= 2
TESTS ?=

.DEFAULT_GOAL := help
.PHONY: help run test lint types format docs bench wheel clean

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

# Stamps: a second run costs nothing, a changed pyproject.toml installs again.
$(VENV)/.made:
	@echo "setting up $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "modelhub needs Python 3.11 or later: make PYTHON=python3.11 ...")'
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV) 2>/dev/null || { rm -rf $(VENV); $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	@$(PIP) install --upgrade 'pip>=25.1'
	@touch $@

$(VENV)/.run: $(VENV)/.made pyproject.toml
	@echo "installing modelhub"
	@$(PIP) install --editable '.[fast]'
	@touch $@

$(VENV)/.lint: $(VENV)/.made pyproject.toml
	@echo "installing the linters"
	@$(PIP) install --group lint
	@touch $@

# One resolver call: torch must be the pinned one, whatever else asks for it.
$(VENV)/.test: $(VENV)/.made pyproject.toml
	@echo "installing modelhub and what its tests need"
	@$(PIP) install --group test --group lint --editable .
	@touch $@ $(VENV)/.run $(VENV)/.lint

run: $(VENV)/.run
	@$(COMPILE)
	@$(BIN)/python examples/first_drive.py $(if $(DRIVE),"$$DRIVE")

test: $(VENV)/.test
	@$(COMPILE)
	@$(BIN)/python examples/sample_drive.py sample/drive
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup $(TESTS)

lint: $(VENV)/.lint
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

format: $(VENV)/.lint
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

types: $(VENV)/.test
	@$(BIN)/mypy

docs: $(VENV)/.test
	@$(BIN)/python examples/sample_drive.py sample/drive
	@for script in docs/generate*.py; do $(BIN)/python "$$script" || exit 1; done

bench: $(VENV)/.test
	@for name in conversion quantization encoding codecs indexing onnx_indexing merging packed tensorflow_checkpoints orbax_checkpoints digests startup watching; do $(BIN)/python benchmarks/$$name.py || exit 1; done

wheel: $(VENV)/.test
	@$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) sample build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
