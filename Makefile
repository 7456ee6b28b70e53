# `make demo` and `make test` set up .venv by themselves; both are safe to repeat.
# Another Python:  make test PYTHON=/path/to/python3.12
# Another torch:   make demo TORCH="torch==2.13.0 --index-url ..."   (one for your GPU; first `make clean` a .venv that is
# there)

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
HOST := $(VENV)/.host
BENCH := $(VENV)/.bench
EXTRAS := torch,train,dicom,batch,dev
PIP := $(BIN)/python -m pip install --quiet
comma := ,

.PHONY: demo test install-check lint style format setup weights clean bench bench-quick publish-tree soak fuzz lock
.PHONY: named-torch

demo: weights
	$(BIN)/spdsegment demo --output demo-output

# Types beside three processes of tests, which wait often; then what measures time or memory alone; all count.
test: style weights
	@$(BIN)/mypy > $(VENV)/mypy.log 2>&1 & types=$$!; status=0; \
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder -m "not alone" || status=$$?; \
	wait $$types || status=$$?; cat $(VENV)/mypy.log; \
	$(BIN)/python -m pytest -m alone || status=$$?; \
	exit $$status

# `pip install .` without torch into a fresh environment of every Python from 3.11 on that is on the path or under pyenv.
install-check:
	@set -e; for p in python3.11 python3.12 python3.13 python3.14 $$HOME/.pyenv/versions/3.1[1-9]*/bin/python; do \
	  command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	  echo "$$p: $$($$p --version)"; rm -rf build/install; $$p -m venv build/install; \
	  build/install/bin/pip install --quiet .; build/install/bin/spdsegment --version; \
	  (cd build && install/bin/spdsegment models list >/dev/null); done

lint: style
	$(BIN)/mypy

style: $(HOST)
	$(BIN)/ruff check .
	$(BIN)/ruff check --preview --select PLW1514 .
	$(BIN)/ruff format --check .
	test ! -x $(BIN)/hadolint || $(BIN)/hadolint Dockerfile

# What this machine's GPU does, in at most four minutes: Testing/Benchmarks/results/gpu-<card>.json and a table.
gpu: weights
	$(BIN)/python Testing/Benchmarks/gpu.py

# All systems on all data sets, into docs/benchmark.md, and speed and memory: days on a CPU; stop it at any time, it goes
# on. Models that are compared with and are not here are trained first. Needs the labeled volumes in ../shared/data.
RESULTS := Testing/Benchmarks/results
SPDBENCH := PYTHONPATH=Testing/Benchmarks $(BIN)/python -m spdbench Testing/Benchmarks/benchmark.toml
bench: $(BENCH)
	mkdir -p $(RESULTS)
	$(BIN)/python Testing/Benchmarks/speed.py --output $(RESULTS)/speed.json
	$(BIN)/python Testing/Benchmarks/memory.py --output $(RESULTS)/memory.json
	$(BIN)/python Testing/Benchmarks/freed_memory.py --output $(RESULTS)/freed-memory.json
	$(SPDBENCH)

# The systems in small, with the models that are here: some minutes.
bench-quick: weights
	$(SPDBENCH) --quick

# The tree for the Extensions Index (one commit) into build/publish, and the checks that need no network; python alone.
# make publish-tree REPOSITORY=https://github.com/OWNER/SlicerSPDSegment
REPOSITORY ?=
publish-tree:
	$(PYTHON) Testing/publish_tree.py --repository '$(REPOSITORY)'

# Long runs: random frames, kills at random moments (also of Dask workers), memory over updates; about half an hour.
soak: $(HOST)
	$(BIN)/python Testing/Soak/worker.py fuzz
	$(BIN)/python Testing/Soak/worker.py send
	$(BIN)/python Testing/Soak/worker.py kill
	$(BIN)/python Testing/Soak/worker.py update
	$(BIN)/python Testing/Soak/worker.py volumes
	$(BIN)/python Testing/Soak/module.py kill
	$(BIN)/python Testing/Soak/module.py update
	for n in 1 2 3 4 5; do SPDSEGMENT_SOAK=1 $(BIN)/python -m pytest -q Testing/Python/test_batch_cluster.py -k "killed or lost or slurm or full_disk" || exit 1; done
	$(BIN)/python Testing/Benchmarks/batch_efficiency.py --workers 2 4 8

# Mutated frames, bundles, images, DICOM and points within one process, for so many seconds; fails on anything but a
# result or a clear sentence.
SECONDS ?= 600
fuzz: $(INSTALLED)
	$(BIN)/python Testing/Soak/fuzz.py --seconds $(SECONDS)

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The newest versions that pyproject.toml allows, in an environment of its own, become constraints.txt. Systems that are
# compared with are not installed for that; their pins stay.
LOCK := build/lock
COMPARED := monai|nnunetv2|sam2
FREEZE := pip freeze --all --exclude pip --exclude wheel --exclude-editable
lock:
	rm -rf $(LOCK)
	$(PYTHON) -m venv $(LOCK)
	$(LOCK)/bin/python -m pip install --quiet $(TORCH)
	$(LOCK)/bin/python -m pip install --quiet --editable '.[$(EXTRAS),host]'
	{ grep -E '^($(COMPARED))==' constraints.txt; $(LOCK)/bin/python -m $(FREEZE) | sed 's/+.*//'; } > $(LOCK).pins
	{ head -1 constraints.txt; sort --ignore-case $(LOCK).pins; } > $(LOCK).txt
	mv $(LOCK).txt constraints.txt

setup: $(INSTALLED)

weights: $(INSTALLED)
	$(BIN)/spdsegment models fetch lite_medsam

# torch comes first and alone: the packages after it find it there and bring no other build of it. All cores compile
# what pip alone would compile on one, without packages' tests and the models of transformers.
define install
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer was not found; install it or run: make PYTHON=/path/to/python"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --no-compile $(TORCH)
	echo '$(TORCH)' > $(VENV)/.torch
	grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
	$(PIP) --no-compile --constraint $(VENV)/constraints.txt --editable '.[$(1)]'
	$(BIN)/python -W ignore -m compileall -qq -j 0 -x '/(tests?|transformers/models)/' $(VENV)/lib || true
	touch $(2)
endef

# pip leaves an installed torch as it is, so that another one that is named, or any where make did not install what is
# there, needs a new .venv.
named-torch:
	@test '$(origin TORCH)' = file || test '$(TORCH)' = "$$(cat $(VENV)/.torch 2>/dev/null)" || { \
	  if test -f $(VENV)/.torch; then made="was made with TORCH=\"$$(cat $(VENV)/.torch)\""; \
	  elif ! ls -d $(VENV)/lib/python*/site-packages/torch >/dev/null 2>&1; then exit 0; \
	  else made="has a torch that make did not install"; fi; \
	  echo ".venv $$made: run \`make clean\`, then this command again."; exit 1; }

$(INSTALLED): pyproject.toml constraints.txt | named-torch
	$(call install,$(EXTRAS),$@)

# What the tests of the 3D Slicer module need besides: its MRML and Qt, without Slicer (Python 3.11 on Linux).
$(HOST): pyproject.toml constraints.txt | named-torch
	$(call install,$(EXTRAS)$(comma)host,$(INSTALLED) $@)

# Other systems' packages; torchvision belongs to one torch, so it is named together with it.
$(BENCH): $(INSTALLED)
	$(BIN)/spdsegment models fetch lite_medsam
	$(PIP) $(TORCH) torchvision
	$(PIP) --constraint $(VENV)/constraints.txt --editable '.[$(EXTRAS),bench]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo-output
