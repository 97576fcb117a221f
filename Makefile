# Everything a newcomer needs; each target makes .venv by itself and reuses it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Where TCMalloc is installed, freed memory is kept, which makes training on a CPU faster (docs/machines.md).
TCMALLOC := $(firstword $(wildcard /usr/lib/*/libtcmalloc_minimal.so.4 /usr/lib64/libtcmalloc_minimal.so.4))
KEEP_MEMORY := $(if $(TCMALLOC),LD_PRELOAD=$(TCMALLOC) TCMALLOC_RELEASE_RATE=0)
# The versions that the tests passed with; `make CONSTRAINTS= ...` takes the newest that pyproject.toml allows.
CONSTRAINTS ?= constraints.txt
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Where an index or a machine lacks one of them, what pyproject.toml allows is taken instead.
install = echo "installing .$(1) into $(VENV), some minutes …"; $(if $(CONSTRAINTS),$(PIP_INSTALL) --constraint $(CONSTRAINTS) --editable ".$(1)" || \
	{ echo "$(CONSTRAINTS) did not install (above): trying what pyproject.toml allows"; $(PIP_INSTALL) --editable ".$(1)"; },\
	$(PIP_INSTALL) --editable ".$(1)")
TALK_EXTRAS := [prepare,evaluate,serve]

.PHONY: quickstart quickstart-tokenizer talk test test-nightly check docs gpu-test constraints

quickstart: $(VENV)/ready ## sets up, trains stage 1 of a split SmolLM2-135M on embedded real parts, answers two prompts
	$(BIN)/python -m lit_moss fit -c conf/quickstart_lm.yaml
	$(BIN)/python -m lit_moss predict -c conf/quickstart_lm.yaml -c conf/predict/prompts.yaml --ckpt_path last \
		--model.init_args.max_new_tokens 40 --model.init_args.greedy true --data.init_args.prompts '[conf/predict/prompts.jsonl]'

quickstart-tokenizer: $(VENV)/ready ## sets up, trains the speech tokenizer on the same corpus, writes codes of one file
	$(BIN)/python -m lit_moss fit -c conf/quickstart.yaml
	$(BIN)/python -m lit_moss tokenize "$$($(BIN)/python -m lit_moss prepare everyday)/audio/everyday-0009.flac" \
		--speech-tokenizer runs/quickstart --out codes.jsonl --force

talk: $(VENV)/ready-talk ## sets up, makes a small system that listens and answers aloud, in hours on two cores; a second call continues
	$(KEEP_MEMORY) $(BIN)/python -m experiments.studies.talk -c conf/talk/cpu.yaml

test: $(VENV)/ready-dev ## sets up, then the tests, but for those that train at length or start several processes
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not nightly"

test-nightly: $(VENV)/ready-dev ## those that train at length or start several processes
	$(BIN)/python -m pytest -n 2 --dist worksteal -m nightly

check: $(VENV)/ready-dev docs ## lint, format, types, documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: $(VENV)/ready-docs ## the documentation, built strictly into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet --clean

gpu-test: $(VENV)/ready-dev ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu tests/gpu

constraints: $(VENV)/ready-dev ## writes constraints.txt; in a fresh clone, after `make CONSTRAINTS= test`
	@echo "# The versions that the tests passed with, written by \`make constraints\`; used by the Makefile." > constraints.txt
	$(BIN)/python -m pip --disable-pip-version-check freeze --exclude-editable >> constraints.txt

$(VENV)/ready: pyproject.toml $(wildcard $(CONSTRAINTS))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(call install)
	@touch $@

$(VENV)/ready-docs: $(VENV)/ready
	@$(call install,[docs])
	@touch $@

$(VENV)/ready-dev: $(VENV)/ready
	@$(call install,[dev])
	@touch $@

$(VENV)/ready-talk: $(VENV)/ready
	@$(call install,$(TALK_EXTRAS))
	@touch $@
