"""W&B: one run per candidate and one for the sweep, written by the sweep's driver.

From the driver, because it outlives its trials: a pruned candidate's run still gets its summary, and a resumed one
goes on under its id. Every value is logged with a step of ours (the number of the candidate's report), and what W&B
lacks of a resumed candidate is logged again from the sweep's own history: W&B holds up to 15 s of values in memory,
which a killed process takes with it.
"""

import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb

from orchestrator.config import WandbConfig
from trainables import keys

# In history rows, but said by W&B in its own way: the step axis and the run itself.
NOT_LOGGED = {"candidate", keys.STAGE, keys.EPOCH, keys.STAGE_ONE_EPOCH}


class Tracker:
    """The W&B runs of one sweep.

    Args:
        config: mode, project, entity and tags.
        sweep: the sweep's name; the start of its runs' names and ids, after their group's, and else the group itself.
        folder: below which W&B makes its ``wandb`` folder.
    """

    def __init__(self, config: WandbConfig, sweep: str, folder: Path) -> None:
        self.config = config
        self.sweep = sweep if config.group is None else f"{config.group}-{sweep}"
        self.folder = folder
        self._runs: dict[str, Any] = {}
        self._steps: dict[str, int] = {}

    def start(self, candidate: str, settings: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> None:
        """Open a candidate's run, if it is not open, and log what W&B lacks of ``history``, its reports so far."""
        if candidate in self._runs:
            return
        if self.config.mode == "offline":
            self._drop_unfinished(candidate)
        run = self._init(candidate, "candidate", settings)
        for stage in keys.STAGES:
            run.define_metric(f"{stage}/{keys.EPOCH}", hidden=True)
            run.define_metric(f"{stage}/*", step_metric=f"{stage}/{keys.EPOCH}")
        self._runs[candidate] = run
        self._steps[candidate] = run.step  # online, of a run gone on with: the reports its server has; else 0
        for report in history[self._steps[candidate] :]:
            self.log(candidate, report)

    def log(self, candidate: str, report: Mapping[str, Any]) -> None:
        """One report of one epoch, as ``stage_one/...`` or ``stage_two/...``, on that stage's epoch axis."""
        # Without commit, W&B holds a step with a number back until the next one comes.
        self._runs[candidate].log(logged_values(report), step=self._steps[candidate], commit=True)
        self._steps[candidate] += 1

    def finish(self, candidate: str, summary: Mapping[str, Any]) -> None:
        """Close a candidate's run with its state, reason and rung in the summary."""
        run = self._runs.pop(candidate, None)
        if run is None:
            return
        run.summary.update({key: value for key, value in summary.items() if value is not None})
        run.finish(exit_code=1 if summary.get("state") == "failed" else 0)

    def finish_sweep(self, settings: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
        """The sweep's own run: its configuration, the chosen candidate and its test metrics."""
        run = self._init("sweep", "sweep", settings)
        run.summary.update({key: value for key, value in summary.items() if value is not None})
        run.finish()
        self.close()

    def close(self) -> None:
        """Close what is still open, without a verdict (the sweep was interrupted), and have every file whole."""
        for run in self._runs.values():
            run.finish(exit_code=1)
        self._runs.clear()
        # W&B 0.31 may return from finish() before the run's last bytes, or all of them, are in its file.
        wandb.teardown()

    def _drop_unfinished(self, candidate: str) -> None:
        """Remove what an earlier process wrote of a candidate: the run begun now holds all of it, and more surely."""
        for folder in self.folder.glob(f"wandb/offline-run-????????_??????-{run_id(self.sweep, candidate)}"):
            shutil.rmtree(folder)

    def _init(self, name: str, job_type: str, settings: Mapping[str, Any]) -> Any:
        return wandb.init(
            project=self.config.project,
            entity=self.config.entity,
            group=self.config.group or self.sweep,
            job_type=job_type,
            name=f"{self.sweep}/{name}",
            id=run_id(self.sweep, name),
            tags=list(self.config.tags),
            config=dict(settings),
            mode=self.config.mode,
            dir=str(self.folder),
            # Offline, W&B cannot look for an earlier run and would warn.
            resume="allow" if self.config.mode == "online" else None,
            reinit="create_new",
            # The driver's own terminal, git state and load say nothing about one candidate.
            settings=wandb.Settings(
                silent=True, console="off", disable_git=True, save_code=False, x_disable_stats=True, x_disable_meta=True
            ),
        )


def logged_values(report: Mapping[str, Any]) -> dict[str, Any]:
    """A report's values under the names W&B gets: ``stage_one/validation/macro_f1`` and so on; None is left out."""
    stage = report[keys.STAGE]
    values = {f"{stage}/{key}": value for key, value in report.items() if key not in NOT_LOGGED and value is not None}
    return {f"{stage}/{keys.EPOCH}": report[keys.EPOCH], **values}


def run_id(sweep: str, candidate: str) -> str:
    """The fixed W&B id of a candidate: the same whenever the sweep is gone on with."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", f"{sweep}-{candidate}")


def sync_command(folder: str) -> str:
    """The line that uploads what was logged offline below ``folder``."""
    return f"wandb sync {shlex.quote(folder)}"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"stage_one": {"epochs": 3}}`` -> ``{"stage_one.epochs": 3}``; lists are leaves."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def settings_of(trial: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A candidate's W&B config: its whole configuration under dotted names, and what was swept by itself."""
    return {**flatten(trial), "swept": dict(values)}
