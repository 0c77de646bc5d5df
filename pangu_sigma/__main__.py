"""`python -m pangu_sigma`: the same as the `pangu-sigma` command."""

import os
import sys

from pangu_sigma.runtime.versions import missing_package


def main() -> int:
    """Runs one command and returns its exit status; where even the command line cannot be imported, says what to
    install.
    """
    try:
        from pangu_sigma.cli.main import main as run
    except ModuleNotFoundError as error:
        line = missing_package(error)
        if line is None:
            raise
        print(f"pangu-sigma: error: {line}", file=sys.stderr)
        return 2
    status = run()
    if "mindspore._c_expression" in sys.modules and "mindspore" not in sys.modules:
        # Its import failed half-way, for want of a package that it needs: left to itself, it now aborts the process at
        # its end.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
