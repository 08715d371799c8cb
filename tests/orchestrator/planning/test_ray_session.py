"""How many trials a cluster holds, from what its nodes declare. No Ray runs here."""

import math
from typing import Any

import pytest
import ray
from tailsweep.clusters.capacity import GROWTH_VARIABLE, growth
from tailsweep.clusters.definition import DRIVER_RESOURCE, Group
from tailsweep.orchestrator.planning import ray_session as module
from tailsweep.orchestrator.planning.ray_session import result_of
from tailsweep.orchestrator.planning.resources import ClusterError, driver_bundle, driver_slots, trial_slots
from tailsweep.trainables.distributed.settings import Placement
from tailsweep.trainables.errors import DataError, StorageError


def nodes(monkeypatch: pytest.MonkeyPatch, *resources: dict[str, float]) -> None:
    alive: list[dict[str, Any]] = [{"Alive": True, "Resources": {"memory": 1e9, **node}} for node in resources]
    dead = {"Alive": False, "Resources": {"CPU": 1000.0, "GPU": 1000.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [*alive, dead])


def placement(workers: int = 1, cpus: float = 1, gpus: float = 0, fewest: int | None = None) -> Placement:
    return Placement(workers=workers, min_workers=fewest or workers, cpus_per_worker=cpus, gpus_per_worker=gpus)


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


def test_an_elastic_trial_fits_where_its_fewest_workers_do(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, {"CPU": 3}, {"CPU": 2})
    assert trial_slots(placement(workers=8, fewest=2)) == 1
    assert trial_slots(placement(workers=2, fewest=1)) == 2
    with pytest.raises(ClusterError, match=r"asks for 6 worker\(s\)"):
        trial_slots(placement(workers=8, fewest=6))


def test_nodes_without_a_gpu_hold_no_trial_that_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, {"CPU": 8}, {"CPU": 2, "GPU": 1})
    assert trial_slots(placement(gpus=1)) == 1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (placement(gpus=1), "asks for 1 worker(s) of 1 CPU and 1 GPU each"),
        (placement(cpus=5), "but the cluster's 2 node(s) hold 0 of these (the largest has 4 CPU and 0 GPU)"),
        (placement(workers=7), "but the cluster's 2 node(s) hold 6 of these"),
    ],
)
def test_what_no_node_can_give_is_refused_with_what_there_is(
    monkeypatch: pytest.MonkeyPatch, asked: Placement, message: str
) -> None:
    nodes(monkeypatch, {"CPU": 4}, {"CPU": 2})
    with pytest.raises(ClusterError) as raised:
        trial_slots(asked)
    assert message in str(raised.value)
    assert str(raised.value).endswith("ask for less, or add nodes")


@pytest.mark.parametrize("cause", [StorageError("storage refused a file"), DataError("no rows"), KeyError("a bug")])
def test_what_the_user_or_storage_is_to_blame_for_comes_without_a_tasks_traceback(
    cause: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(task: Any) -> None:
        raise ray.exceptions.RayTaskError("export_best", "Traceback\n  ...", cause).as_instanceof_cause()

    monkeypatch.setattr(ray, "get", get)
    with pytest.raises(type(cause)) as raised:
        result_of(None)
    assert (raised.value is cause) == (not isinstance(cause, KeyError))


def test_a_cluster_that_grows_holds_what_it_can_grow_to(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, {"CPU": 0})  # the head alone, which trains nothing
    with pytest.raises(ClusterError):
        trial_slots(placement(gpus=1))
    size = {"cpus": 8, "memory_gb": 32.0}
    groups = [Group(name="gpu", nodes=1, gpus=2, **size), Group(name="spot", nodes={"min": 0, "max": 3}, **size)]
    monkeypatch.setenv(GROWTH_VARIABLE, growth(groups))
    assert trial_slots(placement(gpus=1)) == 2
    assert trial_slots(placement(cpus=4)) == 8
    with pytest.raises(ClusterError, match="hold 0 of these"):
        trial_slots(placement(gpus=4))


def test_drivers_go_anywhere_where_no_node_is_there_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, {"CPU": 4}, {"CPU": 4})
    assert driver_bundle() == {"memory": 1}
    assert driver_slots() == math.inf


def test_drivers_go_to_nodes_that_are_there_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, {"CPU": 0, DRIVER_RESOURCE: 12}, {"CPU": 4, DRIVER_RESOURCE: 2}, {"CPU": 4})
    assert driver_bundle() == {"memory": 1, DRIVER_RESOURCE: 1}
    assert driver_slots() == 14


@pytest.fixture
def failures(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """What starting a Ray raises, one after another; none comes up, and none is connected."""
    failures: list[Exception] = []

    def start() -> None:
        if failures:
            raise failures.pop(0)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(module, "start_local_ray", start)
    monkeypatch.setattr(module, "local_processes", dict)
    return failures


def test_a_ray_that_starts_too_slowly_is_started_once_more(
    monkeypatch: pytest.MonkeyPatch, failures: list[Exception]
) -> None:
    monkeypatch.setattr(module, "SLOW_START_S", 0.0)
    failures.append(Exception("The current node timed out during startup."))
    with module.ray_session(None) as started_here:
        assert started_here
    failures += [Exception("The current node timed out during startup.")] * 2
    with (
        pytest.raises(ClusterError, match="cannot start Ray here: The current node timed out"),
        module.ray_session(None),
    ):
        pass
    assert not failures


def test_a_ray_that_cannot_start_is_not_tried_again(failures: list[Exception]) -> None:
    failures += [ValueError("a wrong setting")] * 2
    with pytest.raises(ClusterError, match="cannot start Ray here: a wrong setting"), module.ray_session(None):
        pass
    assert len(failures) == 1
