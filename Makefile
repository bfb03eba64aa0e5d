# Patchwork from a bare clone. `make` alone lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq \
	-c constraints.txt
TORCH := torch==2.13.0
TORCH_CPU := https://download.pytorch.org/whl/cpu

.DEFAULT_GOAL := help
.PHONY: help venv venv-test demo test lint bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' \
		$(MAKEFILE_LIST)

venv: $(VENV)/.run ## make .venv with the pinned dependencies

venv-test: $(VENV)/.test ## add what the tests and the benchmark need

demo: $(VENV)/.run ## train, evaluate, sample and certify small models (10 minutes)
	@$(BIN)/python train.py --config=configs/demo.py --workdir=runs/demo
	@$(BIN)/python eval.py --checkpoint=runs/demo
	@$(BIN)/python sample.py --checkpoint=runs/demo --prompt='def main(' \
		--num_bytes=300 --num_samples=2
	@$(BIN)/python -m bounds --config=configs/certified_small.py --minutes=1 \
		--max_bytes=3000000 --out=runs/certificate
	@printf '%s\n' '' \
		'The run is in runs/demo, its scores in runs/demo/report.json; the' \
		'certificate of a smaller model in runs/certificate/report.md.' \
		'Three things to try next:' \
		"  $(BIN)/python sample.py --checkpoint=runs/demo --prompt='import '" \
		'  $(BIN)/python eval.py --checkpoint=runs/demo --split=validation \' \
		'    --out=runs/demo/validation.json' \
		'  $(BIN)/python train.py --config=configs/tiny.py --workdir=runs/tiny'

test: $(VENV)/.test ## run the whole test suite
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.test ## check the code with ruff
	@$(BIN)/ruff check .

bench: $(VENV)/.test ## compare speed with PyTorch on this machine
	@$(BIN)/python -m bench

clean: ## remove .venv and every cache; runs/ stays
	rm -rf $(VENV) build *.egg-info .hypothesis .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps record what is installed, so that a second `make` costs nothing.
$(VENV)/.run: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		2>/dev/null || { echo "$(PYTHON) is missing or older than Python 3.11;\
	 name a newer one: make venv PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "$(PYTHON) cannot make virtual environments; install its venv\
	 module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@echo 'Installing the pinned dependencies into $(VENV) (about a minute) ...'
	@$(PIP) -e .
	@touch $@

# PyTorch is here to be compared with on the CPU: the CPU build where there is
# one, for it is ten times smaller than the build for accelerators.
$(VENV)/.test: $(VENV)/.run
	@echo 'Installing the test dependencies into $(VENV) (about a minute) ...'
	@$(PIP) '$(TORCH)+cpu' 2>/dev/null \
		|| $(PIP) --extra-index-url $(TORCH_CPU) '$(TORCH)'
	@$(PIP) -e '.[test]'
	@touch $@
