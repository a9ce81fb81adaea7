PYTHON ?= python3
BIN := .venv/bin

# No hub is needed for anything here, and a machine without a network must not wait for one.
export HF_HUB_OFFLINE := 1

.PHONY: install quickstart test test-slow faults lint bench

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

quickstart: install
	$(BIN)/python search_spaces/prepare_quickstart.py quickstart
	$(BIN)/rayft sweep search_spaces/quickstart.yaml

test: install
	$(BIN)/pytest -m 'not slow and not faults'

test-slow: install
	$(BIN)/pytest -m slow

# What dies while sweeps run, on real processes, with a table of counts; more than an hour with all repeats.
REPEATS := 3
faults: install
	$(BIN)/pytest -m faults --fault-repeats $(REPEATS)

# Against peers, side by side; hours at full size. `make bench BENCH="replay --rows 200"` takes less.
BENCH := all
bench: install
	$(BIN)/python -m benchmarks $(BENCH)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
