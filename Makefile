# Two commands do everything on a fresh machine with Python 3.11+ and a C++ compiler:
#   make demo    train on real data, and say where the picture is
#   make test    lint, types, documentation, doctests and tests
PYTHON ?= python3
VENV   ?= .venv
PY      = $(VENV)/bin/python
#--no-compile: 283 MB of Python take a minute to compile, and most of it is never imported.
PIP     = $(PY) -m pip --disable-pip-version-check install --quiet --no-compile --constraint constraints.txt

INSTALLING = @echo 'installing ftrain, torch and other packages into $(VENV): a large download, silent until it is done'

.PHONY: help demo test lint types docs unit bench laws parity campaign distributed files databases transformers processors matrix compositions nullcuda everywhere disks mutants clean

# Each target, after the lines that explain it.
help:
	@sed -n 's/^# /  /p; s/^\([a-z]*\):.*/\1/p' Makefile

demo: $(VENV)/examples
	$(VENV)/bin/ftrain train examples/configs/digits.yaml output_dir=runs/demo --overwrite
	@$(PY) -c 'import json; \
	  history = json.load(open("runs/demo/result.json"))["history"]; \
	  last = [one for one in history if one["split"] == "eval"][-1]; \
	  print("LeNet-5 recognises {:.1%} of {} handwritten digits that it has not seen in training." \
	    .format(last["metrics"]["accuracy"], last["samples"]))'

# Two checks at a time, since each keeps one core busy; then the tests.
test: $(VENV)/dev
	$(MAKE) --jobs=2 types docs lint
	$(MAKE) unit

lint: $(VENV)/dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/dev
	$(VENV)/bin/mypy

# The documentation site, in build/site.
docs: $(VENV)/dev
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

unit: $(VENV)/dev
	$(PY) -m pytest -n 2 --dist worksteal

# The twelve laws (docs/guarantees.md): of a step on four models, random streams (4), derivatives (11), batches (12).
laws: $(VENV)/dev
	$(PY) -m pytest -v tests/laws tests/random tests/core/test_nested_gradients.py tests/core/test_cut_gradients.py \
	  tests/core/test_cond.py tests/core/test_while_loop.py tests/core/test_batches.py tests/loop/test_containers.py \
	  tests/transforms/test_sweep.py

# Every optimizer against torch.optim and optax over 100 steps; rewrites docs/optimizers.md.
parity: $(VENV)/dev
	$(PY) -m tests.optim.page

# Long forms of what the suite does briefly: optimizers on every problem, laws on every product, sweeps, benchmarks,
# processes in new interpreters, all programs of inductor, properties with 100 examples (hours), then kills (half an hour
# on a busy machine), flips, polls, mutants, resumes of checkpoints, then commands on run directories with hostile files.
campaign: $(VENV)/dev
	FTRAIN_CAMPAIGN=1 $(PY) -m pytest -n 2 --dist worksteal tests/optim/test_products.py tests/laws \
	  tests/testing/test_laws_accept.py tests/transforms/test_sweep.py tests/transforms/test_unroll_loops.py \
	  tests/core/test_body_memory.py tests/core/test_draws.py tests/data/test_permutation.py \
	  tests/cli/test_hostile.py tests/cli/test_processes.py tests/cli/test_notes.py tests/loop/test_resume.py \
	  tests/loop/test_failures.py tests/loop/test_signals.py tests/loop/test_memory.py \
	  tests/loop/test_second_start.py tests/benchmarks \
	  tests/optim/test_algorithms.py tests/optim/test_hyperparameters.py tests/optim/test_transformations.py \
	  tests/optim/test_wrappers.py tests/core/test_hidden_backward.py tests/core/test_hooks.py \
	  tests/core/test_mapped_norms.py tests/tasks/test_functional.py tests/tasks/test_integer_inputs.py \
	  tests/checkpoint tests/config/test_versions.py tests/random/test_kernel.py tests/testing/divergence \
	  tests/test_readme.py
	FTRAIN_CAMPAIGN=1 $(PY) -m pytest -n 2 --dist worksteal -m "inductor or hypothesis" --ignore tests/compositions tests
	for c in kills flips polls fuzz resume; do $(PY) -m tests.checkpoint.campaign_$$c || exit 1; done
	$(PY) -m tests.cli.hostile --cases 500

