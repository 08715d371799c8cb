"""One run of Ray Tune over a list of trials."""

import functools
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from tailsweep.orchestrator.config.sweep import Sweep
from tailsweep.orchestrator.planning.ray_session import signal_handlers_kept
from tailsweep.orchestrator.planning.resources import driver_bundle, driver_slots, trial_slots
from tailsweep.orchestrator.runner.callback import Bookkeeping, StopWhenAsked
from tailsweep.orchestrator.runs.candidates import CandidateRecord, Records, made_of
from tailsweep.orchestrator.runs.directory import CHECKPOINTS_FOLDER, DATA_FOLDER, RunDirectory
from tailsweep.orchestrator.search.asha import StageASHA
from tailsweep.orchestrator.search.fixed import ListedSearch, SecondsBudget
from tailsweep.orchestrator.search.promotion import stage_one_end
from tailsweep.orchestrator.search.tpe import AdaptiveSearch
from tailsweep.trainables import report_keys
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.distributed.report_queue import ReportMailbox
from tailsweep.trainables.distributed.train_run import Placement, TrialConfigOfTune, TrialSetup
from tailsweep.trainables.distributed.tune_trainables import run_stage_one, run_trial
from tailsweep.trainables.distributed.worker import FeatureSource, WorkerConfig

# both_stages: a Ray Train run of all that a candidate has left. The first round of a tournament has stage one only:
# stage_one_warm trains it in Tune's own actors, one candidate after another; stage_one_run as a Ray Train run, where
# the trunk has to be run live.
Round = Literal["both_stages", "stage_one_warm", "stage_one_run"]


@dataclass(frozen=True)
class Playing:
    """A sweep that is being run."""

    run: RunDirectory
    sweep: Sweep
    records: Records
    environment: dict[str, Any]  # environment.json, which says what rows and features the candidates are made of
    scheduler: StageASHA | None
    bookkeeping: Bookkeeping
    console: Console

    @property
    def finished(self) -> bool:
        """Whether every candidate that there is to be is at its end."""
        return self.records.finished and len(self.records.entered) == self.sweep.config.num_candidates

    @property
    def unfinished(self) -> list[CandidateRecord]:
        return [candidate for candidate in self.records.candidates if candidate.name not in self.records.outcomes]

    def parts_of(self, trial: dict[str, Any]) -> dict[str, str | None]:
        """The keys of a trial's rows ("data") and features ("features"; None: its trunk is run live)."""
        parts: dict[str, str | None] = self.environment["made_of"][made_of(trial)]
        return parts

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _play(
    playing: Playing,
    a_round: Round,
    candidates: Sequence[CandidateRecord],
    asked: Placement,
    sources: dict[str, FeatureSource],
    draw: bool,
) -> None:
    """Run candidates in their order, as many at once as are allowed; returns when Tune is done, also with those that it
    gave up at first though they had retries left.

    Args:
        asked: what one candidate asks for.
        draw: whether an adaptive search may draw new candidates in this round.
    """
    given_up = playing.bookkeeping.given_up
    for _ in range(1 + playing.sweep.config.retries):
        given_up.clear()
        _play_once(playing, a_round, candidates, asked, sources, draw)
        if not given_up or _is_cut_short(playing, a_round, candidates):
            return
        candidates = [candidate for candidate in playing.unfinished if candidate.name in given_up]
    for candidate in candidates:
        playing.bookkeeping.end(candidate.name, "failed", given_up[candidate.name])


def _is_cut_short(playing: Playing, a_round: Round, candidates: Sequence[CandidateRecord]) -> bool:
    """Whether Tune has ended before its candidates: by Ctrl-C, say."""
    records, bookkeeping = playing.records, playing.bookkeeping
    left = [one.name for one in candidates if one.name not in records.outcomes.keys() | bookkeeping.given_up.keys()]
    if a_round != "both_stages":
        left = [name for name in left if stage_one_end(records, name, playing.sweep.config.metric) is None]
    return bookkeeping.stopped is not None or bool(left)


