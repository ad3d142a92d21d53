# Every target makes .venv when it is missing; nothing is needed beforehand but Python >= 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test check crashes bench golden clean

demo: $(READY)
	$(BIN)/disk-kd demo

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_imports.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir site

crashes: $(READY)
	$(BIN)/python tests/crash_walk.py

bench: $(READY)
	$(BIN)/disk-kd bench --teachers '[cifar_resnet10_l,cifar_resnet18]' --output results/bench/$(or $(DEVICE),cpu) --device $(or $(DEVICE),cpu)

golden: $(READY)
	$(BIN)/python tests/training/record_trajectory.py

clean:
	rm -rf .venv build dist site .pytest_cache .mypy_cache .ruff_cache

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	touch $(READY)
