# What there is to do in this repository; `make help` lists it.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH_READY := $(VENV)/.bench-ready
TEST_READY := $(VENV)/.test-ready

.DEFAULT_GOAL := help
.PHONY: help demo test criu test-criu power-cuts bench mutants lint format protos clean

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## Compress a real checkpoint, restore it into a process, check every byte
	$(BIN)/python scripts/demo.py

test: $(TEST_READY) ## Run all tests (ARGS="-k zero -x" goes to pytest)
	$(BIN)/pytest $(ARGS)

criu: $(READY) ## Download real CRIUs and a virtual machine into .criu (250 MB, nothing installed)
	PYTHONPATH=scripts $(BIN)/python -m criu setup

test-criu: $(READY) ## Run tests/criu: dumps and restores by real CRIUs, as root
	PYTHONPATH=scripts $(BIN)/python -m criu test -- $(ARGS)

power-cuts: $(READY) ## Cut the power while checkpoints are changed (CUTS=50 of each command)
	PYTHONPATH=scripts $(BIN)/python -m criu.powercuts $(if $(CUTS),--cuts $(CUTS)) $(ARGS)

bench: $(BENCH_READY) ## Measure helperd beside C programs (QUICK=1: two minutes; CRIU=path; ARGS="--help")
	PYTHONPATH=scripts $(BIN)/python -m bench $(if $(QUICK),--quick) $(if $(CRIU),--criu $(CRIU)) $(ARGS)

mutants: $(READY) ## Break rules one by one and see what no test notices (ARGS="--sample 20")
	nice $(BIN)/python scripts/mutants.py $(ARGS)

lint: $(READY) ## Check style, types and generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy scripts
	$(BIN)/python scripts/protos.py --check
	$(BIN)/python scripts/manual.py --check

format: $(READY) ## Rewrite the sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: $(READY) ## Generate the pb packages from protos/
	$(BIN)/python scripts/protos.py

clean: ## Remove the virtual environment and everything generated but not committed
	rm -rf $(VENV) build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# PYTHON=/path/to/python3.12 chooses the interpreter of a new environment, OLDEST=1 the oldest
# versions that pyproject.toml allows.
$(READY): pyproject.toml scripts/setup.sh
	PYTHON="$(PYTHON)" OLDEST="$(OLDEST)" scripts/setup.sh $(VENV)
	@touch $@

# What single tests ask: shells, man, systemd, mount. Without one of them its tests are skipped.
$(TEST_READY): $(READY) scripts/testtools.sh
	scripts/testtools.sh
	@touch $@

# The chart wants matplotlib; nothing else does.
$(BENCH_READY): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@touch $@
