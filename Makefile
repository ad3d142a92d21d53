# Every target makes .venv when it is missing; nothing is needed beforehand but Python >= 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
LOWEST := .lowest
VERSION = $(shell $(BIN)/python -c 'import importlib.metadata as m; print(m.version("disk-kd"))')

.PHONY: demo test check crashes bench golden dist test-lowest docs-version clean

demo: $(READY)
	$(BIN)/disk-kd demo

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_imports.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir site

# Every command is killed at each call that writes, then stopped or out of disk space at every tenth.
crashes: $(READY)
	$(BIN)/python tests/crash_walk.py
	$(BIN)/python tests/crash_walk.py --by ENOSPC --every 10
	$(BIN)/python tests/crash_walk.py --by TERM --every 10

bench: $(READY)
	$(BIN)/disk-kd bench --teachers '[cifar_resnet10_l,cifar_resnet18]' --output results/bench/$(or $(DEVICE),cpu) --device $(or $(DEVICE),cpu)

golden: $(READY)
	$(BIN)/python tests/training/record_trajectory.py
	$(BIN)/python tests/record_recipes.py

# Wheel and sdist, their metadata and contents, and the demo from the wheel in an environment of its own. That
# environment has the pinned versions, so that torch comes from uv's cache where .venv was made on the same machine.
dist: $(READY)
	rm -rf dist
	$(BIN)/uv build --quiet --python $(BIN)/python --out-dir dist
	$(BIN)/uv tool run --quiet twine@7.0.0 check --strict dist/*.whl dist/*.tar.gz
	$(BIN)/python tests/check_dist.py dist
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python dist/clean
	$(BIN)/uv pip install --quiet --compile-bytecode --python dist/clean/bin/python --constraint constraints.txt dist/*.whl
	cd dist && clean/bin/disk-kd demo --seeds 2 --runs demo --quiet
	rm -rf dist/clean dist/demo

# The oldest versions that pyproject.toml allows, in an environment of their own: a part of the suite that needs no extra.
# The compiler of torch 2.6 needs setuptools and does not declare it.
test-lowest: $(READY)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(LOWEST)
	$(BIN)/uv pip compile --quiet --python $(LOWEST)/bin/python --resolution lowest-direct pyproject.toml --output-file $(LOWEST)/requirements.txt
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(LOWEST)/bin/python --requirement $(LOWEST)/requirements.txt --editable . pytest pytest-xdist setuptools torchdistill
	$(LOWEST)/bin/python -m pytest -n 2 --dist loadfile tests/losses tests/helpers tests/tasks tests/models tests/hints tests/test_metrics.py tests/test_api.py tests/test_demo.py

# A version of the documentation beside the earlier ones: a commit on the branch gh-pages of this clone.
docs-version: $(READY)
	PATH=$(CURDIR)/$(BIN):$$PATH NO_MKDOCS_2_WARNING=1 $(BIN)/mike deploy --update-aliases $(VERSION) latest
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/mike set-default latest

clean:
	rm -rf .venv .lowest build dist site .pytest_cache .mypy_cache .ruff_cache

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	touch $(READY)
