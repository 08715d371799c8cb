"""W&B: one run per trial and one for the sweep, written by the sweep's driver.

From the driver, because it outlives its trials: a pruned trial's run still gets its summary, and a resumed one
continues under its id. Every value is logged with a step of ours (the number of the trial's report), and what W&B
lacks of a resumed trial is logged again from the sweep's own history: W&B holds up to 15 s of values in memory,
which a killed process takes with it.

No sweep ends, or waits for long, because W&B does not answer or does not take the key: what is left of it is then
written offline, to be uploaded later. Nor does one end because W&B fails offline: that costs its log.

A sweep may have any number of trials that have begun and not ended. Only so many of their runs are open at a time: an
open run takes file descriptors. One that was closed for another is opened again with its whole history.
"""

import logging
import os
import re
import resource
import shlex
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import wandb
from tailsweep.orchestrator.config.sweep import WandbConfig
from tailsweep.orchestrator.runs.directory import WANDB_FOLDER, RunDirectory
from tailsweep.orchestrator.runs.trials import TrialState
from tailsweep.trainables import report_keys
from tailsweep.trainables.errors import describe_error

# In history rows, but said by W&B in its own way: the step axis and the run itself.
NOT_LOGGED = {"trial", report_keys.STAGE, report_keys.EPOCH, report_keys.STAGE_ONE_EPOCH}

RUN_FOLDER = re.compile(r"(offline-)?run-\d{8}_\d{6}-(.+)")  # which W&B names so, by a run's id

# Left to itself, W&B 0.31 waits 90 s for a run to begin, and hours for its last values to be taken.
INIT_SECONDS = 20.0
FINISH_SECONDS = 20.0

FD_SHARE = 16  # of the descriptors that a process may have, the share for open runs, which take a few each
MAX_OPEN = 64


