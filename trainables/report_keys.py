"""Name, unit and direction of every value a trial reports. Imports nothing of ours, so that anything may import it.

A report is a flat dict. ``STAGE`` and ``EPOCH`` say at which point of the trial it was made. The other keys hold what
was measured there, or in training since the stage's last report. Scores are named without their split; a report
carries them as ``validation/macro_f1`` (see :func:`on_split`).
"""

from enum import StrEnum
from typing import Final


class Stage(StrEnum):
    """A stage of a trial. Files, reports and W&B hold its plain value."""

    ONE = "stage_one"
    TWO = "stage_two"


STAGES: Final = tuple(Stage)  # in the order of training
STAGE_ONE: Final = Stage.ONE
STAGE_TWO: Final = Stage.TWO

STAGE = "stage"  # the value of a Stage
EPOCH = "epoch"  # epochs of that stage that are done: an int where whole, within an epoch a share of its steps (1.25)

# The same number in reports of stage one alone: a clock for curves and searches that are to see nothing of stage two.
STAGE_ONE_EPOCH = "stage_one_epoch"
EPOCH_DECIMALS = 3  # two reports of a stage differ by as much: enough to name, to show and to compare them by

TRAIN_LOSS = "train/loss"  # the stage's own (weighted) loss, mean of the steps since the last report; lower is better
LEARNING_RATE = "train/learning_rate"  # of the last optimizer step, at the head (see StageConfig.layer_decay)
ROWS = "train/rows"  # rows visited since the last report, over all workers
EXECUTION = "execution"  # how the logits were computed, and why so (backends.py, sparse_embeddings.py)
SECONDS = "seconds"  # wall seconds since the last report, this one's evaluation included

# A report may carry, or consist of, words that are not kept in the history:
NOTICE = "notice"  # what happened to the trial, for the log
FAILURE = "failure"  # why it cannot continue

# What Tune has of a stack of trials: reports and reasons of failure, each with its trial, and where the answer goes.
TRIAL = "trial"
REPORTS = "reports"
FAILURES = "failures"
ATTEMPT = "attempt"
NUMBER = "number"  # of the report within the attempt

TRAIN = "train"
AUGMENTED = "augmented"  # the training rows, followed by the synthetic examples
VALIDATION = "validation"
TEST = "test"

# Scores of one split, all in [0, 1] but mcc in [-1, 1]; all better higher. None where the split cannot define one.
SCORES = {
    "macro_f1": "mean F1 over the classes with at least one true row",
    "micro_f1_minority": "micro-averaged F1 over all classes but the largest in training",
    "accuracy": "share of rows whose class was predicted",
    "balanced_accuracy": "mean recall over the classes with at least one true row",
    "mcc": "Matthews correlation coefficient",
    "g_mean": "geometric mean of the recalls of the classes with at least one true row",
    "recall_many": "mean recall of the classes with many training rows",
    "recall_medium": "mean recall of the classes with a medium number of training rows",
    "recall_few": "mean recall of the classes with few training rows",
}
DEFAULT_METRIC = "validation/macro_f1"  # what reports are judged by where no one says otherwise
LOSS = "loss"  # plain cross-entropy, nats per row, so the mean negative log-likelihood; lower is better
ECE = "ece"  # expected calibration error, see calibration.py, in [0, 1]; lower is better
CLASS_F1 = "f1"  # followed by the class: validation/f1/absorption


def on_split(split: str, score: str) -> str:
    """Return the key of a score on a split.

    >>> on_split("validation", "macro_f1")
    'validation/macro_f1'
    """
    return f"{split}/{score}"


def shown_epochs(epochs: float) -> str:
    """Format a number of epochs for tables and messages.

    >>> shown_epochs(2), shown_epochs(4 / 3)
    ('2', '1.333')
    """
    return f"{round(epochs, EPOCH_DECIMALS):.10g}"


def class_f1(split: str, label: str) -> str:
    """Return the key of one class's F1.

    >>> class_f1("test", "absorption")
    'test/f1/absorption'
    """
    return f"{split}/{CLASS_F1}/{label}"
