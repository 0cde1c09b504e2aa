# make run    sets everything up and opens the page with the embedded model and a sample clip
# make test   sets everything up and passes the tests
# make check  linters, types, tests
# make ask VIDEO=clip.mp4 Q="When does the red circle appear?"
#
# PYTHON is any Python >= 3.11; everything lives in .venv and is rebuilt only when pyproject.toml or constraints.txt change.

PYTHON ?= python3
FAISS  ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
PORT   ?= 7860
TEST_PROCESSES ?= 2
BIN    := .venv/bin
STAMP  := .venv/.ready-$(FAISS)
RUN    := .venv/.runs-$(FAISS)

.PHONY: run setup runtime test check lint types ask clean

run: runtime
	$(BIN)/python app.py serve --port $(PORT)

setup: $(STAMP)

# What runs longlook; what tests and trains it comes with `setup`, which will do as well.
runtime: $(if $(wildcard $(STAMP)),$(STAMP),$(RUN))

$(STAMP): EXTRAS := $(FAISS),train,dev
$(RUN): EXTRAS := $(FAISS)

$(STAMP) $(RUN): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "longlook needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Setting up .venv, once: some minutes and about 2 GB."
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	rm -f .venv/.ready-* .venv/.runs-*
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --disable-pip-version-check \
		--editable ".[$(EXTRAS)]"
	touch $@

test: setup
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile

check: lint types test

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .

types: setup
	$(BIN)/mypy --strict .

ask: runtime
	$(BIN)/python app.py ask "$(VIDEO)" "$(Q)"

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