logger = logging.getLogger(__name__)


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
        self.mode: Literal["offline", "online", "disabled"] = config.mode  # offline from when W&B cannot be used
        self._logged_in = False
        self.max_open = _max_open_runs()
        self._failed = False  # offline, too: nothing more is logged
        self._runs: dict[str, Any] = {}  # that are open, the one used last at the end
        self._suspended: dict[str, Path] = {}  # the folders of runs that were closed for another
        self._folders: defaultdict[str, set[Path]] | None = None  # of each run id, those written now and earlier
        self._steps: dict[str, int] = {}
        # Once W&B has ceased to answer: runs begun online that have come to their end, with their exit codes.
        self._stranded: list[tuple[Any, int]] = []
        self._not_uploaded: list[Path] = []  # folders of runs begun online

    def start(self, trial: str, settings: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> None:
        """Open a trial's run, if it is not open, and log what W&B lacks of ``history``, its reports so far."""
        with self._at_the_cost_of_the_log():
            self._start(trial, settings, history)

    def _start(self, trial: str, settings: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> None:
        if self._failed or self.is_open(trial):
            return
        while len(self._runs) >= self.max_open:
            self.suspend(next(iter(self._runs)))
        run = self._init(trial, "trial", settings)
        for stage in report_keys.STAGES:
            run.define_metric(f"{stage}/{report_keys.EPOCH}", hidden=True)
            run.define_metric(f"{stage}/*", step_metric=f"{stage}/{report_keys.EPOCH}")
        self._runs[trial] = run
        self._steps[trial] = run.step  # online, of a run resumed: the reports its server has; else 0
        for report in history[self._steps[trial] :]:
            self._log(trial, report)

    def is_open(self, trial: str) -> bool:
        """Return whether a trial's run is open; if so, it is the last that is closed for another."""
        if (run := self._runs.pop(trial, None)) is not None:
            self._runs[trial] = run
        return run is not None

    def suspend(self, trial: str, interrupted: bool = False) -> None:
        """Close the run of a trial that waits, or was interrupted, without a verdict; :meth:`start` opens it again."""
        with self._at_the_cost_of_the_log():
            if (run := self._runs.pop(trial, None)) is not None:
                self._suspended[trial] = Path(run.dir).parent
                self._end(run, exit_code=1 if interrupted else 0)

    def log(self, trial: str, report: Mapping[str, Any]) -> None:
        """One report of one epoch, as ``stage_one/...`` or ``stage_two/...``, on that stage's epoch axis."""
        with self._at_the_cost_of_the_log():
            if not self._failed:
                self._log(trial, report)

    def _log(self, trial: str, report: Mapping[str, Any]) -> None:
        # Without commit, W&B holds a step with a number back until the next one comes.
        self._runs[trial].log(logged_values(report), step=self._steps[trial], commit=True)
        self._steps[trial] += 1

    def finish(self, trial: str, summary: Mapping[str, Any]) -> None:
        """Close a trial's run with its state, reason and rung in the summary."""
        with self._at_the_cost_of_the_log():
            if (run := self._runs.pop(trial, None)) is not None:
                run.summary.update({key: value for key, value in summary.items() if value is not None})
                self._end(run, exit_code=1 if summary.get("state") == TrialState.FAILED else 0)

    def finish_sweep(self, settings: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
        """Write the sweep's own run: its configuration, the chosen trial and its test metrics."""
        with self._at_the_cost_of_the_log():
            if not self._failed:
                run = self._init("sweep", "sweep", settings)
                run.summary.update({key: value for key, value in summary.items() if value is not None})
                self._end(run, exit_code=0)
        self.close()

    def close(self) -> None:
        """Close what is still open, without a verdict (the sweep was interrupted), and have every file whole."""
        still_open = [*self._stranded, *((run, 1) for run in self._runs.values())]
        self._runs.clear()
        self._stranded.clear()
        if still_open:
            with ThreadPoolExecutor(max_workers=len(still_open)) as at_once:  # W&B may answer none of them
                list(at_once.map(lambda arguments: self._finish(*arguments), still_open))
        # W&B 0.31 may return from finish() before the run's last bytes, or all of them, are in its file.
        try:
            wandb.teardown()
        except Exception as error:  # who ends a job (Ray's job server, Slurm) signals W&B's own process too
            logger.warning(
                f"W&B's own process was ended ({type(error).__name__}): its files may lack the last steps; "
                "`tailsweep resume` makes them whole"
            )
        for folder in self._not_uploaded:
            _keep_log_only(_rename_as_offline(folder))
        self._not_uploaded.clear()

    @contextmanager
    def _at_the_cost_of_the_log(self) -> Iterator[None]:
        """Within it, whatever W&B raises ends its log, and not the sweep."""
        try:
            yield
        except Exception as error:  # W&B's, its own process's, a full disk's
            self._runs.clear()
            if not self._failed:
                self._failed = True
                logger.warning(
                    f"W&B has failed ({describe_error(error)}) and logs no more of this sweep, which continues; "
                    "every value is in history.parquet"
                )

    def _end(self, run: Any, exit_code: int) -> None:
        if self.mode == "offline" and not run.offline:  # it would wait in vain, and the others too: see close()
            self._stranded.append((run, exit_code))
        else:
            self._finish(run, exit_code)

    def _finish(self, run: Any, exit_code: int) -> None:
        folder = Path(run.dir).parent
        try:
            run.finish(exit_code=exit_code)
        except Exception as error:  # a timeout, or whatever W&B's own process dies of
            self._go_offline(error)
            if not run.offline:
                self._not_uploaded.append(folder)
            return
        if self.mode != "disabled":
            _keep_log_only(folder)

    def _init(self, name: str, job_type: str, settings: Mapping[str, Any]) -> Any:
        if self.mode == "online":
            try:
                self._log_in()
                run = self._begin(name, job_type, settings)
            except Exception as error:  # W&B's, its own process's, a socket's: none of them is worth a sweep
                self._go_offline(error)
        if self.mode != "online":
            if (earlier := self._suspended.pop(name, None)) is not None:
                shutil.rmtree(earlier, ignore_errors=True)  # else W&B names the next of this second after another run
            run = self._begin(name, job_type, settings)
        self._drop_earlier(name, Path(run.dir).parent)
        return run

    def _log_in(self) -> None:
        """Have the key checked, once, within 10 s or ``$WANDB_HTTP_TIMEOUT``, and no one asked for one."""
        if self._logged_in:
            return
        if not wandb.login(verify=True, prompt=False):
            asked = os.environ.get("WANDB_MODE")
            raise wandb.errors.UsageError(
                f"$WANDB_MODE is {asked}" if asked else "it has no key: export WANDB_API_KEY, or run `wandb login`"
            )
        self._logged_in = True

    def _go_offline(self, error: Exception) -> None:
        """From here on no one waits for W&B; says so the first time."""
        if self.mode == "online":
            self.mode = "offline"
            cause = describe_error(error).rstrip(".")
            logger.warning(
                f"W&B cannot be used: {cause}; check the network and the key. The sweep continues, and what it logs is "
                "kept to be uploaded later"
            )

    def _begin(self, name: str, job_type: str, settings: Mapping[str, Any]) -> Any:
        return wandb.init(
            project=self.config.project,
            entity=self.config.entity,
            group=self.config.group or self.sweep,
            job_type=job_type,
            name=f"{self.sweep}/{name}",
            id=run_id(self.sweep, name),
            tags=list(self.config.tags),
            config=dict(settings),
            mode=self.mode,
            dir=str(self.folder),
            # Offline, W&B cannot look for an earlier run and would warn.
            resume="allow" if self.mode == "online" else None,
            reinit="create_new",
            settings=wandb.Settings(
                init_timeout=INIT_SECONDS,
                finish_timeout=FINISH_SECONDS,
                finish_timeout_raises=True,
                # The driver's own terminal, git state and load say nothing about one trial.
                silent=True,
                console="off",
                disable_git=True,
                save_code=False,
                x_disable_stats=True,
                symlink=False,
                x_disable_meta=True,
                x_save_requirements=False,  # it lists every installed package, 0.08 s of CPU for each run
            ),
        )

    def _drop_earlier(self, name: str, current: Path) -> None:
        """Remove what was written of a run and not uploaded.

        An earlier process wrote it, or this one in vain: the run begun now has all of it.
        """
        kinds = {"offline": ("offline-run-", "run-"), "online": ("offline-run-",), "disabled": ()}
        if self._folders is None:  # listed once: a listing for every trial would be of all trials before it
            self._folders = defaultdict(set)
            for folder in (self.folder / WANDB_FOLDER).glob("*run-*"):
                if (match := RUN_FOLDER.fullmatch(folder.name)) is not None:
                    self._folders[match[2]].add(folder)
        written = self._folders[run_id(self.sweep, name)]
        for folder in {*written, *map(_as_offline, written)} - {current}:
            if folder.name.startswith(kinds[self.mode]) and folder.is_dir():
                shutil.rmtree(folder)
        written.add(current)


def _max_open_runs() -> int:
    """Return how many runs may be open at once, by the descriptors that this process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_OPEN if soft == resource.RLIM_INFINITY else max(1, min(MAX_OPEN, soft // FD_SHARE))


def _rename_as_offline(folder: Path) -> Path:
    """So that ``wandb sync`` takes it for one that it is to upload; by the name it tells them apart."""
    return folder.rename(_as_offline(folder))


def _as_offline(folder: Path) -> Path:
    return folder.with_name(f"offline-{folder.name.removeprefix('offline-')}")


def _keep_log_only(folder: Path) -> None:
    """Remove from a run's folder what says nothing of the run: all but the log, which is what ``wandb sync`` reads."""
    for other in folder.iterdir() if folder.exists() else ():
        if other.is_dir() and not other.is_symlink():
            shutil.rmtree(other, ignore_errors=True)


def upload_runs(folder: Path, run: RunDirectory) -> None:
    """Copy what W&B has written below a local folder to a run directory elsewhere.

    It replaces what an earlier process has put there of the same runs: see ``Tracker._drop_earlier``.
    """
    for local in sorted((folder / WANDB_FOLDER).glob("*run-*")):
        if (new := RUN_FOLDER.fullmatch(local.name)) is None:
            continue
        run.upload(local, f"{WANDB_FOLDER}/{local.name}")
        for name in run.list(WANDB_FOLDER):
            earlier = RUN_FOLDER.fullmatch(name)
            if earlier and name != local.name and earlier[2] == new[2] and (new[1] or earlier[1]):
                run.delete_folder(f"{WANDB_FOLDER}/{name}")


def uploaded_runs(run: RunDirectory) -> set[str]:
    """Return the ids of the W&B runs in a run directory."""
    return {match[2] for name in run.list(WANDB_FOLDER) if (match := RUN_FOLDER.fullmatch(name))}


def logged_values(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return a report's values under W&B's names: ``stage_one/validation/macro_f1`` and so on; None is left out."""
    stage = report[report_keys.STAGE]
    values = {f"{stage}/{key}": value for key, value in report.items() if key not in NOT_LOGGED and value is not None}
    return {f"{stage}/{report_keys.EPOCH}": report[report_keys.EPOCH], **values}


def run_id(sweep: str, trial: str) -> str:
    """Return the fixed W&B id of a trial: the same whenever the sweep is resumed."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", f"{sweep}-{trial}")


def sync_command(folder: str) -> str:
    """Return the line that uploads what was logged offline below ``folder``."""
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


def settings_of(trial_config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trial's W&B config: its whole configuration under dotted names, and what was swept by itself."""
    return {**flatten(trial_config), "swept": dict(values)}