# Every model, precision and backend on 1, 2 and 4 ranks, 200 kills of random ranks while they save, 200 of
# whole runs (half under torchrun), and the others that tests/distributed shortens.
distributed: $(VENV)/dev
	FTRAIN_CAMPAIGN=1 $(PY) -m pytest tests/distributed

# Mutated data files of every format: each is read, or refused by its name. COUNT=50000 of them take five minutes.
files: $(VENV)/dev
	$(PY) -m tests.data.campaign_files $(if $(COUNT),--count $(COUNT)) $(if $(SEED),--seed $(SEED))

# Torch's own databases, every input of each entry, against torch itself; the suite takes a sample. MINUTES=30 of a
# processor take random inputs of random operators instead, in more dtypes, drawn with SEED=1.
databases: $(VENV)/dev
	$(if $(MINUTES),$(PY) -m tests.databases.campaign --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)), \
	  FTRAIN_CAMPAIGN=1 $(PY) -m pytest tests/databases)

# Models of the transformers library, tiny and random, under the laws; the suite takes a dozen. SAMPLE=100 takes so many
# at random, drawn with SEED=1.
transformers: $(VENV)/dev
	FTRAIN_CAMPAIGN=1 $(if $(SAMPLE),FTRAIN_SAMPLE=$(SAMPLE):$(or $(SEED),0)) $(PY) -m pytest tests/transformers

# Random programs of gradients, loops, branches and transforms, against an oracle. FTRAIN_CAMPAIGN=1 takes ten thousand
# with seeds of their own, and prints what came of them (hours on a busy machine); MINUTES=30 of a processor take as many
# as they can, with the seeds from SEED=1 on.
compositions: $(VENV)/dev
	$(if $(MINUTES),$(PY) -m tests.compositions.campaign --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)), \
	  $(PY) -m pytest tests/compositions -v)

# The suite with the kernels of other processors, and with two threads: what passes here by luck fails there. Hours;
# one of them, on some tests: python -m tests.processors order -- tests/laws
processors: $(VENV)/dev
	$(PY) -m tests.processors

# CUDA paths on a device that computes nothing: launches, syncs, copies, capture, generated code. NULLCUDA names a
# launcher: a command that starts Python with a CUDA build of torch on such a device. Without one, all are skipped.
# FTRAIN_CAMPAIGN=1 compiles every model in every precision, instead of some in each.
nullcuda: $(VENV)/dev
	NC_DEVICES=$${NC_DEVICES:-2} $(if $(NULLCUDA),$(NULLCUDA),$(PY)) -m pytest tests/nullcuda

# The quick tests on other versions of Python and torch (docs/versions.md); PYTHONS="3.12 3.13" TORCHES="2.11 newest"
# chooses some. Each cell installs a torch, gigabytes.
matrix: $(VENV)/dev
	$(PY) -m tests.matrix $(if $(PYTHONS),--python $(PYTHONS)) $(if $(TORCHES),--torch $(TORCHES))

# A signal before each line that a run executes: the resumed run ends in the same bytes.
everywhere: $(VENV)/dev
	$(PY) -m tests.loop.everywhere

# Runs on a full disk: a tmpfs of each size up to the run's own, each write of a run, limits of file sizes. Each must end
# in one sentence and resume to the same bytes. An hour; one part: python -m tests.cli.full_disk --sizes
disks: $(VENV)/dev
	$(PY) -m tests.cli.full_disk

# Changes in ftrain/core, one operator or constant at a time, that the tests should find: SAMPLE=200 of them, drawn with
# SEED=1, in MINUTES=60. The first run traces the tests, which takes as long as the suite does on one core.
mutants: $(VENV)/dev
	$(PY) -m tests.mutants $(if $(SAMPLE),--sample $(SAMPLE)) $(if $(SEED),--seed $(SEED)) \
	  $(if $(MINUTES),--minutes $(MINUTES))

# Benchmarks against hand-written loops, and against other trainers if they are installed. Without `optimizers` and
# `char_gpt_parity`, which run by name. Latency alone takes over eight minutes.
bench: $(VENV)/examples
	$(PY) -m benchmarks

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "ftrain needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/examples: pyproject.toml constraints.txt | $(PY)
	$(INSTALLING)
	$(PIP) --editable '.[examples]'
	@touch $@

$(VENV)/dev: pyproject.toml constraints.txt | $(PY)
	$(INSTALLING)
	$(PIP) --editable '.[dev,examples]'
	@touch $@ $(VENV)/examples

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
