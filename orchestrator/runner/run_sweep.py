"""Runs a sweep from its configuration to its results: checks first, then the phases, then the best model."""

import logging
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from rich.console import Console
from tailsweep.orchestrator.config.methods import METHOD
from tailsweep.orchestrator.config.search_space import Trial
from tailsweep.orchestrator.config.sweep import Sweep, to_yaml
from tailsweep.orchestrator.config.two_phase import most_epochs
from tailsweep.orchestrator.monitoring.background_tracker import BackgroundTracker
from tailsweep.orchestrator.monitoring.console import Progress
from tailsweep.orchestrator.monitoring.run_log import run_log
from tailsweep.orchestrator.monitoring.wandb_tracker import (
    Tracker,
    flatten,
    run_id,
    sync_command,
    upload_runs,
    uploaded_runs,
)
from tailsweep.orchestrator.planning.environment import (
    Environment,
    describe_environment,
    write_environment,
)
from tailsweep.orchestrator.planning.plan import SweepPlan, format_class_table, plan_resumed_sweep, plan_sweep
from tailsweep.orchestrator.planning.ray_session import ray_session
from tailsweep.orchestrator.preflight.doctor import require_ready
from tailsweep.orchestrator.preflight.needs import folder_of_runs, needs_of
from tailsweep.orchestrator.runner.callback import SweepCallback, epochs_of
from tailsweep.orchestrator.runner.phases import SweepRunner
from tailsweep.orchestrator.runner.resume import Wanted, reopen
from tailsweep.orchestrator.runner.tune_run import TuneRunner
from tailsweep.orchestrator.runs import front
from tailsweep.orchestrator.runs.directory import (
    CHECKPOINTS_FOLDER,
    DATA_FOLDER,
    STACKS_FOLDER,
    SWEEP_FILE,
    WANDB_FOLDER,
    RunDirectory,
    open_run,
)
from tailsweep.orchestrator.runs.grants import restated, sign
from tailsweep.orchestrator.runs.lock import run_lock
from tailsweep.orchestrator.runs.records import read_records, read_sweep, write_trials
from tailsweep.orchestrator.runs.report import write_report
from tailsweep.orchestrator.runs.tables import is_exported, read_test_metrics, result_rows, select_best, write_tables
from tailsweep.orchestrator.runs.trials import Records, Row, TrialState
from tailsweep.orchestrator.search.asha import Rungs, StageASHA
from tailsweep.orchestrator.search.ends import settled
from tailsweep.trainables import report_keys
from tailsweep.trainables.errors import StorageError
from tailsweep.trainables.report_keys import Stage
from tailsweep.trainables.storage.filesystem import join_location
from tailsweep.trainables.training.checkpoint import checkpoint_name

BEFORE_THE_END = 0.999  # of a stage: a trial that is through it has nothing to save

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOptions:
    """How a sweep is run, apart from what it is."""

    address: str | None = None  # of the Ray cluster; None: $RAY_ADDRESS, else a Ray started here
    export: bool = True  # whether the best trial becomes `best/` and is scored on the test examples
    checked: bool = False  # whether the caller has checked the cluster already (see doctor.py)
    announced: bool = True  # whether it is a run of its own, not a part of a comparison
    resume: bool = False  # whether to resume the run directory where there is one
    wanted: Wanted = field(default_factory=Wanted)  # what the person says of the run that is resumed


def run_sweep(sweep: Sweep, console: Console, options: RunOptions, trials: Sequence[Trial] | None = None) -> int:
    """Run a new sweep to its end.

    Args:
        sweep: the sweep.
        console: shows progress and results.
        options: how to run it.
        trials: in place of those that ``sweep`` draws.

    Returns:
        The exit status: 0 done, 1 interrupted or no trial was completed.

    Raises:
        ValueError: the user's input cannot be used; nothing has been written then.
    """
    config = sweep.config
    run = RunDirectory(join_location(config.storage, sweep.name))
    if options.resume and run.reach() and run.has_begun:
        return resume_sweep(run.location, console, replace(options, wanted=Wanted(sweep)))
    run.refuse_existing(but_one_not_begun=options.resume)
    with run_log() as log:
        if options.announced:
            logger.info(f"run directory {run.location}; if it is interrupted: {resume_command(run, sweep)}")
        phases = "" if sweep.two_phase is None else f"; {sweep.two_phase}"
        logger.info(f"sweep {sweep.name}: {sweep.num_trials} trials{phases}")
        plan = plan_sweep(sweep, trials)
        assert plan.prepared is not None
        for note in plan.notes:
            logger.info(f"note: {note}")
        for table in plan.class_tables:
            logger.info(format_class_table(table))
        with ray_session(options.address) as started_here:
            if not options.checked:
                require_ready(needs_of(plan), started_here)
            run.create(over_one_not_begun=options.resume)
            with run_lock(run), log.written_to(run):
                environment = write_start(run, plan, ray.nodes())
                if options.announced:
                    front.tell(run=run.location, resume=resume_command(run, sweep))
                records = Records(list(plan.trials))
                return StartedSweep(run, plan, environment, records, console, options.export).finish()


