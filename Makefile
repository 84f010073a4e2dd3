# `make search` and `make test` do all the set-up there is; both work from anywhere with `make -C path/to/metasearch`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.metasearch-installed

# Set-up compiles no module, so whoever imports one first must keep what it compiled: without that every process of the tests
# (there are hundreds) compiles torch, Ray and MLflow for itself.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: search test test-slow lint setup clean
.DEFAULT_GOAL := setup

setup: $(STAMP)

search: $(STAMP)  ## the main job: the default study, to a leaderboard
	$(BIN)/metasearch run --new-id glyphs $(ARGS)

SIDE_BY_SIDE := -n 2 --dist loadgroup

test: $(STAMP)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(ARGS)

test-slow: $(STAMP)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m slow $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

# The stamp is written last, so that an interrupted installation is taken up again.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "metasearch needs Python 3.11 or later; \
	this is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
