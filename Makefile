# Two commands do all the set-up: `make train` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= configs/avatars/smile.yaml

.DEFAULT_GOAL := help
.PHONY: help install train test slow gpu wheel lint types check demo

help:
	@echo "make train   install into .venv and train a slider (CONFIG=$(CONFIG))"
	@echo "make demo    install into .venv and open the demo in a browser at http://127.0.0.1:7860"
	@echo "make test    install into .venv and run the unit tests"
	@echo "make slow    the tests that train or sample the embedded model and SmolLM2 (downloads it once, 93 MB)"
	@echo "make gpu     every command on an accelerator, with tiny models"
	@echo "make wheel   the wheel in a bare environment and an empty folder: train, generate, explain, demo (2 GB for a while)"
	@echo "make check   lint and types"

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

install: $(VENV)/.installed

train: install
	$(BIN)/python train.py --config $(CONFIG)

demo: install
	$(BIN)/sliders demo

test: install  # a process for each core, a thread for each process
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow and not gpu' -n auto

gpu: install
	$(BIN)/python -m pytest -m gpu -rs

slow: install  # what a file trains or loads is made once, by the process that runs the file
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n auto --dist loadfile --no-loadscope-reorder --ignore tests/test_wheel.py

wheel: install
	$(BIN)/python -m pytest -m slow tests/test_wheel.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/pyright

check: lint types
