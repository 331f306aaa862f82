# Needs Python 3.11 or newer, git and make. Everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all lint docs gpu-report clean

demo: .venv/installed
	$(BIN)/python -m densefeat_recipes.demo demo

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-all: .venv/installed-all
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m slow

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

gpu-report: .venv/installed-test
	-$(BIN)/python -m pytest -q tests/gpu
	-$(BIN)/python benchmarks/proof.py --device cuda
	-$(BIN)/python benchmarks/proof.py --device cuda --precision bf16
	$(BIN)/python benchmarks/speed.py --device cuda --batches 8,32,256

docs: .venv/installed-docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html -d build/doctrees docs site

.venv/created:
	$(PYTHON) -m venv .venv
	touch $@

.venv/installed: pyproject.toml | .venv/created
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

.venv/installed-%: pyproject.toml | .venv/created
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[$*,test]"
	touch $@ .venv/installed

clean:
	rm -rf .venv demo site build dist *.egg-info
