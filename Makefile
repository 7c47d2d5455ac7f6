# The two commands a newcomer needs: `make repro` and `make test`. Both build .venv if it is missing
# or requirements.lock has changed.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
COMPILE := uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
  --no-header --quiet
# those of a few minutes; benchmarks/README.md lists all
BENCHMARKS := colour_floor grouping training

.PHONY: help repro test check lint ui lock data fuzz bench clean venv

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

repro: venv  ## run the pipeline, archive to submission.csv (up-to-date stages are skipped)
	dvc repro

test: venv  ## run the tests on two cores (one file: .venv/bin/pytest tests/test_split.py)
	python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: lint test  ## format check, linter, types and tests: what CI runs

lint: venv
	ruff format --check .
	ruff check .
	mypy

ui: venv  ## compare runs in the browser: http://127.0.0.1:5000
	mlflow ui

lock: venv  ## resolve pyproject.toml anew into requirements.lock and requirements-kaggle.lock
	$(COMPILE) --extra dev --upgrade pyproject.toml -o requirements.lock
	$(COMPILE) --group kaggle --upgrade -c requirements.lock -o requirements-kaggle.lock

data: venv  ## download Kaggle's archive into data/source and track it (needs credentials)
	python -m pip install -q --require-hashes -r requirements-kaggle.lock
	python -m src.ingest --download

fuzz: venv  ## mutate archives for a minute: each must end in a result or one of our errors
	python -m tests.faults.fuzz --seconds 60

bench: venv  ## print the benchmark tables
	@for bench in $(BENCHMARKS); do echo "== $$bench"; python -m benchmarks.$$bench || exit 1; done

clean:  ## delete what can be rebuilt: .venv, caches, outputs (not your data, mlflow.db, mlruns/)
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache models reports submission
	rm -rf data/ingest data/split data/source/sample.zip

venv:
	@$(PYTHON) tools/build_venv.py