class Interrupted(Exception):
    """The interruption of a sweep of a larger run before its end."""


def finish_sweep(sweep: Sweep, trials: Sequence[Trial] | None, console: Console) -> Records:
    """Run a sweep that is a part of a larger run, or what is left of it; nothing is exported.

    Args:
        sweep: the sweep.
        trials: in place of those that it draws.
        console: shows progress and results.

    Raises:
        Interrupted: it has not come to its end.
    """
    run = RunDirectory(join_location(sweep.config.storage, sweep.name))
    options = RunOptions(export=False, checked=True, announced=False)
    if not run.has_begun:
        run.delete_folder("")  # of a sweep that was interrupted before it began
        run_sweep(sweep, console, options, trials)
    elif not _is_finished(run):
        resume_sweep(run.location, console, replace(options, wanted=Wanted(sweep)))
    if not _is_finished(run):
        raise Interrupted(f"{run.location} is not finished")
    return read_records(run)


def _is_finished(run: RunDirectory) -> bool:
    if not run.has_begun:  # it was interrupted before
        return False
    records = read_records(run)
    return records.finished and len(records.root_trials) == read_sweep(run).num_trials


def resume_command(run: RunDirectory, sweep: Sweep) -> str:
    """Return the command that resumes a run, with what it must say again."""
    return run.resume_command + restated(sweep.config.model_dump(), run)


def write_start(run: RunDirectory, plan: SweepPlan, nodes: Sequence[Mapping[str, Any]]) -> Environment:
    """Write everything that is known of a sweep before its trials start.

    Args:
        run: the new run directory.
        plan: the sweep, with its inputs prepared.
        nodes: as ``ray.nodes()`` lists them.

    Returns:
        The inputs of its trials.
    """
    assert plan.prepared is not None
    environment = describe_environment(plan.sweep, plan.prepared, nodes)
    write_environment(run, environment)
    for key, data in plan.prepared.data.items():
        run.upload(data.folder, f"{DATA_FOLDER}/{key}")
    run.write_text(SWEEP_FILE, to_yaml(plan.sweep))
    sign(run, SWEEP_FILE)
    # Last: with this file the run directory is one that `resume` can resume.
    write_trials(run, plan.trials)
    return environment


def resume_sweep(location: str, console: Console, options: RunOptions) -> int:
    """Resume an interrupted sweep from its own records.

    Finished trials stay finished, unfinished ones continue from their last checkpoint, and ASHA's rungs are as they
    were: the history is replayed to a fresh scheduler.

    Returns:
        The exit status, as :func:`run_sweep` does.
    """
    run = open_run(location)
    with run_log() as log, run_lock(run), log.written_to(run):
        reopened = reopen(run, options.wanted)
        sweep, environment, records = reopened.sweep, reopened.environment, reopened.records
        if options.announced:
            logger.info(f"run directory {run.location}; if it is interrupted: {resume_command(run, sweep)}")
            front.tell(run=run.location, resume=resume_command(run, sweep))
        to_draw = sweep.num_trials - len(records.root_trials)
        unfinished = to_draw + sum(trial.name not in records.outcomes for trial in records.trials)
        logger.info(f"sweep {run.name}: {unfinished} of {to_draw + len(records.trials)} trials left")
        plan = plan_resumed_sweep(sweep, records, environment)
        with ray_session(options.address) as started_here:
            if unfinished and not options.checked:
                require_ready(needs_of(plan, folder_of_runs(run)), started_here)
            return StartedSweep(run, plan, environment, records, console, options.export).finish()


