"""The decision about a trial that ended with an error: retry it, retry it with smaller micro-batches, or give up.

Free of Ray: ``slot.py`` classifies Ray's own errors.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.errors import describe_error
from tailsweep.trainables.report_keys import STAGES

# own: the trial's settings or rows are at fault, and would be again. memory: too much at once for the device or the
# host. lost: a process or node died. peer: another worker of the run is gone, for a reason that worker knows.
# preempted: a node was taken back, as was announced. storage: it refused a file.
Fault = Literal["own", "memory", "lost", "peer", "preempted", "storage"]

FIRST_DELAY_S = 1.0  # before a start after a fault that may pass
LONGEST_DELAY_S = 30.0


def fault_of(error: BaseException) -> Fault:
    """Classify an exception of the trial's own process."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "memory"
    if isinstance(error, torch.distributed.DistError):
        return "peer"
    if isinstance(error, RuntimeError):  # what has no type of its own
        if "CPUAllocator: " in str(error) and "memory" in str(error):  # of the host's
            return "memory"
        if "gloo/transport" in str(error):
            return "peer"
    return "storage" if isinstance(error, OSError) else "own"


def describe_failure(error: BaseException) -> str:
    """Describe why a trial failed: the exception's type and the last line of its message."""
    name = type(error).__name__
    return f"{name}: {describe_error(error, line='last') if str(error).strip() else 'no message'}"


@dataclass(frozen=True)
class RetryDecision:
    """The decision to start a trial again from its last checkpoint."""

    trial: TrialConfig
    delay: float  # seconds
    why: str  # for the log


@dataclass
class Recovery:
    """The retry policy of one trial, with the number of retries used.

    Args:
        trial: The trial's configuration.
        retries: How often it is started again after lost processes and refused files. Preempted nodes are
            not the trial's fault and are not counted. Nor is memory: micro-batches can be halved only so often.
    """

    trial: TrialConfig
    retries: int
    used: int = field(default=0, init=False)

    def after(self, fault: Fault, reason: str) -> RetryDecision | None:
        """Decide how to resume after a fault; None: the trial fails.

        Args:
            fault: The kind of fault.
            reason: The error in one line.
        """
        if fault == "memory" and (smaller := halved(self.trial)) is not None:
            self.trial = smaller
            return RetryDecision(smaller, 0.0, f"{reason}; resumes {_micro_batches(smaller)}, the batches as they were")
        if fault == "preempted":
            return RetryDecision(self.trial, 0.0, f"{reason}; continues elsewhere")
        if fault in ("lost", "peer", "storage") and self.used < self.retries:
            self.used += 1
            delay = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** (self.used - 1))
            return RetryDecision(
                self.trial, delay, f"{reason}; continues from its last checkpoint (retry {self.used} of {self.retries})"
            )
        return None


def halved(trial: TrialConfig) -> TrialConfig | None:
    """Halve the micro-batches of both stages; return None if they have one row each."""
    stages = {}
    for stage in STAGES:
        described = getattr(trial, stage)
        micro_batches = min(2 * described.gradient_accumulation, described.batch_size)
        stages[stage.value] = described.model_copy(update={"gradient_accumulation": micro_batches})
    smaller = trial.model_copy(update=stages)
    return None if smaller == trial else smaller


def _micro_batches(trial: TrialConfig) -> str:
    counts = [f"{getattr(trial, stage).gradient_accumulation} in {stage.replace('_', ' ')}" for stage in STAGES]
    return f"steps in more micro-batches ({', '.join(counts)})"
