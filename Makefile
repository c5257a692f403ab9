# The two commands of a newcomer: make demo, make test. Both make .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
export FLWR_TELEMETRY_ENABLED = 0

.PHONY: demo test lint bench clean

demo: $(VENV)/installed
	$(BIN)/cosmosfl run

test: $(VENV)/installed-dev lint
	$(BIN)/pytest --cov --cov-report=term:skip-covered

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

# QUICK=--quick: each in under a minute. Full: most of an hour; writes the files that docs/speed.md is made of.
bench: $(VENV)/installed-dev
	$(BIN)/python benchmarks/engine.py $(QUICK) $(if $(QUICK),,--out results/engine.json)
	$(if $(QUICK),,$(BIN)/python benchmarks/engine.py --models cnn-s,cnn-m --repeats 1 --out results/engine-cnn.json)
	$(if $(QUICK),,$(BIN)/python benchmarks/architectures.py --out results/architectures.csv)
	$(if $(QUICK),,$(BIN)/python benchmarks/architectures.py --models cnn-s,cnn-m --compile --out results/compile.csv)
	$(BIN)/python benchmarks/clustering.py $(QUICK) $(if $(QUICK),,--out results/clustering.csv)
	$(BIN)/python benchmarks/scale.py $(QUICK) $(if $(QUICK),,--out results/scale.json)
	$(if $(QUICK),,$(BIN)/python benchmarks/speed_page.py)

# torch goes first, on its own, pinned: an unpinned torch can pull gigabytes of CUDA
$(VENV)/torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	touch $@

$(VENV)/installed: $(VENV)/torch pyproject.toml
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/torch pyproject.toml
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