class StartedSweep:
    """A sweep whose run directory exists, from its trials to its results.

    Args:
        run: the run directory.
        plan: the sweep.
        environment: the inputs of its trials.
        records: what is known of the trials.
        console: shows progress and results.
        export: whether the best trial becomes ``best/``.
    """

    def __init__(
        self,
        run: RunDirectory,
        plan: SweepPlan,
        environment: Environment,
        records: Records,
        console: Console,
        export: bool,
    ) -> None:
        self.run = run
        self.plan = plan
        self.config = plan.sweep.config
        self.environment = environment
        self.records = records
        self.console = console
        self.export = export
        self.resume_command = resume_command(run, plan.sweep)
        # What a killed process has logged offline on a disk of its own is lost, and so is what it had no time for. Of a
        # sweep that has come to its end here, the user may have moved it.
        is_whole = run.local is not None and records.finished
        self.logs_again = self.config.wandb.mode == "offline" and not is_whole

    def finish(self) -> int:
        """Run the trials and write the results; returns the exit status.

        Whatever stops them on the way, the last line says how to continue.
        """
        try:
            return self._run_and_write()
        except (Interrupted, StorageError, KeyboardInterrupt) as error:
            logger.warning(f"{str(error) or 'interrupted'}; to continue: {self.resume_command}")
            return 1

    def _run_and_write(self) -> int:
        with tempfile.TemporaryDirectory(prefix="tailsweep-") as temporary:
            tracking_folder = self.run.local or Path(temporary)
            uploaded = uploaded_runs(self.run) if self.logs_again else set()
            tracker = BackgroundTracker(Tracker(self.config.wandb, self.run.name, tracking_folder))
            runner = self._runner(tracker)
            lost = {
                name
                for name in self.records.outcomes
                if self.logs_again and run_id(tracker.sweep, name) not in uploaded
            }
            self._record_known_ends(runner, lost)
            try:
                if not runner.finished:
                    runner.run()
                if runner.callback.storage_error is not None:
                    raise runner.callback.storage_error
                runner.callback.writer.seal()
            finally:
                tracker.close()
            best = select_best(write_tables(self.run, self.records, self.config.metric), self.config.metric)
            if runner.finished:
                runner.remove_published_features()
            if runner.finished and best is not None:
                drop_spent_checkpoints(self.run, self.records, self.config.metric)
                self._export_and_track(best, tracker, uploaded)
            if self.run.local is None:
                upload_runs(tracking_folder, self.run)
        print("\n" + write_report(self.run, self.records, self.plan.sweep))
        if tracker.mode == "offline":
            self._say_how_to_sync()
        if not runner.finished:
            logger.warning(f"{runner.callback.stopped or 'interrupted'}; to continue: {self.resume_command}")
        elif best is None:
            logger.warning(
                "no trial was completed, so there is no model, and resuming cannot change that: see the reasons above, "
                "change what they name, and start another run"
            )
        return 0 if runner.finished and best is not None else 1

    def _runner(self, tracker: BackgroundTracker) -> SweepRunner:
        scheduler = _scheduler(self.plan.sweep, self.records)
        epochs = {trial.name: epochs_of(trial.config) for trial in self.records.trials}
        progress = Progress(epochs, self.config.metric, self.console, self.plan.sweep.num_trials)
        callback = SweepCallback(self.run, self.records, scheduler, tracker, progress, self.config)
        tune = TuneRunner(self.run, self.plan, self.environment, self.records, scheduler, callback)
        return SweepRunner(self.plan, tune, self.console)

    def _record_known_ends(self, runner: SweepRunner, lost: Collection[str]) -> None:
        """Show the outcomes there are, and write those that a killed sweep had no time for: its history has them.

        Args:
            runner: of the sweep.
            lost: the trials whose W&B runs are lost.
        """
        for trial in self.records.trials:
            if trial.name in self.records.outcomes:
                runner.callback.recall(self.records.outcomes[trial.name], track=trial.name in lost)
            elif (end := settled(self.records, runner.tune.scheduler, self.config.metric, trial.name)) is not None:
                runner.callback.end(trial.name, *end)

    def _export_and_track(self, best: Row, tracker: BackgroundTracker, uploaded: Collection[str]) -> None:
        """Make ``best/`` if it is not there, and the sweep's own W&B run."""
        if not self.export:
            return
        rows = result_rows(self.records, self.config.metric)
        exported = is_exported(self.run, rows, self.config)
        if not exported:
            from tailsweep.orchestrator.runner.select_model import ModelSelection  # scikit-learn takes a second

            selection = ModelSelection(self.run, self.plan.sweep, self.records, self.environment)
            if not self.config.selection.trains_again:
                selection.export(selection.choose(rows))
            else:
                from tailsweep.orchestrator.runner.cross_validation import CrossValidation
                from tailsweep.orchestrator.runner.refit import refit

                run_trials = partial(finish_sweep, console=self.console)
                folds = CrossValidation(self.run, self.plan.sweep, run_trials)
                by_folds = folds.predict if self.config.selection.folds is not None else None
                model = selection.choose(rows, by_folds)
                selection.export(refit(self.run, self.plan.sweep, model, run_trials))
        if not exported or (self.logs_again and run_id(tracker.sweep, "sweep") not in uploaded):
            metrics = read_test_metrics(self.run) or {}
            test = {key: value for key, value in metrics.items() if key.startswith(f"{report_keys.TEST}/")}
            chosen = metrics.get("model", best["trial"])
            tracker.finish_sweep(flatten(self.config.model_dump(mode="json")), {"chosen": chosen, **test})

    def _say_how_to_sync(self) -> None:
        is_local = self.run.local is not None
        folder = self.run.uri(WANDB_FOLDER) if is_local else WANDB_FOLDER
        copied = "" if is_local else "copy it to a folder here, and "
        logger.info(f"W&B      {self.run.uri(WANDB_FOLDER)}; to upload: {copied}{sync_command(folder)}")


