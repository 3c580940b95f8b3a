# Two commands do everything: `make reproduce` and `make test`. Both create .venv and install what is missing.
PYTHON ?= python3
PROFILE ?= demo
DATA ?=
README ?= README.md

BIN := .venv/bin
INSTALLED := .venv/.installed
INSTALLED_DOCS := .venv/.installed-docs
SITE ?= _docs/html
# glibc keeps the memory of a training step for the next: a fifth faster on a CPU; figures are drawn faster, too
TUNABLES := glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=4294967296
KEEP_MEMORY := GLIBC_TUNABLES=$${GLIBC_TUNABLES:-$(TUNABLES)}
OPTIONS = --profile $(PROFILE) $(if $(DATA),--data "$(DATA)")

.PHONY: help install reproduce figures report publish test fuzz readme docs colab lab

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

.venv/.installed: settings.ini setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gzpaper needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	@echo "Installing into .venv: a few minutes, a few GB (torch comes with its GPU libraries)"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]" -c constraints.txt
	@touch $@

.venv/.installed-docs: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[docs]" -c constraints.txt
	@touch $@

install: .venv/.installed  ## create .venv with all that is needed

reproduce: .venv/.installed  ## every figure, table and number, and the report: PROFILE=demo (mock galaxies), or PROFILE=sample DATA=path
	$(KEEP_MEMORY) $(BIN)/gzpaper reproduce $(OPTIONS)

figures: PROFILE = sample
figures: .venv/.installed  ## draw the published figures again from the committed runs: DATA=path
	$(KEEP_MEMORY) $(BIN)/gzpaper figures $(OPTIONS)

report: PROFILE = sample
report: .venv/.installed  ## the PDF from figures, tables and numbers that are there: the profile's own, or the published ones
	$(BIN)/gzpaper report --profile $(PROFILE)

publish: PROFILE = sample
publish: .venv/.installed  ## copy what a profile has made to figures/ and paper/
	$(BIN)/gzpaper publish $(OPTIONS)

test: .venv/.installed .venv/.installed-docs  ## the notebooks, the exported code, the chain on a small scale, and what is published
	$(BIN)/ruff check .
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder
	$(KEEP_MEMORY) $(BIN)/gzpaper reproduce --check $(if $(GZPAPER_DATA),--data "$(GZPAPER_DATA)")

fuzz: .venv/.installed  ## every reader with thousands of damaged and made-up files: about half an hour; `make test` has a short form
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --hypothesis-profile=full tests/test_fuzz.py

readme: $(INSTALLED)  ## make README.md from nbs/index.ipynb
	@$(BIN)/jupyter nbconvert --log-level ERROR --to markdown --execute --no-input --stdout nbs/index.ipynb > $(README).partial
	@sed 's#](\.\./#](#g' $(README).partial > $(README) && rm $(README).partial

docs: $(INSTALLED) $(INSTALLED_DOCS)  ## the documentation site, in _docs/html: half a minute
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -q -j auto -c docs -d _docs/doctrees . $(SITE)
	@echo "the site is $(SITE)/index.html"

colab: $(INSTALLED)  ## write the Colab badge and the first cell of every notebook, and make its pictures small
	$(BIN)/python tests/colab.py

lab: .venv/.installed  ## JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir nbs
