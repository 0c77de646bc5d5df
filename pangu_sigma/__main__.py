"""`python -m pangu_sigma`: the same as the `pangu-sigma` command."""

import sys

from pangu_sigma.cli import main

if __name__ == "__main__":
    sys.exit(main())
