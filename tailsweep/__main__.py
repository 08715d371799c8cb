"""The command line as a module: ``python -m tailsweep COMMAND ...`` is the same as ``tailsweep COMMAND ...``."""

import sys

from tailsweep.orchestrator.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
