# make demo: pictures of what the shipped nets see, in out/demo.  make test: everything CI runs.
# Both set up .venv themselves; all they need is Python 3.11 to 3.14 and make.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
  $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null && \
  echo $$python && break; done)
BIN := .venv/bin

.DELETE_ON_ERROR:
.PHONY: demo test lint docs bench fuzz gpu gpu-test clean

# These run a second time under Triton's interpreter, which stands in for a GPU; make gpu has them in bench/gpu_run.py.
KERNEL_TESTS := tests/kernels tests/ops/test_ops.py tests/ops/test_ops_in_torch.py tests/ops/test_merge_boxes.py tests/test_fast.py
# One single-threaded process per core, at most four, since some tests take gigabytes.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

demo: .venv/demo
	$(BIN)/overfeat demo

test: lint
	$(PYTEST)
	TRITON_INTERPRET=1 $(PYTEST) $(KERNEL_TESTS)

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

# The site, build/site/index.html; a warning is an error. Search needs a server, such as the one in the line it prints.
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
	@echo "build/site/index.html; with search: $(BIN)/python -m http.server -b 127.0.0.1 -d build/site"

# Random files and problems, as many as FUZZ_BUDGET seconds allow; FUZZ_TARGETS are all of tests/fuzz/fuzz_*.py unless
# named. Counts and failures are in FUZZ_OUT and the page beside it.
FUZZ_BUDGET ?= 1800
FUZZ_TARGETS ?=
FUZZ_OUT ?= build/reliability.json
fuzz: .venv/test
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz $(FUZZ_TARGETS) --budget $(FUZZ_BUDGET) -o $(FUZZ_OUT)

.venv/bin/python:
	@test -n "$(PYTHON)" || \
	  { echo "overfeat needs Python 3.11 to 3.14; name one: make PYTHON=/path/to/python3.12 ..."; exit 1; }
	@echo "Making .venv, a virtual environment"
	$(PYTHON) -m venv .venv

# Published nets for the tests, for the weights in their files; what these packages depend on does not fit this torch.
TEST_NETS := facenet-pytorch==2.6.0 digit-recognizer-py==0.1.0
PIP := $(BIN)/python -m pip install --disable-pip-version-check
.venv/demo .venv/test .venv/bench .venv/docs: .venv/%: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing overfeat[$*] into .venv. pip downloads what it has not cached: on Linux 3 GB, four minutes at"
	@echo "100 Mbit/s, nearly all of it torch with its CUDA libraries; without these about 0.3 GB, by"
	@echo "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make $*"
	$(PIP) -c constraints.txt -e '.[$*]'
	test $* != test || $(PIP) --no-deps $(TEST_NETS)
	touch $@

# The speed measurements of BENCHMARKS.md, an hour on two cores; bench/accuracy/all.sh has those of accuracy.
PROFILED := overfeat/assets/scenes/00012.png --net accurate
bench: .venv/bench
	$(BIN)/python -m bench dense small-net classifier merge train end-to-end growth -o bench/results/suite/cpu.json
	$(BIN)/python -m bench densify -o bench/results/suite/densify.json
	test -e runs/multi/test.json || $(BIN)/overfeat scenes runs/multi --split test --count 600 --objects 0 8
	$(BIN)/python -m bench.detect
	$(BIN)/python -m bench.serve
	$(BIN)/overfeat --fast profile $(PROFILED) -o build/profile
	mkdir -p bench/results/profile && cp build/profile/profile.json bench/results/profile/cpu.json
	$(BIN)/python -m bench.kernel_report
	$(BIN)/python -m bench.report

# On a machine with a GPU, with its own Python, torch and pytest, and without a network, in ten minutes: the kernels'
# tests, measured peaks, the suite, tuning, a profile, in this order; a second run continues. build/gpu has the package
# as it is installed, with the kernels in it; -P keeps Python from importing the one in this folder. Without git, set
# COMMIT. make gpu-test: the tests alone.
GPU_PYTHON ?= python3
GPU_OUT ?= bench/results
GPU_BUDGET ?= 560
COMMIT ?= $(shell git describe --always --dirty 2>/dev/null)
PARTS_gpu-test := checks
gpu gpu-test:
	rm -rf build/gpu && mkdir -p build/gpu
	cp -r overfeat build/gpu/overfeat && cp -r kernels build/gpu/overfeat/kernels
	OVERFEAT_COMMIT="$(COMMIT)" PYTHONPATH=$(CURDIR)/build/gpu:$(CURDIR) \
	  $(GPU_PYTHON) -P -m bench.gpu_run $(PARTS_$@) --budget $(GPU_BUDGET) --out $(GPU_OUT)

clean:
	rm -rf .venv build *.egg-info
