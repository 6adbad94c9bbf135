# Everything a developer runs. `make demo` and `make test` set up a virtual environment of their own;
# nothing has to be installed by hand besides Python >= 3.10, a C++20 compiler and make.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MODEL ?= sentence-transformers/all-MiniLM-L6-v2
# Texts of `make bench`, as NAME=FILE:LINES; empty: sentences of our own.
WORKLOADS ?=
SOURCES := $(shell find csrc python -type f -not -name '*.pyc') CMakeLists.txt pyproject.toml README.md

.PHONY: demo test test-slow bench lint format sanitize sanitize-threads mutants check wheel clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# The package as a wheel, with what the demo needs: no PyTorch.
$(VENV)/.installed: $(SOURCES) | $(BIN)/python
	$(BIN)/python -m pip install --quiet .
	touch $@

# torch first and pinned: anything that lets it float may bring gigabytes.
$(VENV)/.test-tools: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python tools/extras.py test | $(BIN)/python -m pip install --quiet -r /dev/stdin
	touch $@

$(VENV)/.lint-tools: pyproject.toml | $(BIN)/python
	$(BIN)/python tools/extras.py lint | $(BIN)/python -m pip install --quiet -r /dev/stdin
	touch $@

$(VENV)/.bench-tools: pyproject.toml | $(VENV)/.test-tools
	$(BIN)/python tools/extras.py bench | $(BIN)/python -m pip install --quiet -r /dev/stdin
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py

test: $(VENV)/.installed $(VENV)/.test-tools
	$(BIN)/python -m pytest

test-slow: $(VENV)/.installed $(VENV)/.test-tools
	$(BIN)/python -m pytest -m "slow or not slow"

bench: $(VENV)/.installed $(VENV)/.bench-tools
	$(BIN)/minifuse bench --peers $(WORKLOADS) --model $(MODEL) --json benchmarks/results/encode.json \
	  --plot docs/encode.png
	$(BIN)/minifuse bench --profile $(WORKLOADS) --model $(MODEL) --json benchmarks/results/profile.json
	$(BIN)/minifuse bench --ops --json benchmarks/results/ops.json
	$(BIN)/python benchmarks/bench_roofline.py --json benchmarks/results/roofline.json
	$(BIN)/python benchmarks/render_tables.py

lint: $(VENV)/.lint-tools $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')
	$(BIN)/codespell $$(git ls-files)

format: $(VENV)/.lint-tools
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format --quiet .
	$(BIN)/clang-format -i $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

# The native tests under AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: $(VENV)/.test-tools
	$(BIN)/cmake -S . -B build/sanitize -DMINIFUSE_BUILD_PYTHON=OFF -DMINIFUSE_BUILD_TESTS=ON \
	  -DMINIFUSE_SANITIZE=address,undefined -DCMAKE_BUILD_TYPE=Sanitize
	$(BIN)/cmake --build build/sanitize --parallel 2
	$(BIN)/ctest --test-dir build/sanitize --output-on-failure

# Data races in the thread pool and the schedules.
sanitize-threads: $(VENV)/.test-tools
	$(BIN)/cmake -S . -B build/tsan -DMINIFUSE_BUILD_PYTHON=OFF -DMINIFUSE_BUILD_TESTS=ON \
	  -DMINIFUSE_SANITIZE=thread -DCMAKE_BUILD_TYPE=Sanitize
	$(BIN)/cmake --build build/tsan --parallel 2
	$(BIN)/ctest --test-dir build/tsan --output-on-failure -R 'schedule|encoder'

# Faults planted in the CUDA kernels, each of which a test must see; CHANGED_SINCE=REF: only in files
# that differ from that revision.
mutants: $(VENV)/.installed $(VENV)/.test-tools
	$(BIN)/python tools/mutate_cuda.py $(if $(CHANGED_SINCE),--changed-since $(CHANGED_SINCE))

check: lint test sanitize

wheel: $(BIN)/python
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	ls -l dist/*.whl

clean:
	rm -rf build dist $(VENV)
