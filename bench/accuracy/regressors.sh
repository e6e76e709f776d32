#!/usr/bin/env bash
# Box regressors of the first small net, on its training images: one for all classes (scr) or one per class (pcr), with
# the L2 loss or the IoU loss. `overfeat convert --half` of the last one is shipped.
source "$(dirname "$0")/common.sh"
"$(dirname "$0")/classifiers.sh"

regressor=(--data runs/single --init runs/small-0/net.safetensors --epochs 6 --lr-milestones 3,4,5)
train regressor regressor-scr-l2 "${regressor[@]}"
train regressor regressor-pcr-l2 "${regressor[@]}" --per-class
train regressor regressor-scr-iou "${regressor[@]}" --loss iou
