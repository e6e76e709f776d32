"""Runs cases of a target from a seed on until it is killed: python tests/fuzz/worker.py TARGET SEED

Each case prints a line as it starts and one as it ends, so that whoever reads them knows which case a crash ended.
"""

import contextlib
import itertools
import json
import os
import resource
import sys
import traceback

import harness

MEMORY = 4 << 30  # bytes, beside what libraries take


def main() -> None:
    name, first = sys.argv[1], int(sys.argv[2])
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what cases print is no report
    with contextlib.suppress(Exception):  # what is compiled or cached at the first use is part of no case
        harness.run_case(name, 0)
    limit = _data_size() + MEMORY
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    for seed in itertools.count(first):
        print(json.dumps({"starts": seed}), file=lines)
        try:
            result = {"outcome": harness.run_case(name, seed)}
        except Exception as error:
            result = {"failure": harness.signature(error), "traceback": traceback.format_exc()[-4000:]}
        print(json.dumps(result), file=lines)


def _data_size() -> int:
    """Bytes of private memory that the process has now, as RLIMIT_DATA counts them."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:"))


if __name__ == "__main__":
    main()
