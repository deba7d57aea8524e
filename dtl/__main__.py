"""`python -m dtl` is `dtl`."""

import sys

from dtl.cli import main

if __name__ == "__main__":
    sys.exit(main())
