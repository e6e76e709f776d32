"""`python -m overfeat`: the same as the command `overfeat`."""

import sys

from overfeat.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