def _scheduler(sweep: Sweep, records: Records) -> StageASHA | None:
    """Return ASHA with the rungs that the history so far gives; None where it has nothing to decide."""
    config = sweep.config
    trial_configs = [trial.config for trial in records.trials]
    if config.search == "optuna":  # what may yet be drawn
        trial_configs += [trial_config.model_dump(mode="json") for trial_config in sweep.representative_trials()]
    rungs: dict[str, Rungs] = {}
    clocks: dict[str, Callable[[str], float]] = {}
    for stage, asha in ((report_keys.STAGE_ONE, config.asha), (report_keys.STAGE_TWO, config.stage_two_search.asha)):
        max_epochs = max(trial_config[stage]["epochs"] for trial_config in trial_configs)
        if stage == report_keys.STAGE_TWO and sweep.two_phase is not None and sweep.two_phase.settings > 1:
            # Of trials that are drawn when phase one is over:
            max_epochs = max(most_epochs(each.config, stage) for each in sweep.methods.values() or (sweep,))
        if asha is not None and asha.grace_fraction is not None:
            clocks[stage] = partial(_epochs_of, records, stage)
            rungs[stage] = Rungs(
                asha.grace_fraction, BEFORE_THE_END, asha.reduction_factor, asha.brackets, seed=config.seed
            )
        elif asha is not None and max_epochs >= asha.grace_epochs:
            rungs[stage] = Rungs(asha.grace_epochs, max_epochs, asha.reduction_factor, asha.brackets, seed=config.seed)
    if not rungs:
        return None
    # What stage one has reached says nothing of methods with another one, or with none.
    groups: dict[str, Callable[[str], str]] = {}
    if sweep.methods:
        groups[report_keys.STAGE_ONE] = partial(_method_of, records)
    scheduler = StageASHA(rungs, config.metric, clocks, groups)
    scheduler.replay(records.history)
    return scheduler


def _epochs_of(records: Records, stage: str, trial: str) -> float:
    return float(records.trial(trial).config[stage]["epochs"])


def _method_of(records: Records, trial: str) -> str:
    return str(records.trial(trial).values[METHOD])


def drop_spent_checkpoints(run: RunDirectory, records: Records, metric: str) -> None:
    """Delete all checkpoints but the best epoch of every completed trial."""
    run.delete_folder(STACKS_FOLDER)
    for name, outcome in records.outcomes.items():
        folder = f"{CHECKPOINTS_FOLDER}/{name}"
        if outcome.state in {TrialState.PRUNED, TrialState.NOT_PROMOTED, TrialState.PROMOTED}:
            run.delete_folder(folder)
        elif outcome.state == TrialState.COMPLETED:
            best = records.judged(name, metric)
            assert best is not None, "a completed trial has reported"
            kept = checkpoint_name(Stage(best[report_keys.STAGE]), best[report_keys.EPOCH])
            for checkpoint in run.list(folder):
                if checkpoint.startswith(report_keys.STAGES) and checkpoint != kept:
                    run.delete_folder(f"{folder}/{checkpoint}")
