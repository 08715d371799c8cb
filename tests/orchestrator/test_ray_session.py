"""How many trials a cluster holds, from what its nodes declare. No Ray runs here."""

from typing import Any

import pytest
import ray

from orchestrator.ray_session import ClusterError, trial_slots
from trainables.ray_trial import Placement


def nodes(monkeypatch: pytest.MonkeyPatch, *resources: dict[str, float]) -> None:
    found: list[dict[str, Any]] = [{"Alive": True, "Resources": {"memory": 1e9, **node}} for node in resources]
    dead = {"Alive": False, "Resources": {"CPU": 1000.0, "GPU": 1000.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [*found, dead])


def placement(workers: int = 1, cpus: float = 1, gpus: float = 0) -> Placement:
    return Placement(workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus)


def test_two_cores_hold_two_trials_of_one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, {"CPU": 2})
    assert trial_slots(placement()) == 2
    assert trial_slots(placement(cpus=2)) == 1
    assert trial_slots(placement(workers=2)) == 1


def test_the_scarcer_resource_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, {"CPU": 16, "GPU": 4})
    assert trial_slots(placement(gpus=1)) == 4
    assert trial_slots(placement(cpus=8, gpus=1)) == 2


def test_a_share_of_a_gpu_lies_on_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, {"CPU": 100, "GPU": 3})
    assert trial_slots(placement(gpus=0.5)) == 6
    assert trial_slots(placement(gpus=0.3)) == 9  # not 3 / 0.3 = 10
    assert trial_slots(placement(gpus=0.6)) == 3
    assert trial_slots(placement(gpus=2)) == 1


def test_a_worker_fits_into_one_node_but_a_trial_may_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, {"CPU": 3}, {"CPU": 3})
    assert trial_slots(placement(cpus=2)) == 2  # one core of each node stays idle
    assert trial_slots(placement(workers=2, cpus=2)) == 1
    assert trial_slots(placement(workers=3)) == 2


def test_nodes_without_a_gpu_hold_no_trial_that_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, {"CPU": 8}, {"CPU": 2, "GPU": 1})
    assert trial_slots(placement(gpus=1)) == 1


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (placement(gpus=1), "asks for 1 worker(s) of 1 CPU and 1 GPU each"),
        (placement(cpus=5), "but the cluster's 2 node(s) hold 0 of these (the largest has 4 CPU and 0 GPU)"),
        (placement(workers=7), "but the cluster's 2 node(s) hold 6 of these"),
    ],
)
def test_what_no_node_can_give_is_refused_with_what_there_is(
    monkeypatch: pytest.MonkeyPatch, asked: Placement, told: str
) -> None:
    nodes(monkeypatch, {"CPU": 4}, {"CPU": 2})
    with pytest.raises(ClusterError) as raised:
        trial_slots(asked)
    assert told in str(raised.value)
    assert str(raised.value).endswith("ask for less, or add nodes")
