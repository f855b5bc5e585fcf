# Every target sets up what it needs: `make demo` and `make test` work on a fresh clone.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OLDEST := .venv-oldest
CORE_TESTS := $(addprefix tests/test_,model.py packing.py processor.py tokenizer.py auto_classes.py training.py vggt_parity.py \
	generation.py constraint.py conventions.py small_stages.py feature_cache.py lora.py graphed_step.py)
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-oldest check format bench clean

help: ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

setup: $(READY) ## a virtual environment in .venv with everything

$(READY): requirements.txt requirements-dev.txt requirements-deepspeed.txt constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) setuptools wheel -r requirements.txt -r requirements-dev.txt
	$(PIP) --no-deps dashscope==2.0.2  # holds Qwen's vocabulary as a file, for a test
	DS_BUILD_OPS=0 $(PIP) --no-build-isolation -r requirements-deepspeed.txt  # its build needs the torch just installed
	@touch $@

demo: $(READY) ## data -> train -> eval -> an answer and an action, on procedural rooms, without a GPU
	rm -rf outputs/demo outputs/rooms-tiny
	$(BIN)/python train.py
	$(BIN)/python eval.py --model outputs/demo --dataset data/rooms --split test --controls blind --limit 120 \
		--max-new-tokens 160 --output outputs/demo/eval
	@echo; echo '== the same questions, asked of the model that comes with the repository'
	$(BIN)/python eval.py --model models/rooms-tiny --dataset data/rooms --split test --task rooms_qa \
		--controls blind,single_view --output outputs/rooms-tiny
	@echo; echo '== a question about photographs alone'
	$(BIN)/python eval.py --model models/rooms-tiny --images examples/room --question 'What color is the sofa?'
	@echo; echo '== an action, with their cameras and depth, of the model just trained'
	$(BIN)/python eval.py --model outputs/demo --images examples/room --action --question 'Place an anchor on the sofa.' \
		--gravity 0,0,-1 --scale 1 --max-new-tokens 160 --picture outputs/demo/anchor.png
	@echo; echo 'the anchor: outputs/demo/anchor.png; the reports: outputs/demo/eval/report.html, outputs/rooms-tiny/report.html'

test: $(READY) ## the tests, under 15 minutes on 2 cores
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow"

test-all: $(READY) test-oldest ## also the long ones: kills, oldest versions, browser, Java
	$(BIN)/python -m pytest -n 2 --dist loadgroup

test-oldest: $(OLDEST)/.ready ## the model's, the processor's and the trainer's tests on the oldest libraries supported
	$(OLDEST)/bin/python -m pytest -n 2 --dist loadgroup -m "not slow" $(CORE_TESTS)

$(OLDEST)/.ready: $(READY) constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet --disable-pip-version-check -r constraints-oldest.txt
	cd $(VENV)/lib/python3.*/site-packages && pwd > $(abspath $(OLDEST))/base  # all else as in $(VENV)
	cp $(OLDEST)/base "$$(echo $(OLDEST)/lib/python3.*/site-packages)/zz_base.pth"
	@touch $@

check: $(READY) ## lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY) ## rewrite in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## every benchmark at the size this machine can carry
	for script in benchmarks/bench_*.py; do $(BIN)/python -m benchmarks.$$(basename $$script .py) || exit 1; done

clean: ## everything that was made here, but not the environment
	rm -rf outputs data build .pytest_cache .ruff_cache
