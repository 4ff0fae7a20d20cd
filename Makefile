# Everything is installed into .venv; no other environment is read or changed.

PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet --require-virtualenv

.DEFAULT_GOAL := help
.PHONY: help setup demo test types tests test-real test-browser check-clients check-openapi check-integrations bench-model bench-engine bench-policy bench-policy-real bench-startup bench-proof bench-soak bench-real bench-recipes bench-trace bench-serve pretrain docs clean
.DELETE_ON_ERROR:
unexport PYTHONPATH PYTHONHOME

help:  ## List what can be made
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' Makefile | awk -F'|' '{ printf "%-20s%s\n", $$1, $$2 }'

setup: $(STAMP)  ## Install the package and its tests into .venv (minutes the first time, then nothing)

demo: $(STAMP)  ## Solve the tasks that ship with the package and show every decision
	@$(BIN)/autottt demo

# mypy runs beside the tests; with -k each of them reports, whatever the other finds. Every test process uses one thread:
# the models of the tests are so small that a second one costs more than it saves. Some tests wait, for processes or for
# time, so there is one process more than there are cores.
TEST_PROCESSES ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
test: $(STAMP)  ## Lint, check the formatting and the types, run the tests
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(MAKE) --no-print-directory -k -j2 types tests

types: $(STAMP)
	@$(BIN)/python -m mypy
	@$(BIN)/python docs/example_types.py

tests: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --maxprocesses 4 --dist worksteal

# Outside `make test`: the models are fetched before, with `autottt models fetch NAME`.
MODELS ?= smollm2-135m gemma3-270m
test-real: $(STAMP)  ## Test real models that were fetched, minutes each (MODELS="names, folders or GGUF files")
	@AUTOTTT_REAL_MODELS="$(MODELS)" $(BIN)/python -m pytest tests/real

check-clients: $(STAMP)  ## Run lm-eval, inspect-ai and llm against a server, in an environment of their own (minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python tests/clients/check_clients.py

check-openapi: $(STAMP)  ## Send 10,000 requests that schemathesis makes from the OpenAPI document (a quarter of an hour)
	@OMP_NUM_THREADS=1 $(BIN)/python tests/clients/check_openapi.py

check-integrations: $(STAMP)  ## Run LangChain's tests, `langgraph dev`, lm-eval and inspect-ai in this package's process (minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python tests/clients/check_integrations.py

# Playwright and axe-core are installed into an environment of their own that sees the packages of $(VENV).
BROWSER := .venv-browser
test-browser: $(BROWSER)/.installed  ## Test the pages in headless Chromium (Debian: apt-get install chromium)
	@command -v chromium chromium-browser google-chrome >/dev/null || \
		{ echo "Chromium is not installed; on Debian: apt-get install chromium"; exit 1; }
	@OMP_NUM_THREADS=1 $(BROWSER)/bin/python -m pytest tests/browser

$(BROWSER)/.installed: $(STAMP)
	@rm -rf $(BROWSER)
	@$(BIN)/python -m venv $(BROWSER)
	@$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' \
		>"$$($(BROWSER)/bin/python -c 'import site; print(site.getsitepackages()[0])')/packages_of_the_tests.pth"
	@$(BROWSER)/bin/python -m pip --disable-pip-version-check --quiet install --editable '.[browser]'
	@touch $@

# DATA=folder that holds open/*.jsonl; QUICK=1 for a few tasks of each set. Interrupted, it goes on.
DATA ?= ../shared/data
bench-model: $(STAMP)  ## Measure the bundled model on public sets (hours; DATA=folder, QUICK=1 for a short run)
	@$(BIN)/python benchmarks/model.py $(DATA) --json $(if $(QUICK),runs,benchmarks/results)/model.json \
		--rows runs/model$(if $(QUICK),_quick).rows.jsonl $(if $(QUICK),--quick)

