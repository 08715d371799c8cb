"""What is started again, how often, and with what."""

import pytest
import ray
import ray.train
import torch
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.distributed.retry_policy import (
    LONGEST_DELAY_S,
    Fault,
    Recovery,
    describe_failure,
    fault_of,
    halved,
)
from tailsweep.trainables.distributed.slot import _fault


def trial(batch_size: int = 8, parts: int = 1) -> TrialConfig:
    stage = {"batch_size": batch_size, "gradient_accumulation": parts}
    return TrialConfig.model_validate({"data": {"train": "rows.csv"}, "stage_one": stage, "stage_two": stage})


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "memory"),
        (MemoryError(), "memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: not enough memory: you tried to "
                      "allocate 4096000000000 bytes."), "memory"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:6"), "peer"),
        (torch.distributed.DistBackendError("NCCL error"), "peer"),
        (OSError(28, "No space left on device"), "storage"),
        (RuntimeError("size mismatch"), "own"),
        (ValueError("a value"), "own"),
    ],
)  # fmt: skip
def test_an_error_is_of_a_kind(error: Exception, fault: Fault) -> None:
    assert fault_of(error) == fault


def test_what_pytorch_says_when_memory_is_short_is_understood() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert fault_of(caught.value) == "memory"


def test_lost_processes_are_started_again_so_many_times_and_later_each_time() -> None:
    recovery = Recovery(trial(), retries=7)
    delays = []
    while (again := recovery.after("lost", "it died")) is not None:
        assert again.trial == trial()
        delays.append(again.delay)
    assert delays == [1, 2, 4, 8, 16, LONGEST_DELAY_S, LONGEST_DELAY_S]
    assert recovery.after("storage", "full") is None


def test_own_errors_are_not_tried_again_and_preemptions_not_counted() -> None:
    recovery = Recovery(trial(), retries=1)
    assert recovery.after("own", "ValueError: no") is None
    assert all(recovery.after("preempted", "taken back") for _ in range(100))
    assert recovery.after("lost", "it died") is not None
    assert recovery.after("lost", "it died") is None


def test_out_of_memory_halves_the_micro_batches_until_they_are_single_rows() -> None:
    recovery = Recovery(trial(batch_size=6), retries=0)
    parts = []
    while (again := recovery.after("memory", "out of memory")) is not None:
        assert again.trial.stage_one.batch_size == again.trial.stage_two.batch_size == 6
        assert f"{again.trial.stage_two.gradient_accumulation} in stage two" in again.why
        parts.append(again.trial.stage_two.gradient_accumulation)
    assert parts == [2, 4, 6]
    assert halved(trial(batch_size=1)) is None


def lost(preempted: bool = False) -> Exception:
    died = ray.exceptions.ActorDiedError()
    died._preempted = preempted
    return WorkerHealthCheckFailedError("the worker did not answer", died)


def test_of_several_workers_errors_the_cause_is_found() -> None:
    """What one worker's end makes of the others is not the cause."""
    collateral = RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:6")
    diverged, full = ArithmeticError("the loss is nan"), torch.OutOfMemoryError("CUDA out of memory.")
    cases: list[tuple[dict[int, Exception], Fault, str]] = [
        ({0: collateral, 1: diverged}, "own", "ArithmeticError: the loss is nan"),
        ({0: collateral, 1: collateral}, "peer", "RuntimeError: [gloo"),
        ({0: diverged}, "own", "ArithmeticError: the loss is nan"),
        ({0: collateral, 1: full}, "memory", "OutOfMemoryError: CUDA out of memory."),
        ({0: collateral, 2: lost()}, "lost", ""),
        ({0: collateral, 2: lost(preempted=True)}, "preempted", "ActorDiedError"),
        ({0: ray.exceptions.OutOfMemoryError("the node is out of memory")}, "memory", "OutOfMemoryError"),
        ({0: OSError(28, "No space left on device")}, "storage", "OSError: [Errno 28] No space left on device"),
    ]
    for failures, fault, reason in cases:
        kind, root = _fault(ray.train.WorkerGroupError("of several", failures))
        assert kind == fault, failures
        assert describe_failure(root).startswith(reason)


def test_the_layers_around_an_error_are_taken_off() -> None:
    inner = ValueError("first line\nthe point")
    outer = RuntimeError("outer")
    outer.__cause__ = inner
    assert _fault(ray.train.ControllerError(outer)) == ("own", inner)
    assert describe_failure(inner) == "ValueError: the point"