def _play_once(
    playing: Playing,
    a_round: Round,
    candidates: Sequence[CandidateRecord],
    asked: Placement,
    sources: dict[str, FeatureSource],
    draw: bool,
) -> None:
    """As :func:`_play`, by one run of Tune."""
    config = playing.sweep.config
    draw = draw and config.search == "optuna"
    assert config.num_candidates is not None
    to_draw = config.num_candidates - len(playing.records.entered) if draw else 0
    if not candidates and not to_draw:
        return
    at_once = trial_slots(asked)
    if config.max_concurrent != "auto":
        at_once = min(at_once, config.max_concurrent)
    warm = a_round == "stage_one_warm"
    # Beside the driver, whose node must live anyway.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    setup = TrialSetup(
        storage=playing.run.uri(CHECKPOINTS_FOLDER),
        placement=asked,
        mailbox=None if warm else ray.remote(num_cpus=0, scheduling_strategy=here)(ReportMailbox).remote(),
        retries=config.retries,
    )
    if warm:
        bundle = {"CPU": asked["cpus_per_worker"], "GPU": asked["gpus_per_worker"]}
        bundles = tune.PlacementGroupFactory([{kind: amount for kind, amount in bundle.items() if amount}])
    else:
        bundles = tune.PlacementGroupFactory([driver_bundle()])
        at_once = int(min(at_once, driver_slots()))
    of_tune = functools.partial(_of_tune, playing, a_round, sources)
    searching: dict[str, Any] = {}
    budget = None
    if config.max_seconds is not None and (config.promote == "all" or a_round != "both_stages"):
        budget = SecondsBudget(config.max_seconds, at_once, playing.bookkeeping)
        if budget.spent:  # a sweep gone on with: only what had begun goes on
            _end_those_never_started(playing, candidates)
            candidates = [candidate for candidate in candidates if candidate.name not in playing.records.outcomes]
            if not candidates:
                return
        search = ListedSearch(candidates, playing.records, of_tune, budget)
        searching = {"search_alg": search, "num_samples": len(candidates)}
    if draw:
        searching = {
            "search_alg": AdaptiveSearch(playing.sweep, playing.records, candidates, playing.bookkeeping, of_tune),
            "num_samples": len(candidates) + to_draw,
        }
    # Tune's own loggers would write every report a second time.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # it prints a box of its own however quiet it is told to be (Ray 2.60)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(at_once)
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # a report may be but a notice
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    # Of a state that storage refuses it prints a traceback; nobody reads that state, and what refuses ours says so.
    logging.getLogger("ray.tune.execution.experiment_state").setLevel(logging.CRITICAL)
    trainable: Callable[..., None] = run_stage_one if warm else run_trial
    # Of no use to anybody: pickles, from which nothing is gone on with. Were they in the run directory, an object store
    # would have to take them all the time, and Tune (2.60) falls over where it does not.
    with tempfile.TemporaryDirectory(prefix="tailsweep-tune-", ignore_cleanup_errors=True) as tunes_own:
        tuner = tune.Tuner(
            tune.with_resources(functools.partial(trainable, setup=setup), bundles),
            param_space=None
            if searching
            else {"of": tune.grid_search([of_tune(candidate) for candidate in candidates])},
            tune_config=tune.TuneConfig(
                metric=config.metric,
                mode="max",
                scheduler=playing.scheduler,
                max_concurrent_trials=at_once,
                reuse_actors=True,  # a process spends seconds importing Ray Train, torch and transformers
                trial_dirname_creator=lambda trial: str(trial.config["of"]["candidate"]),
                **searching,
            ),
            run_config=tune.RunConfig(
                name=f"tune-{a_round}",
                storage_path=tunes_own,
                callbacks=[playing.bookkeeping],
                stop=StopWhenAsked(playing.bookkeeping),
                # Of processes that died; a trial's own errors are not raised, see run_trial.
                failure_config=tune.FailureConfig(max_failures=config.retries),
                verbose=0,
            ),
        )
        with playing.bookkeeping.progress, signal_handlers_kept():
            tuner.fit()
    if budget is not None and budget.spent:
        _end_those_never_started(playing, candidates)


def _end_those_never_started(playing: Playing, candidates: Sequence[CandidateRecord]) -> None:
    """So that the sweep is at its end with the candidates that its seconds paid for."""
    reason = f"never started: the {playing.sweep.config.max_seconds:g} s of max_seconds were spent"
    for candidate in candidates:
        name = candidate.name
        if name not in playing.records.outcomes and not playing.records.history_of(name):
            playing.bookkeeping.end(name, "pruned", reason)


def _of_tune(
    playing: Playing, a_round: Round, sources: dict[str, FeatureSource], candidate: CandidateRecord
) -> TrialConfigOfTune:
    """All that a trial is told of its candidate."""
    run, config = playing.run, playing.sweep.config
    trial = TrialConfig.model_validate(candidate.trial)
    if a_round == "stage_one_run":
        trial = trial.model_copy(update={"stage_two": trial.stage_two.model_copy(update={"epochs": 0})})
    parts = playing.parts_of(candidate.trial)
    assert parts["data"] is not None
    worker = WorkerConfig(
        trial=trial.model_dump(mode="json"),
        metric=config.metric,
        data_key=parts["data"],
        published_data=run.uri(f"{DATA_FOLDER}/{parts['data']}"),
        features=None if parts["features"] is None else sources.get(parts["features"]),
        checkpoints=[run.uri(f"{CHECKPOINTS_FOLDER}/{name}") for name in (candidate.name, candidate.parent) if name],
    )
    heard = [(row[report_keys.STAGE], row[report_keys.EPOCH]) for row in playing.records.history_of(candidate.name)]
    return TrialConfigOfTune(candidate=candidate.name, worker=worker, heard=heard)
