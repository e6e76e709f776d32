#!/usr/bin/env bash
# DeepMultiBox on the feature layers of the detector: a long training, short ones to compare matching and data sets, and
# the network that classifies the proposed boxes.
source "$(dirname "$0")/common.sh"
"$(dirname "$0")/detectors.sh"

multibox=(--no-flip --init runs/detector/net.safetensors --freeze-features --samples-per-image 4 --batch-size 32)
train multibox multibox "${multibox[@]}" --data runs/multi --epochs 6 --lr-milestones 3,4,5

short=("${multibox[@]}" --epochs 5 --lr-milestones 2,3,4)
train multibox multibox-prior "${short[@]}" --data runs/train-small
train multibox multibox-prediction "${short[@]}" --data runs/train-small --matching prediction
train multibox multibox-prediction-30 "${short[@]}" --data runs/train-small --matching prediction --alpha 30
train multibox multibox-no-priors "${short[@]}" --data runs/train-small --matching prediction --no-priors
train multibox multibox-digits-0-4 "${short[@]}" --data runs/digits-0-4
train multibox multibox-single "${short[@]}" --data runs/single-train-small

train box-classifier box-classifier --no-flip --init runs/detector/net.safetensors --data runs/multi \
  --samples-per-image 3 --epochs 8 --lr-milestones 4,6,7
