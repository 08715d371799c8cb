"""A trial of a run directory, trained again in this process: what every way of running it must give."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tailsweep.orchestrator.runs.directory import open_run
from tailsweep.orchestrator.runs.records import read_records
from tailsweep.trainables import report_keys
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.data.tokenized import open_prepared
from tailsweep.trainables.models.classifier import build_classifier
from tailsweep.trainables.training.runtime import Report, SingleProcess
from tailsweep.trainables.training.stages import TrialRun, run_two_stages
from torch import Tensor


def without_ray(run: Path, trial: str, checkpoints: Path | None = None) -> tuple[list[Report], dict[str, Tensor]]:
    """A trial's trial, both stages in this process: its reports and final parameters.

    Args:
        checkpoints: a folder for one of every report.
    """
    trial_config = TrialConfig.model_validate(read_records(open_run(str(run))).trial(trial).config)
    (folder,) = (run / "state/data").iterdir()
    data = open_prepared(folder)
    model = build_classifier(trial_config.model, data.label_names, trial_config.seed)
    runtime = SingleProcess(torch.device("cpu"), checkpoints)
    run_two_stages(TrialRun(trial_config, data, runtime), model)
    return runtime.reports, model.state_dict()


def assert_same(history: list[dict[str, Any]], reports: list[Report], tolerance: float) -> None:
    assert len(history) == len(reports)
    for recorded, expected in zip(history, reports, strict=True):
        for key in expected.keys() - {report_keys.SECONDS, report_keys.EXECUTION}:
            value = expected[key]
            assert recorded[key] == (pytest.approx(value, abs=tolerance) if isinstance(value, float) else value), key
