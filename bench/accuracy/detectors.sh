#!/usr/bin/env bash
# Detectors of images with none to eight digits, from the first small net: a long training in two steps (the regressor
# of the first is too large to ship), and short ones to compare. `overfeat convert --half` of runs/detector is shipped.
source "$(dirname "$0")/common.sh"
"$(dirname "$0")/classifiers.sh"

train detector detector-start --no-flip --init runs/small-0/net.safetensors --data runs/multi --samples-per-image 1 \
  --hidden 256,64 --epochs 6 --lr-milestones 3,4,5
train detector detector --no-flip --init runs/detector-start/net.safetensors --data runs/multi --samples-per-image 1 \
  --epochs 3 --lr 0.0005 --lr-milestones 1,2

short=(--no-flip --init runs/small-0/net.safetensors --data runs/train-small --samples-per-image 2 --hidden 256,64
  --epochs 3 --lr-milestones 1,2)
train detector detector-half-hard "${short[@]}"
train detector detector-random "${short[@]}" --negative-sampling random
train detector detector-hard "${short[@]}" --negative-sampling hard
train detector detector-none "${short[@]}" --negative-sampling none
train detector detector-no-context "${short[@]}" --no-context
