# `make run` and `make test` do everything on a fresh machine; `make check` and `make test` are what CI runs.
# ARGS go to the command:  make run ARGS="--set server.grpc_port=50061"   make test ARGS="tests/cli -x"

BIN := .venv/bin
ARGS ?=
# Compiled modules are kept even where the machine asks otherwise: they halve the start of everything that loads torch.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup run demo test test-slow test-gpu check format protos config docs lock

help:
	@echo 'make run        chat, rate, and watch it get better (sets everything up first)'
	@echo 'make demo       proof with simulated raters: measures before and after'
	@echo 'make test       tests; make test-slow for those that take minutes, make test-gpu for those that need a GPU'
	@echo 'make check      style, types, import contract, protos'
	@echo 'make format     formats the code'
	@echo 'make protos     writes the stubs after a change of protos/'
	@echo 'make config     writes thumbwheel.toml after a change of thumbwheel/config.py'
	@echo 'make docs       writes docs/configuration.md and docs/api.md after a change of either source'
	@echo 'make lock       resolves the locked dependencies anew'
	@echo 'make setup      only the environment'

setup:
	@deploy/setup.sh

run: setup
	@$(BIN)/thumbwheel up $(ARGS)

demo: setup
	@$(BIN)/thumbwheel demo $(ARGS)

test: setup
	$(BIN)/python -m pytest $(ARGS)

test-slow: setup
	$(BIN)/python -m pytest -m 'slow and not gpu' --timeout 3600 $(ARGS)

test-gpu: setup
	$(BIN)/python -m pytest -m gpu $(ARGS)

check: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	PATH="$(CURDIR)/$(BIN):$$PATH" protos/check.sh

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

protos: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" protos/release.sh

config: setup
	$(BIN)/python -m cli.config_toml > thumbwheel.toml

docs: setup
	$(BIN)/python -m cli.config_reference > docs/configuration.md
	$(BIN)/python protos/reference.py > docs/api.md

lock: setup
	deploy/lock.sh
