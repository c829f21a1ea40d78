# One front door for people, hooks and CI. `make` alone lists the targets.
SHELL := /bin/bash
PYTHON := .venv/bin/python
export OMP_NUM_THREADS ?= 1
export TORCH_EXTENSIONS_DIR ?= $(CURDIR)/build/torch_extensions
export HF_HUB_OFFLINE ?= 1

.PHONY: help setup format lint test test-fast test-engine check demo bench bench-peers abuse chaos ci-faults ladder-smoke simulate-faults nightly data-checks constraint-peers proto docs submit clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup:  ## create .venv from requirements/cpu.lock and build what compiles; a second call does nothing
	@scripts/setup.sh

format: setup  ## rewrite the code in the house style
	$(PYTHON) -m ruff format . && $(PYTHON) -m ruff check --fix .

lint: setup  ## ruff, mypy --strict, import-linter
	$(PYTHON) -m ruff format --check . && $(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	.venv/bin/lint-imports

test: setup  ## tests that need no GPU and no minutes: the fast tier, then real vLLM, DeepSpeed, gRPC, Ray, W&B
	$(PYTHON) -m pytest -m "not slow and not gpu"

test-fast: setup  ## the fast tier alone (under a minute)
	$(PYTHON) -m pytest -m "not process and not engine and not ray and not slow and not gpu"

test-engine: setup  ## the tiers with real engines alone
	$(PYTHON) -m pytest -m "(engine or ray) and not slow and not gpu"

check: lint test  ## lint + test

demo: setup  ## train SmolLM2-135M against four principles on two cores; prints before and after
	$(PYTHON) -m demo

bench: setup  ## the benchmarks of this machine, each with its bar
	$(PYTHON) -m benchmarks.coordinator && $(PYTHON) -m benchmarks.simulate && $(PYTHON) -m benchmarks.overlap
	$(PYTHON) -m benchmarks.verifier_service && $(PYTHON) -m benchmarks.weights && $(PYTHON) -m benchmarks.rules
	$(PYTHON) -m benchmarks.async_vs_sync && $(PYTHON) -m benchmarks.real_async && $(PYTHON) -m benchmarks.learner && $(PYTHON) -m benchmarks.probe

bench-peers: setup  ## TRL beside us, in an environment of its own (not part of CI)
	scripts/bench_peers.sh
	$(PYTHON) -m benchmarks.versus_trl

abuse: setup  ## every attack on services, judges and the sandbox; prints what came of each class
	$(PYTHON) -m tests.abuse

chaos: setup  ## kill, stop and starve real runs in every way that is known; prints what came of each
	$(PYTHON) -m tests.chaos

ci-faults: setup  ## the short form: 6 kills, 5 commit points, 300 simulated schedules
	$(PYTHON) -m tests.chaos --short
	$(PYTHON) -m tests.simulate_faults --schedules 300

ladder-smoke: setup  ## a tiny model climbs every kind of rung, text and images, killed once on the way
	$(PYTHON) -m tests.ladder_smoke

simulate-faults: setup  ## 5,000 random fault schedules in virtual time, against an independent account
	$(PYTHON) -m tests.simulate_faults

nightly: setup  ## everything: lint, all tests, attacks, demo, benchmarks, peers
	$(MAKE) lint && $(PYTHON) -m pytest -m "not gpu" && $(MAKE) abuse simulate-faults
	$(PYTHON) -m demo --strict && $(MAKE) chaos bench bench-peers

data-checks: setup  ## hold what PBIF and FollowBench have released against ours: DATA=folder with pbif/ and followbench/
	$(PYTHON) -m cluster.constraint_data $(DATA)

constraint-peers: setup  ## the environment of the independent checkers of `python -m evals.constraint_agreement`
	$(PYTHON) -m venv build/peers/constraints
	build/peers/constraints/bin/python -m pip install --no-deps -r requirements/constraint-peers.txt

proto: setup  ## regenerate the gRPC stubs
	scripts/proto.sh

docs: setup  ## regenerate docs/config.md and docs/config.schema.json
	$(PYTHON) -m cluster.config_docs

submit: setup  ## submit CONFIG=... as a job to the cluster at RAY_API_SERVER_ADDRESS
	.venv/bin/ray job submit --working-dir . -- python -m cluster train $(CONFIG)

clean:  ## remove caches and build products; runs/ and .venv stay
	rm -rf build .mypy_cache .ruff_cache .import_linter_cache .hypothesis && find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
