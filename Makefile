# `make demo` and `make test` set everything up in .venv on a fresh machine; later calls reuse it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_OUT ?= runs/demo

.PHONY: demo test lint clean

# The core alone: enough to plan.
$(VENV)/core: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch -c constraints.txt
	$(BIN)/pip install --quiet -e . -c constraints.txt
	touch $@

# All extras that the tests use.
$(VENV)/all: $(VENV)/core
	$(BIN)/pip install --quiet -e '.[all,dev]' -c constraints.txt
	touch $@

demo: $(VENV)/core
	$(BIN)/armworld plan --task reach --agent cem --episodes 3 --out $(DEMO_OUT)

test: $(VENV)/all
	$(BIN)/python -m pytest -m "not slow"

lint: $(VENV)/all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:
	rm -rf $(VENV) runs build dist
