"""The rounds of a sweep under Tune: inline one of both stages, in a tournament one for each, with promotion between."""

import time

from ray.tune.execution import class_cache
from tailsweep.orchestrator.planning.resources import placement, trial_slots
from tailsweep.orchestrator.runner.publish_features import Entry, publish_features
from tailsweep.orchestrator.runner.tune_run import Playing, _play
from tailsweep.orchestrator.runs.candidates import record_of
from tailsweep.orchestrator.runs.directory import FEATURES_FOLDER, RunDirectory
from tailsweep.orchestrator.search.promotion import stage_one_end, stage_one_ranking
from tailsweep.trainables import report_keys
from tailsweep.trainables.execution.feature_plan import FeaturePlan

# Tune hands the keys to AWS on to its trials, in a runtime environment, which Ray's logs and dashboard show in clear
# (2.60). Trials have the environment of their node's Ray anyway.
class_cache.ENV_VARS_TO_PROPAGATE.difference_update(
    {name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}
)


def run_rounds(playing: Playing) -> None:
    """Run what is left of the sweep. Returns with candidates that have not ended where Tune was interrupted."""
    config, records = playing.sweep.config, playing.records
    inline = config.promote == "all"
    of_one, of_two = (placement(playing.sweep, stage) for stage in report_keys.STAGES)
    of_first = of_two if inline else of_one
    # The whole trunk is work for a GPU, where stage two has one, though stage one's heads may need none.
    of_trunk = of_two if of_two["gpus_per_worker"] and not of_one["gpus_per_worker"] else of_first
    began = time.monotonic()
    slots = trial_slots({**of_trunk, "workers": 1, "min_workers": 1})
    sources = publish_features(
        playing.run, _features_needed(playing), of_trunk, slots, config.features.dir, playing.console
    )
    if sources:
        playing.say(f"features ready after {time.monotonic() - began:.0f} s")
    if inline:
        _play(playing, "both_stages", playing.unfinished, of_first, sources, draw=True)
        return
    began = time.monotonic()
    entered = [c for c in playing.unfinished if stage_one_end(records, c.name, config.metric) is None]
    warm = [c for c in entered if playing.parts_of(c.trial)["features"] is not None]
    all_warm = all(parts["features"] is not None for parts in playing.environment["made_of"].values())
    _play(playing, "stage_one_warm", warm, of_first, sources, draw=all_warm)
    _play(playing, "stage_one_run", [c for c in entered if c not in warm], of_first, sources, draw=not all_warm)
    if len(records.entered) < playing.sweep.num_candidates:
        return
    if any(stage_one_end(records, candidate.name, config.metric) is None for candidate in playing.unfinished):
        return
    if entered:
        playing.say(f"round one: {len(records.entered)} candidates in {time.monotonic() - began:.0f} s")
    _promote(playing)
    promoted = playing.unfinished
    playing.say(f"promoted: {', '.join(candidate.name for candidate in promoted)}")
    began = time.monotonic()
    _play(playing, "both_stages", promoted, of_two, sources, draw=False)
    playing.say(f"round two: {len(promoted)} candidates in {time.monotonic() - began:.0f} s")


def _promote(playing: Playing) -> None:
    """End every candidate that is not among the best of the first round; those that are become as many as there are
    settings of stage two to try, where that is more than one."""
    config, records = playing.sweep.config, playing.records
    assert config.promote != "all"
    ranking = stage_one_ranking(records, config.metric)
    for rank, name in enumerate(ranking, start=1):
        if name in records.outcomes:
            continue
        place = f"rank {rank} of {len(ranking)} by {config.metric} after stage one"
        if rank > config.promote:
            playing.bookkeeping.end(name, "not_promoted", f"{place}; the best {config.promote} go on")
        elif config.round_two.settings > 1:
            parent = records.candidate(name)
            offspring = playing.sweep.offspring(name, parent.number[0], parent.values)
            for one in offspring:
                if one.name not in records:  # a killed sweep may have drawn some
                    playing.bookkeeping.draw(record_of(one, parent=name))
            playing.bookkeeping.end(name, "promoted", f"{place}; goes on as {', '.join(one.name for one in offspring)}")


def _features_needed(playing: Playing) -> list[Entry]:
    """Of the candidates that have stage one before them, drawn already or to be drawn."""
    entries: dict[str, Entry] = {}
    plans = {key: FeaturePlan.load(dumped) for key, dumped in playing.environment["features"].items()}
    metric = playing.sweep.config.metric
    left = [c.trial for c in playing.unfinished if stage_one_end(playing.records, c.name, metric) is None]
    if playing.sweep.config.search == "optuna" and len(playing.records.entered) < playing.sweep.num_candidates:
        left += [trial.model_dump(mode="json") for trial in playing.sweep.representatives()]
    for trial in left:
        parts = playing.parts_of(trial)
        if parts["features"] is not None and parts["data"] is not None:
            entries.setdefault(parts["features"], Entry(plans[parts["features"]], trial, parts["data"]))
    return list(entries.values())


def remove_published_features(run: RunDirectory) -> None:
    """Every node that needed them has its own copy."""
    run.delete_folder(FEATURES_FOLDER)
