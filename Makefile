# Everything is installed into .venv; a stamp file there says what it holds, so that a second run starts at once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EMPTY := build/empty

# What make oldest tests with: the lowest versions that setup.py claims, which have wheels for Python 3.10 and 3.11.
OLDEST := torch==2.4 numpy==1.23.2 torchvision==0.19 scikit-learn==1.2 tqdm==4.60
OLDEST_VENV := .venv-oldest
# The tests of the core. Left out is torch.compile, and what needs other packages: reports, Lightning, learn2learn, higher.
CORE := $(addprefix tests/,checkpoints inner_step labels learners networks passes sources steps/test_updates.py \
	faults/test_not_finite.py $(patsubst %,hypergradient/test_%.py,fallbacks finite_difference forward_mode methods \
	micro_batches) $(patsubst %,model_check/test_%.py,central_differences memory snapshot) training/test_fitting.py)

BENCH ?= --growth

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo docs bench faults test oldest lint package clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s  %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/demo.stamp ## Train on real digit images with six label sources: a table, JSON and a figure
	$(BIN)/python examples/digits.py

docs: $(VENV)/docs.stamp ## Build the documentation site into build/site; it stops at a broken link
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: $(VENV)/bench.stamp ## Measure one iteration beside other ways to write it; BENCH=--quick takes two minutes
	$(BIN)/python -m benchmarks.run $(BENCH)

faults: $(VENV)/test.stamp ## Try to break it: kills, broken files, random cases, mutants, bad calls, long runs
	PYTHONPATH=tests $(BIN)/python -m faults

# Files are started in their order: by default those with the fewest tests, which take the longest, would come last.
test: lint ## Run the linters, the type checker and the tests with branch coverage
	$(BIN)/python -m pytest --cov -n 2 --dist loadfile --no-loadscope-reorder

oldest: $(OLDEST_VENV)/oldest.stamp ## Run the core tests with the lowest supported versions of torch and numpy
	$(OLDEST_VENV)/bin/python -m pytest -n 2 --dist loadfile $(CORE)

lint: $(VENV)/test.stamp ## Run ruff and mypy, and check which package imports which
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

package: $(VENV)/build.stamp ## Build wheel and sdist, install each into an empty environment and import it
	rm -rf dist $(EMPTY)
	$(BIN)/python -m build
	$(BIN)/python -m venv $(EMPTY)
	$(EMPTY)/bin/python -m pip install -q dist/*.whl
	$(EMPTY)/bin/python -I -W error -c "import maxl_l2l; print('wheel:', maxl_l2l.__file__)"
	$(EMPTY)/bin/python -m pip install -q --force-reinstall --no-deps dist/*.tar.gz
	$(EMPTY)/bin/python -I -W error -c "import maxl_l2l; print('sdist:', maxl_l2l.__file__)"
	rm -rf $(EMPTY)

clean: ## Remove both environments and everything that was built
	rm -rf $(VENV) $(OLDEST_VENV) build dist *.egg-info .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/venv.stamp $(OLDEST_VENV)/venv.stamp: %/venv.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, but $(PYTHON) is Python %d.%d: use another with make PYTHON=/path/to/python3" % sys.version_info[:2] or 0)'
	$(PYTHON) -m venv $*
	@touch $@

$(VENV)/demo.stamp $(VENV)/docs.stamp: $(VENV)/%.stamp: setup.py $(VENV)/venv.stamp
	@echo 'Installing torch and what make $* needs into $(VENV): some minutes, once'
	$(BIN)/python -m pip install -q -e '.[$*]'
	@touch $@

# torch and torchvision are upgraded in one command: each release of torchvision is built against one of torch.
# learn2learn 0.2.0 ships C files that Python >= 3.11 cannot compile, so it is built with cython and an old setuptools.
# It and qpth are installed without their dependencies: those that they import are listed here, without gsutil (forty
# packages, never imported) and numpy < 2 (no wheel for Python >= 3.13, not needed for what is tested here).
$(VENV)/bench.stamp $(VENV)/test.stamp: $(VENV)/%.stamp: setup.py $(VENV)/venv.stamp
	@echo 'Installing torch, torchvision and what make $* needs into $(VENV): some minutes, once'
	$(BIN)/python -m pip install -q --upgrade torch torchvision
	$(BIN)/python -m pip install -q -e '.[$*]' cython 'setuptools<81' wheel cvxpy gym requests scipy
	$(BIN)/python -m pip install -q --no-deps --use-pep517 --no-build-isolation \
		--config-settings '--global-option=build_ext' learn2learn==0.2.0 qpth
	@touch $@ $(if $(filter test,$*),$(VENV)/demo.stamp $(VENV)/docs.stamp $(VENV)/bench.stamp)

# Made again when a version changes, as the versions are in the Makefile.
$(OLDEST_VENV)/oldest.stamp: setup.py Makefile $(OLDEST_VENV)/venv.stamp
	@echo 'Installing $(OLDEST) into $(OLDEST_VENV): two minutes and 5 GB, once'
	$(OLDEST_VENV)/bin/python -m pip install -q -e . $(OLDEST) coverage 'pytest>=8' 'pytest-xdist>=3'
	@touch $@

$(VENV)/build.stamp: $(VENV)/venv.stamp
	$(BIN)/python -m pip install -q build
	@touch $@
