"""The one command line that every kind of cluster hands over to the sweep's own package."""

import shlex
from collections.abc import Sequence


def entrypoint(sweep: str, arguments: Sequence[str]) -> str:
    """The words a shell runs a sweep by, or goes on with it by where an earlier job has begun it.

    Args:
        sweep: the sweep file's path where it is run.
        arguments: of ``run`` after the file.
    """
    return shlex.join(["python", "-m", "orchestrator", "run", sweep, "--resume", *arguments])
