"""`python -m dtl` is `dtl`."""

import sys

from dtl.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