# QUICK=1 for few tasks and runs. Ratios, and whether known adapters are a good beginning, are measured on the generator's
# tasks; where the cross-fit stands on those and on the public sets in DATA, going on where it was interrupted.
bench-engine: $(STAMP)  ## Measure how fast adapters are trained, beside the usual ways (DATA=folder, QUICK=1 for a short run)
	@$(BIN)/python benchmarks/engine.py --json $(if $(QUICK),runs,benchmarks/results)/engine.json \
		$(if $(QUICK),--quick,--picture docs/engine.svg)
	@$(BIN)/python benchmarks/crossfit.py $(if $(QUICK),,$(sort $(wildcard $(DATA)/open/*.jsonl))) --limit 40 \
		--generated $(if $(QUICK),1,20) --json $(if $(QUICK),runs,benchmarks/results)/crossfit.json \
		--cases runs/crossfit$(if $(QUICK),_quick).jsonl
	@$(BIN)/python benchmarks/warm.py --tasks $(if $(QUICK),4,60) \
		--json $(if $(QUICK),runs,benchmarks/results)/warm.json

# The outcomes in benchmarks/outcomes are not measured again; OUTCOMES=folder begins another store, for hours.
OUTCOMES ?= benchmarks/outcomes
bench-policy: $(STAMP)  ## Train a policy on outcomes of generated families and judge it (DATA=folder, QUICK=1 for a few)
	@$(BIN)/python benchmarks/policy.py $(DATA) --outcomes $(if $(QUICK),runs/outcomes_quick,$(OUTCOMES)) \
		--bundle runs/policy$(if $(QUICK),_quick) --json $(if $(QUICK),runs,benchmarks/results)/policy.json $(if $(QUICK),--quick)

# STORES are folders of outcomes, or folders of such folders, of any models. Interrupted, it continues.
STORES ?= benchmarks/outcomes
bench-policy-real: $(STAMP)  ## Judge policies per model, over models, and on domains held out (STORES="folders", QUICK=1)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/policy_real.py $(STORES) \
		--json $(if $(QUICK),runs,benchmarks/results)/policy_real.json $(if $(QUICK),--quick)

bench-startup: $(STAMP)  ## Measure the time until the package is imported, and until an early error is shown (QUICK=1)
	@$(BIN)/python benchmarks/startup.py --json $(if $(QUICK),runs,benchmarks/results)/startup.json $(if $(QUICK),--quick)

bench-proof: $(STAMP)  ## Measure the proof that the base is unchanged (QUICK=1 for fewer runs)
	@$(BIN)/python benchmarks/proof.py --json $(if $(QUICK),runs,benchmarks/results)/proof.json $(if $(QUICK),--quick)

# MODELS are names that `autottt models fetch` has fetched, folders or GGUF files. Interrupted, it continues;
# ROWS=benchmarks/results/real.rows.jsonl goes on with the rows behind the published numbers, instead of from nothing.
ROWS ?= runs/real$(if $(QUICK),_quick).rows.jsonl
bench-real: $(STAMP)  ## Measure real language models in context (hours; DATA=folder, MODELS=names, POLICY=bundle, COST_WEIGHTS="0.01", QUICK=1)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/real_models.py $(DATA) $(MODELS) \
		--json $(if $(QUICK),runs,benchmarks/results)/real.json --rows $(ROWS) $(if $(QUICK),--quick) $(if $(POLICY),--policy $(POLICY) --cost-weights $(COST_WEIGHTS))

# TASKS are files of `autottt tasks export`; MODEL was fetched before. Interrupted, it continues.
MODEL ?= smollm2-135m
TASKS ?= runs/recipe_tasks.jsonl
bench-recipes: $(STAMP)  ## Measure recipes of a real model beside Trainer + PEFT (an hour; MODEL=name, TASKS=files, QUICK=1)
	@[ -e $(firstword $(TASKS)) ] || $(BIN)/python -m autottt tasks export english:all --split test --tasks 2 \
		--demonstrations 8 --queries 6 --out $(firstword $(TASKS))
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/recipe_frontier.py $(MODEL) $(TASKS) \
		--json $(if $(QUICK),runs,benchmarks/results)/recipes_$(MODEL).json \
		--rows runs/recipes$(if $(QUICK),_quick).rows.jsonl $(if $(QUICK),--limit 2,--limit 40 --picture docs/recipes_$(MODEL).svg)

# REPLAY_MODEL=name of a model that was fetched replays its runs as well (hours on a CPU); CHROMIUM=path opens the page.
bench-trace: $(STAMP)  ## Measure what tracing adds, pages, stores and replays (REPLAY_MODEL=name, CHROMIUM=path, QUICK=1)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/tracing.py --json $(if $(QUICK),runs,benchmarks/results)/trace.json \
		--rows runs/trace$(if $(QUICK),_quick).rows.jsonl --model "$(REPLAY_MODEL)" --chromium "$(CHROMIUM)" \
		$(if $(QUICK),--quick)

# SERVE_MODEL=name of a model that was fetched measures its latencies and capacity as well. Interrupted, it continues.
bench-serve: $(STAMP)  ## Measure the server and its scheduler under load (two hours; SERVE_MODEL=name, QUICK=1)
	@$(BIN)/python benchmarks/serving.py --json $(if $(QUICK),runs,benchmarks/results)/serve.json \
		--rows runs/serve$(if $(QUICK),_quick).rows.jsonl --model "$(SERVE_MODEL)" $(if $(QUICK),--quick)

# Resumes from the counters in runs/soak; MINUTES bounds each part.
bench-soak: $(STAMP)  ## Solve with faults, kill processes and damage inputs for hours (MINUTES=60 for each part)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/soak.py --minutes $(or $(MINUTES),240) --json benchmarks/results/soak.json

# The stages of the bundled model, one after the other; interrupted, it goes on. SHARDS=1 for a single GPU: the last two
# stages then take as many tokens a step in one process, and draw other tasks.
SHARDS ?= 2
PRETRAIN := -m autottt.ttt_core.pretraining.pretrain --compile
STAGE := runs/pretrain/stage
pretrain: $(STAMP)  ## Train a model as the bundled one was trained, into runs/pretrain (half a day of two cores)
	@$(BIN)/python $(PRETRAIN) --run $(STAGE)1 --steps 3400 --decay 718 --export $(STAGE)1/model
	@$(BIN)/python $(PRETRAIN) --run $(STAGE)2 --init $(STAGE)1/model --stage further --tokens 8192 --lr 0.0015 --seed 1 \
		--steps 1308
	@$(BIN)/python $(PRETRAIN) --run $(STAGE)2b --branch $(STAGE)2 --seed 7 --steps 2060 --decay 752
	@$(BIN)/python $(PRETRAIN) --run $(STAGE)2a --branch $(STAGE)2 --steps 2650 --decay 1342 --average $(STAGE)2b \
		--export $(STAGE)2/model
	@$(BIN)/torchrun --nproc-per-node $(SHARDS) $(PRETRAIN) --run $(STAGE)3 --init $(STAGE)2/model --stage balanced --tokens $$((16384 / $(SHARDS))) \
		--seed 3 --workers 0 --steps 1800 --decay 870 --export $(STAGE)3/model
	@$(BIN)/torchrun --nproc-per-node $(SHARDS) $(PRETRAIN) --run $(STAGE)4 --init $(STAGE)3/model --stage longer --tokens $$((16384 / $(SHARDS))) \
		--seed 4 --workers 0 --steps 1500 --decay 800 --export $(STAGE)4/model

docs: $(STAMP)  ## Write the generated parts of README.md and docs/ again
	@$(BIN)/python docs/generate.py

clean:  ## Remove .venv and everything that can be made again
	@rm -rf $(VENV) $(BROWSER) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name .git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first: pinned and on its own, it is the one build that was tried here, and what follows finds it installed.
# pip compiles 20,000 files one after the other; a file that cannot be compiled is none that is imported.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV): a few minutes the first time."
	@$(PIP) install --no-compile --constraint constraints.txt torch
	@$(PIP) install --no-compile --constraint constraints.txt --editable '.[test]'
	@$(BIN)/python -m compileall -qq -j 0 -x '/tests/' $(VENV)/lib || true
	@touch $@

$(BIN)/python:
	@for python in $(if $(PYTHON),"$(PYTHON)",python3.11 python3.12 python3.13 python3); do \
	    if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        exec "$$python" -m venv $(VENV); \
	    fi; \
	done; \
	echo "autottt needs Python 3.11 or newer with its venv module; found: $$(python3 --version 2>&1)." >&2; \
	echo "Install one (on Debian and Ubuntu: python3 and python3-venv), or name it: make setup PYTHON=/path/to/python3" >&2; \
	exit 1
