# make demo: what is where in the shipped scenes, with pictures.  make test: everything CI runs.
# Both set up .venv themselves; all they need is Python 3.11 or 3.12 and make.
PYTHON ?= $(shell for python in python3 python3.12 python3.11; do \
  $$python -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && \
  echo $$python && break; done)
BIN := .venv/bin

.DELETE_ON_ERROR:
.PHONY: demo test lint scenes crowds committee regressors detectors multiboxes bench gpu gpu-test accuracy report clean

# What is run a second time, with Triton's interpreter in the place of a GPU.
KERNEL_TESTS := tests/kernels/test_kernels.py tests/ops/test_ops.py tests/ops/test_ops_in_torch.py tests/ops/test_merge_boxes.py tests/test_fast.py
# A process a core (some tests take gigabytes, so four at most), each with one thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

demo: .venv/demo
	$(BIN)/overfeat demo

test: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(PYTEST)
	TRITON_INTERPRET=1 $(PYTEST) $(KERNEL_TESTS)

.venv/bin/python:
	@test -n "$(PYTHON)" || \
	  { echo "overfeat needs Python 3.11 or 3.12; name one: make PYTHON=/path/to/python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv

.venv/demo .venv/test .venv/bench: .venv/%: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	touch $@

# The measurements behind BENCHMARKS.md, from nothing: five hours on two cores.
SCENES := runs/scenes
SEEDS := 0 1 2 3 4
TRAIN := OMP_NUM_THREADS=1 $(BIN)/overfeat train classifier --data $(SCENES) --no-flip --workers 0 \
  --precision bfloat16 --batch 32 --lr 0.02 --momentum 0.9 --dropout 0.2

scenes: .venv/bench
	$(BIN)/overfeat scenes $(SCENES) --split train --count 8000 --workers 2
	$(BIN)/overfeat scenes $(SCENES) --split validation --count 500 --workers 2
	$(BIN)/overfeat scenes $(SCENES) --split test --count 1200 --workers 2

# Five small nets: first on whole scenes, then on crops from many scales. The first is the one that ships.
committee: $(SEEDS:%=runs/small-%/net.safetensors)

runs/start-%/net.safetensors: | .venv/bench
	$(TRAIN) --net small --seed $* --resize 54 --epochs 6 --lr-milestones '' --out runs/start-$* \
	  $$(test -e runs/start-$*/checkpoint.pt && echo --resume)

runs/small-%/net.safetensors: runs/start-%/net.safetensors | .venv/bench
	$(TRAIN) --from $< --seed $* --resize 54 140 --epochs 9 --lr-milestones 4,6,7,8 --out runs/small-$* \
	  $$(test -e runs/small-$*/checkpoint.pt && echo --resume)

# Boxes for the first net, from the scenes that it was trained on: one for all classes or one a class, by two losses.
# `overfeat convert --half` of the last is the file that ships.
REGRESSOR := OMP_NUM_THREADS=1 $(BIN)/overfeat train regressor --data $(SCENES) --from runs/small-0/net.safetensors \
  --epochs 6 --lr-milestones 3,4,5 --workers 0 --precision bfloat16
regressors: $(patsubst %,runs/regressor-%/net.safetensors,scr-l2 pcr-l2 scr-iou)
runs/regressor-pcr-l2/net.safetensors: FLAGS := --per-class
runs/regressor-scr-iou/net.safetensors: FLAGS := --loss iou
runs/regressor-%/net.safetensors: runs/small-0/net.safetensors | .venv/bench
	$(REGRESSOR) $(FLAGS) --out runs/regressor-$* $$(test -e runs/regressor-$*/checkpoint.pt && echo --resume)

# Detectors of scenes with 0 to 8 digits, from the first net: a long run in two steps (the boxes of the first
# are too large to ship), and short ones to compare. `overfeat convert --half` of runs/detector is the file that ships.
crowds: .venv/bench
	for split in 'train 8000' 'validation 300' 'test 600'; do set -- $$split; \
	  $(BIN)/overfeat scenes runs/crowds --split $$1 --count $$2 --objects 0 8 --workers 2 || exit; done
	for split in 'train 2000' 'validation 200'; do set -- $$split; \
	  $(BIN)/overfeat scenes runs/few --split $$1 --count $$2 --objects 0 8 --workers 2 || exit; done

DETECTOR := OMP_NUM_THREADS=1 $(BIN)/overfeat train detector --no-flip --workers 0 --precision bfloat16
detectors: runs/detector/net.safetensors \
  $(patsubst %,runs/detector-%/net.safetensors,mixed random hard none no-context)
runs/detector/net.safetensors: runs/detector-first/net.safetensors | .venv/bench
	$(DETECTOR) --from $< --data runs/crowds --tiles 1 --epochs 3 --lr 0.0005 --lr-milestones 1,2 --out runs/detector \
	  $$(test -e runs/detector/checkpoint.pt && echo --resume)
runs/detector-first/net.safetensors: runs/small-0/net.safetensors | .venv/bench
	$(DETECTOR) --from $< --data runs/crowds --tiles 1 --epochs 6 --lr-milestones 3,4,5 --hidden 256 64 --out runs/detector-first \
	  $$(test -e runs/detector-first/checkpoint.pt && echo --resume)
runs/detector-random/net.safetensors: FLAGS := --negatives random
runs/detector-hard/net.safetensors: FLAGS := --negatives hard
runs/detector-none/net.safetensors: FLAGS := --negatives none
runs/detector-no-context/net.safetensors: FLAGS := --no-context
runs/detector-%/net.safetensors: runs/small-0/net.safetensors | .venv/bench
	$(DETECTOR) --from $< --data runs/few --tiles 2 --epochs 3 --lr-milestones 1,2 --hidden 256 64 $(FLAGS) --out runs/detector-$* \
	  $$(test -e runs/detector-$*/checkpoint.pt && echo --resume)

# DeepMultiBox on the layers of the detector, from the same scenes: a long run, and short ones to compare, on scenes of one
# digit and of digits 0 to 4 too; and the net that tells what is in a box.
MULTIBOX := OMP_NUM_THREADS=1 $(BIN)/overfeat train multibox --no-flip --workers 0 --precision bfloat16 --batch 32
SHORT := --squares 4 --epochs 5 --lr-milestones 2,3,4 --fixed
multiboxes: runs/multibox/net.safetensors runs/box-classifier/net.safetensors runs/high/test.json \
  $(patsubst %,runs/multibox-%/net.safetensors,prior prediction prediction-30 no-priors low scenes)
runs/multibox/net.safetensors: runs/detector/net.safetensors | .venv/bench
	$(MULTIBOX) --from $< --data runs/crowds --fixed --squares 4 --epochs 6 --lr-milestones 3,4,5 --out runs/multibox \
	  $$(test -e runs/multibox/checkpoint.pt && echo --resume)
runs/multibox-prediction/net.safetensors: FLAGS := --matching prediction
runs/multibox-prediction-30/net.safetensors: FLAGS := --matching prediction --alpha 30
runs/multibox-no-priors/net.safetensors: FLAGS := --matching prediction --no-priors
$(patsubst %,runs/multibox-%/net.safetensors,prior prediction prediction-30 no-priors): DATA := runs/few
runs/multibox-low/net.safetensors: DATA := runs/low
runs/multibox-scenes/net.safetensors: DATA := runs/single
runs/multibox-low/net.safetensors: runs/low/train.json runs/low/test.json
runs/multibox-scenes/net.safetensors: runs/single/train.json
runs/multibox-%/net.safetensors: runs/detector/net.safetensors | .venv/bench
	$(MULTIBOX) --from $< --data $(DATA) $(SHORT) $(FLAGS) --out runs/multibox-$* \
	  $$(test -e runs/multibox-$*/checkpoint.pt && echo --resume)
runs/box-classifier/net.safetensors: runs/detector/net.safetensors | .venv/bench
	OMP_NUM_THREADS=1 $(BIN)/overfeat train box-classifier --no-flip --workers 0 --precision bfloat16 --from $< \
	  --data runs/crowds --parts 3 --epochs 8 --lr-milestones 4,6,7 --out runs/box-classifier \
	  $$(test -e runs/box-classifier/checkpoint.pt && echo --resume)
runs/low/train.json: | .venv/bench
	$(BIN)/overfeat scenes runs/low --split train --count 2000 --objects 0 8 --digits 0 1 2 3 4 --workers 2
runs/low/test.json: | .venv/bench
	$(BIN)/overfeat scenes runs/low --split test --count 300 --objects 0 8 --digits 0 1 2 3 4 --workers 2
runs/single/train.json: | .venv/bench
	$(BIN)/overfeat scenes runs/single --split train --count 2000 --workers 2
runs/high/test.json: | .venv/bench
	$(BIN)/overfeat scenes runs/high --split test --count 300 --objects 0 8 --digits 5 6 7 8 9 --workers 2

.PRECIOUS: runs/multibox-%/net.safetensors runs/detector-%/net.safetensors runs/start-%/net.safetensors runs/small-%/net.safetensors runs/regressor-%/net.safetensors

bench: .venv/bench
	$(BIN)/overfeat bench -o bench/results/suite/cpu.json
	test -e runs/crowds/test.json || \
	  $(BIN)/overfeat scenes runs/crowds --split test --count 600 --objects 0 8 --workers 2
	$(BIN)/python -m bench.detect
	$(BIN)/overfeat --fast profile $(PROFILED) -o build/profile
	mkdir -p bench/results/profile && cp build/profile/profile.json bench/results/profile/cpu.json
	$(BIN)/python -m bench.kernel_report
PROFILED := overfeat/assets/scenes/00012.png --net accurate

# On a machine with a GPU, with its own torch and without a network, in ten minutes: the checks and timings of the
# kernels, the quick suite, a profile. Each goes on where one before it failed. build/gpu is the package as it is
# installed, with the kernels in it; -P keeps Python from taking the one in this folder. Where the tree has no git,
# COMMIT says what it is.
GPU_PYTHON ?= python3
GPU_NAME ?= gpu
GPU_OUT ?= bench/results
COMMIT ?= $(shell git describe --always --dirty 2>/dev/null)
ON_GPU = OVERFEAT_COMMIT="$(COMMIT)" PYTHONPATH=$(CURDIR)/build/gpu:$(CURDIR) $(GPU_PYTHON) -P -m
gpu gpu-test:
	rm -rf build/gpu && mkdir -p build/gpu
	cp -r overfeat build/gpu/overfeat && cp -r kernels build/gpu/overfeat/kernels
	$(RUN_$@)
RUN_gpu-test = $(ON_GPU) pytest $(KERNEL_TESTS)
RUN_gpu = mkdir -p $(GPU_OUT)/suite $(GPU_OUT)/profile; \
	$(ON_GPU) bench.gpu --budget 360 --out $(GPU_OUT)/gpu; status=$$?; [ $$status != 2 ] || exit 2; \
	$(ON_GPU) overfeat.cli.main bench --quick --device cuda -o $(GPU_OUT)/suite/$(GPU_NAME).json || status=1; \
	$(ON_GPU) overfeat.cli.main --fast profile $(PROFILED) --device cuda -o build/profile && \
	  cp build/profile/profile.json $(GPU_OUT)/profile/$(GPU_NAME).json || status=1; \
	exit $$status

accuracy: .venv/bench
	$(BIN)/python -m bench.accuracy.classification
	$(BIN)/python -m bench.accuracy.localization
	$(BIN)/python -m bench.accuracy.detection
	$(BIN)/python -m bench.accuracy.multibox

report: .venv/bench
	$(BIN)/python -m bench.report

clean:
	rm -rf .venv build *.egg-info
