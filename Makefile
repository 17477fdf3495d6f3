# make demo    install into .venv, then show GIM at work on a bundled model (no network after the installation)
# make test    install into .venv, then lint, tests and notebooks, offline (tests/browser: apt-get install chromium)
# make lab     install into .venv, then JupyterLab on notebooks/
# make notebooks   run each notebooks/*.py and rewrite its executed .ipynb
# make clean   remove .venv

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
OFFLINE := HF_HUB_OFFLINE=1

.PHONY: demo test lab notebooks clean

demo: $(INSTALLED)
	$(OFFLINE) $(BIN)/python -m gimkit demo

# Notebooks run one after another, in the browser too: a kernel that a parallel worker starts sometimes never answers.
test: $(INSTALLED)
	$(BIN)/ruff check .
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --nbmake --nbmake-timeout=300 notebooks
	$(OFFLINE) $(BIN)/python -m pytest -q -n 2 tests --ignore=tests/browser
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/browser

lab: $(INSTALLED)
	$(BIN)/jupyter lab --notebook-dir=notebooks

notebooks: $(INSTALLED)
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python .ci/notebooks.py notebooks/*.py

clean:
	rm -rf .venv

# torch comes first and alone, so that a build already at hand (a local CPU wheel, say) is taken before its dependents ask.
$(INSTALLED): constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "gimkit needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install "$$(grep ^torch== constraints.txt)"
	$(BIN)/python -m pip install -c constraints.txt -e ".[lab,dev]"
	touch $@
