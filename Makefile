PYTHON ?= python3
VENV ?= .venv
ARGS ?=
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install run ablations llm corpus bench docs test tests-of-a-run other-tests lint format lab clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18
	@echo '  PYTHON=python3.11 picks the interpreter, VENV=.venv the environment, ARGS="--from 3 --set epochs=5" goes to udrl run'

install: $(STAMP)  ## set up the virtual environment (the other targets do so too)

$(STAMP): pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[offline,deploy,search,serve,scale,dev]'
	@touch $@

run: install  ## run notebooks 01-04 on the laptop preset; prints results and the report's path
	$(BIN)/udrl run --preset laptop $(ARGS)

ablations: install  ## train all ablations of the laptop run, and run its analysis again
	$(BIN)/udrl run --preset laptop --from 4 --set 'ablations=[all]' $(ARGS)

llm: install  ## fetch SmolLM2-135M-Instruct (98 MB) into models/: a language model to watch at work as a teacher
	$(BIN)/udrl llm

corpus: install  ## record the teacher anew, then the base and the ready student: one GPU, a quarter of an hour
	$(BIN)/udrl llm qwen2.5-coder-1.5b
	$(BIN)/udrl run --preset record --to 1 $(ARGS)
	$(BIN)/udrl record record
	$(BIN)/udrl base $(addprefix --glosses ,$(wildcard /usr/share/wordnet))
	$(BIN)/udrl ready

bench: install  ## training and decoding beside what one would use instead, after make run
	$(BIN)/python benchmarks/speed.py $(ARGS)

test: lint  ## lint, then all tests in two processes: those that read a run of the smoke preset, and the others
	OMP_NUM_THREADS=1 $(MAKE) -j2 tests-of-a-run other-tests

tests-of-a-run: install
	$(BIN)/pytest -m reads_run

other-tests: install
	$(BIN)/pytest -m 'not reads_run'

lint: install  ## ruff (rules and format, notebooks too), the direction of imports, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python

format: install  ## mend what ruff can mend, strip the notebooks
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/nbstripout --keep-id --extra-keys 'metadata.papermill cell.metadata.papermill' notebooks/*.ipynb

docs: install  ## write docs/parameters.md anew
	$(BIN)/udrl parameters > docs/parameters.md

lab: install  ## open the notebooks in JupyterLab; 05 has the panel
	$(BIN)/jupyter lab notebooks

clean:  ## remove the environment and caches; outputs stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis *.egg-info
