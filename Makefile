# Everything a developer runs. `make demo` and `make test` set up a virtual environment of their own;
# nothing has to be installed by hand besides Python >= 3.10, a C++20 compiler and make.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MODEL ?= sentence-transformers/all-MiniLM-L6-v2
# Texts of `make bench`, as NAME=FILE:LINES; empty: sentences of our own.
WORKLOADS ?=
SOURCES := $(shell find csrc python -type f -not -name '*.pyc') CMakeLists.txt pyproject.toml README.md

.PHONY: demo test test-slow test-clients test-isas bench lint format sanitize sanitize-threads sanitize-python \
  sanitize-python-short sanitize-python-encodes mutants mutants-cpu fuzz soak check wheel clean

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

$(VENV)/.client-tools: pyproject.toml | $(VENV)/.test-tools
	$(BIN)/python tools/extras.py clients | $(BIN)/python -m pip install --quiet -r /dev/stdin
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py

test: $(VENV)/.installed $(VENV)/.test-tools
	$(BIN)/python -m pytest

test-slow: $(VENV)/.installed $(VENV)/.test-tools
	$(BIN)/python -m pytest -m "slow or not slow"

# Libraries that were written for sentence-transformers, in an environment of their own.
test-clients:
	$(MAKE) VENV=.venv-clients .venv-clients/.installed .venv-clients/.client-tools
	.venv-clients/bin/python -m pytest tests/clients

# The whole suite under each instruction set that this machine has: no test may hold on one set alone.
# The scalar build would need hours for the evaluation sets, whose vectors have the other sets' bits.
test-isas: $(VENV)/.installed $(VENV)/.test-tools
	@failed=; for isa in $$($(BIN)/python -c "from minifuse.native import core; print(*core.supported_isas())"); do \
	  echo "MINIFUSE_ISA=$$isa"; test $$isa != scalar || export MINIFUSE_DATA=none; \
	  MINIFUSE_ISA=$$isa $(BIN)/python -m pytest || failed="$$failed $$isa"; \
	done; test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

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
	$(BIN)/python tools/check_comments.py $$(git ls-files '*.py' '*.pyi' '*.h' '*.cpp' '*.cu' '*.cuh' '*.def' CMakeLists.txt)
	$(BIN)/python tools/mutate_cpu.py --check

format: $(VENV)/.lint-tools
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format --quiet .
	$(BIN)/clang-format -i $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

# The native tests under AddressSanitizer and UndefinedBehaviorSanitizer, kernels included; the shapes of
# real models take too long that way, sanitize-python has them.
sanitize: $(VENV)/.test-tools
	$(BIN)/cmake -S . -B build/sanitize -DMINIFUSE_BUILD_PYTHON=OFF -DMINIFUSE_BUILD_TESTS=ON \
	  -DMINIFUSE_SANITIZE=address,undefined -DCMAKE_BUILD_TYPE=Sanitize
	$(BIN)/cmake --build build/sanitize --parallel 2
	$(BIN)/ctest --test-dir build/sanitize --output-on-failure -E sizes

# Data races in the thread pool, the schedules and search.
sanitize-threads: $(VENV)/.test-tools
	$(BIN)/cmake -S . -B build/tsan -DMINIFUSE_BUILD_PYTHON=OFF -DMINIFUSE_BUILD_TESTS=ON \
	  -DMINIFUSE_SANITIZE=thread -DCMAKE_BUILD_TYPE=Sanitize
	$(BIN)/cmake --build build/tsan --parallel 2
	$(BIN)/ctest --test-dir build/tsan --output-on-failure -R 'schedule|encoder|search'

# The functions that users call, on a native module under AddressSanitizer and UndefinedBehaviorSanitizer, its kernels
# on buffers that end at guard pages (`make sanitize` instruments the kernels, too):
# TESTS names the tests, `make sanitize-python-encodes` encodes thousands of texts of every length.
SANITIZED := build/sanitize-python
SANITIZED_PYTHON = env LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
  ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
  PYTHONPATH=$(SANITIZED)/package MINIFUSE_SANITIZED=1 $(BIN)/python
TESTS ?= tests/trust/test_memory_safety.py tests/trust/test_interrupts.py tests/kernels/test_ops.py tests/kernels/test_invariance.py \
  tests/kernels/test_low_precision.py tests/search/test_index.py tests/search/test_index_file.py tests/models/test_loading.py \
  tests/kernels/test_training_kernels.py tests/tokens/test_native.py
ENCODES ?= --texts 10000

$(SANITIZED)/.built: $(SOURCES) | $(VENV)/.test-tools
	$(BIN)/cmake -S . -B $(SANITIZED) -DMINIFUSE_BUILD_TESTS=ON -DMINIFUSE_SANITIZE=address,undefined -DMINIFUSE_CUDA=OFF \
	  -DMINIFUSE_GUARD_PAGES=ON \
	  -DCMAKE_BUILD_TYPE=Sanitize -DPython_EXECUTABLE=$(abspath $(BIN)/python) \
	  -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)
	$(BIN)/cmake --build $(SANITIZED) --parallel 2 --target _core
	rm -rf $(SANITIZED)/package && mkdir -p $(SANITIZED)/package
	cp -r python/minifuse $(SANITIZED)/package/
	cp $(SANITIZED)/_core*.so $(SANITIZED)/package/minifuse/
	touch $@

sanitize-python: $(SANITIZED)/.built $(VENV)/.installed
	$(BIN)/cmake --build $(SANITIZED) --parallel 2
	$(BIN)/ctest --test-dir $(SANITIZED) --output-on-failure -R 'sizes|encoder'
	$(SANITIZED_PYTHON) -m pytest $(TESTS)

# The tests of faults that once ended the process or read memory of others.
sanitize-python-short: $(SANITIZED)/.built $(VENV)/.installed
	$(SANITIZED_PYTHON) -m pytest tests/trust/test_memory_safety.py tests/search/test_index_file.py tests/tokens/test_native.py

sanitize-python-encodes: $(SANITIZED)/.built $(VENV)/.installed
	$(SANITIZED_PYTHON) tools/encode_all_lengths.py $(ENCODES)

# Faults planted in the CUDA kernels, each of which a test must see; CHANGED_SINCE=REF: only in files
# that differ from that revision.
mutants: $(VENV)/.installed $(VENV)/.test-tools
	$(BIN)/python tools/mutate_cuda.py $(if $(CHANGED_SINCE),--changed-since $(CHANGED_SINCE))

# The same for the CPU's code and the Python package. ONLY=WORD: files or kinds of faults that hold it.
mutants-cpu: $(VENV)/.installed $(VENV)/.test-tools
	$(BIN)/python tools/mutate_cpu.py $(if $(ONLY),--only "$(ONLY)")

# Each target of the fuzzer for MINUTES; TARGETS names some of them.
MINUTES ?= 60
TARGETS ?= safetensors torch_file configs tokenizer_json index tables shorten ops differential tokens
fuzz: $(VENV)/.installed $(VENV)/.test-tools
	$(BIN)/python tools/extras.py fuzz | $(BIN)/python -m pip install --quiet -r /dev/stdin
	for target in $(TARGETS); do $(BIN)/python tools/fuzz.py $$target --minutes $(MINUTES) || exit 1; done

soak: $(VENV)/.installed $(VENV)/.test-tools
	$(BIN)/python tools/soak.py --minutes $(MINUTES)

check: lint test sanitize sanitize-threads sanitize-python

wheel: $(BIN)/python
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	ls -l dist/*.whl

clean:
	rm -rf build dist $(VENV)
