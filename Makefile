# make run    sets everything up and opens the page with the embedded model and a sample clip
# make test   sets everything up and passes the tests
# make check  linters, types, tests
# make ask VIDEO=clip.mp4 Q="When does the red circle appear?"
#
# PYTHON is any Python >= 3.11; everything lives in .venv and is rebuilt only when pyproject.toml or constraints.txt change.

PYTHON ?= python3
FAISS  ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
PORT   ?= 7860
BIN    := .venv/bin
STAMP  := .venv/.ready-$(FAISS)

.PHONY: run setup test check lint types ask clean

run: setup
	$(BIN)/python app.py serve --port $(PORT)

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "longlook needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	rm -f .venv/.ready-*
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--editable ".[$(FAISS),train,dev]"
	touch $@

test: setup
	$(BIN)/python -m pytest

check: lint types test

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .

types: setup
	$(BIN)/mypy --strict .

ask: setup
	$(BIN)/python app.py ask "$(VIDEO)" "$(Q)"

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
