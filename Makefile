# Linux and macOS; the same steps for Windows are in docs/install.md.

PYTHON ?= python3
# An index with other builds of torch, such as https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
# Further settings of `make train`, such as ARGS="trainer.steps=200 seed=1"
ARGS ?=
# Processes of `make test`, each with one thread
WORKERS ?= 2
# A folder of wheels, for a machine without network (`make gpu-wheels` fills it, `make gpu` installs from it)
WHEELS ?= wheels
# The machine that `make gpu-wheels` is for
WHEELS_FOR ?= 3.12 x86_64

ifndef RUN
RUN := outputs/pusht/$(shell date +%Y-%m-%d_%H-%M-%S)
endif

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: help train test test-all mutants gpu gpu-wheels lint docs clean

help:
	@echo "make train   set up, train on Push-T, evaluate; settings: ARGS=\"key=value ...\", run folder: RUN=DIR"
	@echo "make test    set up, run the tests but the slow ones; WORKERS=2 processes"
	@echo "make test-all  set up, run all tests, the slow ones too"
	@echo "make mutants   set up, break the core in 60 ways, one at a time, and see which test notices; hours"
	@echo "make gpu     run all tests and measurements that need a GPU: outputs/gpu/report.md in 8 minutes; WHEELS=DIR offline"
	@echo "make gpu-wheels  collect in WHEELS=wheels what an offline machine with torch may lack, for WHEELS_FOR=\"3.12 x86_64\""
	@echo "make lint    set up, check format, style and types"
	@echo "make docs    set up, build the documentation into site/; open site/index.html"
	@echo "make clean   remove .venv and what tools left behind; keeps data and outputs"
	@echo "Settings of all: PYTHON=python3.12 (3.11 or newer), TORCH_INDEX=https://download.pytorch.org/whl/cpu"

train: $(VENV)/.installed-train
	$(BIN)/python scripts/train_policy.py task=pusht $(ARGS) hydra.run.dir=$(RUN)
	$(BIN)/python scripts/evaluate_policy.py checkpoint=$(RUN)/checkpoints/last hydra.run.dir=$(RUN)/evaluation

test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist worksteal

test-all: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

mutants: $(VENV)/.installed-test
	$(BIN)/python tests/mutation/run.py --workers $(WORKERS) $(ARGS)

# With a folder of wheels: the machine's own python, which has torch, and beside it what the wheels hold.
gpu: $(if $(wildcard $(WHEELS)/*.whl),,$(VENV)/.installed-test)
ifneq ($(wildcard $(WHEELS)/*.whl),)
	"$(PYTHON)" -m pip install -q --disable-pip-version-check --no-index --no-deps --upgrade --target outputs/gpu/site \
		$(WHEELS)/*.whl
	PYTHONPATH=outputs/gpu/site:.:envs "$(PYTHON)" scripts/benchmark_gpu.py $(ARGS)
else
	$(BIN)/python scripts/benchmark_gpu.py $(ARGS)
endif

gpu-wheels:
	"$(PYTHON)" tests/gpu_wheels.py "$(WHEELS)" $(WHEELS_FOR)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .hypothesis
	find diffpolicy envs scripts examples tests -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp per extra: a second run installs nothing, a change of the pins or extras installs again.
$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e ".[$*]"
	@touch $@

$(BIN)/python:
	@command -v "$(PYTHON)" >/dev/null || { \
		echo "error: no '$(PYTHON)' here; install Python 3.11 or newer, or name one: make PYTHON=python3.12 ..." >&2; \
		exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1), expected Python 3.11 or newer;" \
			"name another: make PYTHON=python3.12 ..." >&2; \
		exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "error: '$(PYTHON)' lacks the modules venv and ensurepip; on Debian and Ubuntu:" \
			"sudo apt install python$$("$(PYTHON)" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv" >&2; \
		exit 1; }
	"$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
