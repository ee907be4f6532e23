PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: train test test-lowest lint docs clean

train: $(VENV)/.installed  ## train the GRPO router on the default dataset
	$(BIN)/python runners/train_grpo.py

test: $(VENV)/.tested  ## run the tests
	$(BIN)/python -m pytest

# Old releases warn of each other's newer ones: here warnings are no errors.
test-lowest: $(VENV)-lowest/.installed  ## tests under the lowest versions that pyproject.toml allows
	$(VENV)-lowest/bin/python -m pytest -o filterwarnings= tests/agents tests/attention \
		tests/corpora/test_load_collection.py tests/corpora/test_pydocs_dataset.py tests/encoders \
		tests/envs tests/files tests/retrieval tests/routers tests/tables/test_table_files.py \
		tests/runners/test_train_runners.py tests/test_pyterrier.py

$(VENV)-lowest/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-lowest
	$(PYTHON) tests/lowest.py > $(VENV)-lowest/constraints.txt
	$(VENV)-lowest/bin/python -m pip install --quiet --constraint $(VENV)-lowest/constraints.txt setuptools torch
	$(VENV)-lowest/bin/python -m pip install --quiet --constraint $(VENV)-lowest/constraints.txt --editable '.[test]'
	touch $@

lint: $(VENV)/.tested  ## style, format, types, and which room may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

docs: $(VENV)/.docs  ## build the documentation into site/; a broken link fails
	$(BIN)/zensical build --clean --strict

# uv installs the same pins in a tenth of the time; pip takes over where uv cannot be had. uv is told where
# pip looks for packages beside the index.
INSTALL = $(if $(shell test -x $(BIN)/uv && echo yes), \
	UV_FIND_LINKS="$$PIP_FIND_LINKS" $(BIN)/uv pip install --python $(BIN)/python, \
	$(BIN)/python -m pip install) --quiet --constraint constraints.txt

# Stamps are written last, so an interrupted installation is done again.
$(VENV)/.made: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv || true
	touch $@

$(VENV)/.installed: $(VENV)/.made
	$(INSTALL) --editable .
	touch $@

$(VENV)/.tested: $(VENV)/.made
	$(INSTALL) --editable '.[test,lint]'
	touch $@ $(VENV)/.installed

$(VENV)/.docs: $(VENV)/.tested
	$(INSTALL) --editable '.[docs]'
	touch $@

clean:  ## remove the virtual environment (runs and caches stay)
	rm -rf $(VENV) $(VENV)-lowest
