# `make test` and `make demo` need only python3 (3.10 or newer, with venv) and make.
# Tests of pictures use graphviz's dot and a Chromium where they are installed, and say so where they skip:
# apt-get install graphviz chromium.
# VENV=path uses that environment instead of .venv.

VENV ?= .venv
PYTHON ?= python3
RUN = $(VENV)/bin/python
SOURCES = fxprune passes tests examples

.PHONY: test zoo slow mutation lint demo pictures bench clean

# One thread per worker: more would fight over the cores.
test: lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal

# Every model that we know of into tests/zoo.csv, from where it was left off; hours on two cores.
# make zoo FILTER='timm:*deit*' checks one family, AGAIN=--again also what passed before.
FILTER ?= timm:* torchvision:* zoo_models:* field:*
zoo: $(VENV)/.installed-test $(VENV)/.installed-field
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(RUN) -m fxprune.certify.zoo $(foreach f,$(FILTER),'$(f)') \
		--table tests/zoo.csv --summary README.md $(AGAIN)

# The large models at three ratios and in both captures; `make test` leaves them out.
slow: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m slow -n 2

# Breaks each rule and pass in turn; a test must go red for each (half an hour).
mutation: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 PYTHONPATH=. $(RUN) tests/mutation

lint: $(VENV)/.installed-test
	$(RUN) -m ruff check $(SOURCES)
	$(RUN) -m ruff format --check $(SOURCES)
	$(RUN) -m mypy -p fxprune

demo: $(VENV)/.installed-demo
	@$(RUN) examples/demo.py

# README's screenshots of the page, again.
pictures: $(VENV)/.installed-test
	PYTHONPATH=.:tests $(RUN) tests/show/readme_pictures.py

bench: $(VENV)/.installed-bench
	$(RUN) examples/bench.py

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp per extra, so that an environment is installed once for each.
# pip says nothing but errors.
$(VENV)/.installed-%: setup.cfg pyproject.toml
	@echo "installing fxprune[$*] into $(VENV) (PyTorch, if it is not there yet, is a download of some GB) ..."
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install -qq --disable-pip-version-check --root-user-action=ignore --editable '.[$*]'
	@touch $@
