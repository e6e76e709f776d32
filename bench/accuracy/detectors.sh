#!/usr/bin/env bash
# Detectors of images with none to eight digits, from the first small net: a long training in two steps (the regressor
# of the first is too large to ship), and short ones to compare. `overfeat convert --half` of runs/detector is shipped.
source "$(dirname "$0")/common.sh"
"$(dirname "$0")/classifiers.sh"

# Digits have the training that was published, not the defaults of photographs.
digits=(--no-flip --no-quarter-turns --color-jitter 0 --reach 0 --context --negative-sampling half_hard
  --negatives-per-tile 16 --negative-pool 4096 --box-weight 1 --optimizer adam --lr 0.001 --weight-decay 0.00001
  --lr-schedule step --warmup 0)
train detector detector-start "${digits[@]}" --init runs/small-0/net.safetensors --data runs/multi \
  --samples-per-image 1 --hidden 256,64 --epochs 6 --lr-milestones 3,4,5
train detector detector "${digits[@]}" --init runs/detector-start/net.safetensors --data runs/multi \
  --samples-per-image 1 --epochs 3 --lr 0.0005 --lr-milestones 1,2

same=(--no-flip --init runs/small-0/net.safetensors --data runs/train-small --samples-per-image 2 --hidden 256,64
  --epochs 3)
short=("${digits[@]}" "${same[@]}" --lr-milestones 1,2)
train detector detector-defaults "${same[@]}"
train detector detector-half-hard "${short[@]}"
train detector detector-random "${short[@]}" --negative-sampling random
train detector detector-hard "${short[@]}" --negative-sampling hard
train detector detector-none "${short[@]}" --negative-sampling none
train detector detector-no-context "${short[@]}" --no-context
