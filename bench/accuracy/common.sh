# Sourced by the recipes beside it. A recipe runs from the root of a clone with `make .venv/bench` done; a data set or a
# network that exists is skipped, and an interrupted training is resumed, so a recipe can be started again at any time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
OVERFEAT=.venv/bin/overfeat

# images NAME SPLIT COUNT OPTION...: synthetic images in runs/NAME.
images() {
  local folder=runs/$1 split=$2 count=$3
  shift 3
  [ -e "$folder/$split.json" ] ||
    "$OVERFEAT" scenes "$folder" --split "$split" --count "$count" --num-workers 2 "$@"
}

# train TASK NAME OPTION...: a network in runs/NAME.
train() {
  local task=$1 folder=runs/$2 resume=()
  shift 2
  # The nets are there from the first epoch on; a net without a checkpoint came from elsewhere.
  [ ! -e "$folder/complete" ] || return 0
  [ ! -e "$folder/net.safetensors" ] || [ -e "$folder/checkpoint.pt" ] || return 0
  [ ! -e "$folder/checkpoint.pt" ] || resume=(--resume)
  "$OVERFEAT" train "$task" --out "$folder" --num-workers 0 --precision bfloat16 "$@" "${resume[@]}"
  touch "$folder/complete"
}
