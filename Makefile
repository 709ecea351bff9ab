# Everything a newcomer needs. Each target sets up .venv by itself; `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
# Extra words for pip, e.g. an index of CPU-only builds of torch (CONTRIBUTING.md says which): make lab PIP_ARGS="--extra-index-url …"
PIP_ARGS ?=
LAB_ARGS ?=
PYTEST_ARGS ?=
# Test processes, one core each.
WORKERS ?= 2

# The Pythons that are promised, as settings.ini names them.
FIRST := $(shell sed -n 's/^min_python *= *//p' settings.ini)
LAST := $(shell sed -n 's/^max_python *= *//p' settings.ini)
COMMA := ,

BIN := $(VENV)/bin
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
READY := $(VENV)/.ready
DEMO := _out/demo
# Your own copies of the notebooks, which no target removes.
COURSE ?= course
# What `make model` trains, and where.
RECIPE ?= synthfaces64
RUNS ?= runs/$(RECIPE)
FACES := data/faces/img_align_celeba
# With the style networks: in the style of a reference, and of noise. Without them: by directions.
DEMO_EDITS := $(if $(wildcard data/synthfaces64/modulation/config.json),--edit "Eyeglasses=with:ref=$(FACES)/000018.jpg" --edit "HairColor=blond:seed=1",--edit Eyeglasses=with --edit HairColor=blond)
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

.PHONY: help setup lab test test-avx2 demo model docs export clean
.DEFAULT_GOAL := help

help:  ## list these targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /make \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

$(READY): settings.ini setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not ($(subst .,$(COMMA),$(FIRST))) <= sys.version_info[:2] <= ($(subst .,$(COMMA),$(LAST))))' 2>/dev/null || \
	  { echo "Python $(FIRST) to $(LAST) is needed, for which every library has a release; '$(PYTHON)' is not one of these." \
	    "Name another: make $(MAKECMDGOALS) PYTHON=python$(LAST)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "'$(PYTHON) -m venv' failed. On Debian and Ubuntu install it with: sudo apt-get install python3-venv" >&2; exit 1; }
	@echo "Setting up $(VENV) (about 1.6 GB with the CPU build of torch, a minute or a few) ..."
	@$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e ".[dev,docs,photos]"
	@touch $@

setup: $(READY)  ## make .venv with everything in it (the others do this by themselves)

lab: $(READY)  ## open JupyterLab on six explorers, beside all chapters, as copies of your own in course/
	@$(BIN)/latref_course --out $(COURSE)
	@echo "What you open lies in $(abspath $(COURSE)) and is yours; the notebooks of the clone stay as they are."
	$(BIN)/jupyter lab $(AS_ROOT) $(LAB_ARGS) $(COURSE)/play.ipynb

test: $(READY)  ## run every chapter and every test
	$(PYTEST) --durations=60 $(PYTEST_ARGS)

test-avx2: $(READY)  ## two chapters and a training as on a processor without bfloat16
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(PYTEST) -q tests/test_avx2.py tests/test_training.py tests/test_exercises.py \
	  -k "avx2 or z_comes_to_hold or a_student and (consistency or official)"

demo: $(READY)  ## edit a shipped face by a reference and by latent noise, write a picture and its numbers to _out/demo
	$(BIN)/latref_edit $(FACES)/000029.jpg $(DEMO_EDITS) --compare --out $(DEMO)

model: $(READY)  ## train the shipped model from nothing into runs/ (hours); RECIPE=course for a small one; the same command goes on
	$(BIN)/latref_train recipe $(RECIPE) --out $(RUNS)

docs: $(READY)  ## build the documentation site from the chapters as they are stored: _docs/html/index.html
	$(BIN)/python tools/docs.py

export: $(READY)  ## notebooks to package, README and docs/house.md; run it after every change of a notebook
	$(BIN)/nbdev_clean
	$(BIN)/python tools/clean.py
	$(BIN)/python tools/format.py
	$(BIN)/python tools/exports.py
	$(BIN)/python tools/readme.py
	@$(BIN)/python tools/house.py > /dev/null

clean:  ## remove .venv and what the other targets wrote
	rm -rf $(VENV) _out _docs build *.egg-info .pytest_cache
