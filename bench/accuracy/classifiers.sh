#!/usr/bin/env bash
# Five small nets with different seeds: first on whole images, then on crops at many scales. The first one is shipped.
source "$(dirname "$0")/common.sh"
"$(dirname "$0")/images.sh"

classifier=(--data runs/single --no-flip --batch-size 32 --lr 0.02 --momentum 0.9 --dropout 0.2)
for seed in 0 1 2 3 4; do
  train classifier "small-$seed-start" "${classifier[@]}" --net small --seed "$seed" --resize 54 \
    --epochs 6 --lr-milestones ''
  train classifier "small-$seed" "${classifier[@]}" --init "runs/small-$seed-start/net.safetensors" --seed "$seed" \
    --resize 54,140 --epochs 9 --lr-milestones 4,6,7,8
done
