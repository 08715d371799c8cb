"""Print a table of architectures: what the product computes of each, against plain transformers one example at a time.

    python tests/tables/architectures.py [NAME ...]

Every model is tiny and random, see ``support/architectures.py``. The exit status is 1 if one is neither equal nor
refused before anything is trained.
"""

import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))
warnings.simplefilter("ignore")

import transformers  # noqa: E402
from support.architectures import ARCHITECTURES, HEADS, Outcome, examine, save_model  # noqa: E402


def main(names: list[str]) -> int:
    """Print the table."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    outcomes: list[Outcome] = []
    print(f"{'architecture':<22} {'head':<7} {'outcome':<8} {'off by':>8}  execution path, or why it is refused")
    for architecture in ARCHITECTURES:
        if names and architecture.name not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            save_model(architecture, Path(folder) / "model")
            for head in HEADS:
                outcome = examine(architecture, Path(folder) / "model", head, Path(folder) / f"{head}")
                outcomes.append(outcome)
                off = "" if outcome.off is None else f"{outcome.off:.0e}"
                print(f"{architecture.name:<22} {head:<7} {outcome.state:<8} {off:>8}  {outcome.detail}", flush=True)
    states = [outcome.state for outcome in outcomes]
    print(", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)))
    return 1 if "WRONG" in states else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
