#!/usr/bin/env bash
# Everything behind the accuracy tables of BENCHMARKS.md: data sets and networks (five hours on two cores), then the
# measurements (an hour and a half), then the pages. With BCCD=FOLDER also those of blood cells; see cells.sh.
[ -z "${BCCD:-}" ] || export BCCD="$(realpath "$BCCD")"
source "$(dirname "$0")/common.sh"
"$(dirname "$0")/regressors.sh"
"$(dirname "$0")/multibox.sh"

for measurement in classification localization six_scales detection multibox; do
  [ -e "runs/measured-$measurement" ] ||
    { env -u OMP_NUM_THREADS .venv/bin/python -m "bench.accuracy.$measurement" && touch "runs/measured-$measurement"; }
done
if [ -n "${BCCD:-}" ]; then
  "$(dirname "$0")/cells.sh"
  env -u OMP_NUM_THREADS .venv/bin/python -m bench.accuracy.cells
fi
.venv/bin/python -m bench.report
