#!/usr/bin/env bash
# Everything behind the accuracy tables of BENCHMARKS.md: data sets and networks (five hours on two cores), then the
# measurements (an hour and a half), then the pages.
source "$(dirname "$0")/common.sh"
"$(dirname "$0")/regressors.sh"
"$(dirname "$0")/multibox.sh"

for measurement in classification localization six_scales detection multibox; do
  [ -e "runs/measured-$measurement" ] ||
    { env -u OMP_NUM_THREADS .venv/bin/python -m "bench.accuracy.$measurement" && touch "runs/measured-$measurement"; }
done
.venv/bin/python -m bench.report
