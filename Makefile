# `make demo` and `make test` set everything up in .venv on a fresh machine; later calls reuse it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_OUT ?= runs/demo

.PHONY: demo test test-robot lint clean

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

# Faults against the simulated robot in real time, reflexes by franka-sim in an environment of its own.
test-robot: $(VENV)/all .venv-franka-sim/ready
	$(BIN)/python -m pytest -m "slow or not slow" tests/test_real_matrix.py tests/test_real_simulated.py tests/test_real_reflex.py

.venv-franka-sim/ready:
	$(PYTHON) -m venv .venv-franka-sim
	.venv-franka-sim/bin/pip install --quiet franka-sim==1.1.7
	touch $@

lint: $(VENV)/all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:
	rm -rf $(VENV) .venv-franka-sim runs build dist
