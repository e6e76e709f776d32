#!/usr/bin/env bash
# Detectors of blood cells in BCCD's 205 training images: BCCD=FOLDER bench/accuracy/cells.sh [NAME...]
# FOLDER is the folder BCCD of https://github.com/Shenggan/BCCD_Dataset (MIT licence), with Annotations, ImageSets and
# JPEGImages. Without names everything is trained: the default, half an hour on one core for each of three seeds; from
# 20 images, as long; and ten short trainings of equal length, a fifth of the default's, to compare.
: "${BCCD:?is the folder BCCD of https://github.com/Shenggan/BCCD_Dataset: BCCD=FOLDER bench/accuracy/cells.sh}"
BCCD=$(realpath "$BCCD")
source "$(dirname "$0")/common.sh"
asked=("$@")
known=()

# wanted NAME: whether this one is asked for.
wanted() {
  known+=("$1")
  [ ${#asked[@]} -eq 0 ] || [[ " ${asked[*]} " == *" $1 "* ]]
}

# detector NAME OPTION...: runs/cells-NAME.
detector() {
  local name=$1
  shift
  ! wanted "$name" || train detector "cells-$name" --data "$BCCD" --num-workers 1 --precision float32 "$@"
}

detector default
detector default-seed-1 --seed 1
detector default-seed-2 --seed 2

# The first 20 training images and no others, so that thresholds are not chosen on validation images either.
few=runs/bccd-20
mkdir -p "$few/ImageSets/Main"
ln -sfn "$BCCD/Annotations" "$BCCD/JPEGImages" "$few/"
head -n 20 "$BCCD/ImageSets/Main/train.txt" > "$few/ImageSets/Main/train.txt"
detector 20-images --data "$few"

short=(--epochs 8)
detector short "${short[@]}"
detector short-seed-1 "${short[@]}" --seed 1
detector short-seed-2 "${short[@]}" --seed 2
detector frozen "${short[@]}" --freeze-features
detector digits "${short[@]}" --init overfeat/assets/small.safetensors
detector scratch "${short[@]}" --from-scratch
detector random "${short[@]}" --negative-sampling random
detector hard "${short[@]}" --negative-sampling hard
detector half-hard "${short[@]}" --negative-sampling half_hard
detector no-reach "${short[@]}" --reach 0

# DeepMultiBox on the same backbone, frozen, and the classifier of its boxes; both of their default length.
if wanted multibox; then
  boxes=(--net squeezenet --data "$BCCD" --num-workers 1 --precision float32)
  train multibox cells-multibox "${boxes[@]}" --window 239
  train box-classifier cells-box-classifier "${boxes[@]}"
fi

for name in ${asked[@]+"${asked[@]}"}; do
  [[ " ${known[*]} " == *" $name "* ]] || { echo "no training is called $name; there are ${known[*]}" >&2; exit 2; }
done
