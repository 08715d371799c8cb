# Two commands from nothing (Python 3.11, pip, make): `make demo` and `make test`. Both make .venv and install once.
PYTHON ?= python3.11
BIN := .venv/bin
# Byte-compiling every file of every package takes longer than compiling those that are imported, when they first are;
# their bytecode must then be kept, or every process of a sweep would compile them again.
export PYTHONDONTWRITEBYTECODE :=
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable

.PHONY: demo test slow soak hosts bench tables lint format clean

demo: .venv/demo-installed
	$(BIN)/tailsweep run orchestrator/sweeps/demo.yaml $(ARGS)

test: lint
	$(BIN)/python -m pytest -m "not gpu and not slow and not network and not soak" $(ARGS)

# Several nodes on this machine, an object store, job scripts with a real Ray.
slow: .venv/test-installed
	$(BIN)/python -m pytest -m "slow and not soak" $(ARGS)

soak: .venv/test-installed
	$(BIN)/python -m pytest -n 0 -m soak -s $(ARGS)

# Needs root: a head and two hosts in network namespaces, a sweep there, and one that loses a host.
hosts: .venv/test-installed
	$(BIN)/python -m pytest -n 0 -m network -s $(ARGS)

bench: .venv/test-installed
	$(BIN)/python tests/benchmarks/run.py $(ARGS)
	$(BIN)/python tests/benchmarks/sweeps.py $(filter --quick --write,$(ARGS))

# What is read of public dialects of data files, and what is computed of many architectures.
tables: .venv/test-installed
	$(BIN)/python tests/tables/files.py
	$(BIN)/python tests/tables/architectures.py

lint: .venv/test-installed .lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python tests/house_rules.py
	cd .lint && ../$(BIN)/lint-imports ../pyproject.toml --no-cache
	cd .lint && ../$(BIN)/mypy --config-file ../pyproject.toml

format: .venv/test-installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .lint build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis bench.json bench-sweeps.json

# The packages as a wheel lays them out, one below the other, for tools that read the folders.
.lint:
	mkdir -p .lint/tailsweep
	ln -s $(foreach name,__init__.py __main__.py py.typed,../../tailsweep/$(name)) .lint/tailsweep
	ln -s $(foreach name,orchestrator trainables clusters,../../$(name)) .lint/tailsweep

.venv:
	$(PYTHON) -m venv .venv

.venv/demo-installed: pyproject.toml constraints.txt | .venv
	$(INSTALL) '.[demo]'
	touch $@

.venv/test-installed: pyproject.toml constraints.txt | .venv
	$(INSTALL) '.[demo,test]'
	touch .venv/demo-installed $@
