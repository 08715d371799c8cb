"""``python -m orchestrator`` from a checkout is the same as ``python -m tailsweep``."""

import sys

from tailsweep.orchestrator.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
