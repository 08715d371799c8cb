"""The checks on a Ray of two nodes: the second has another numpy, a cache of its own, and falls silent at the end."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.processes import free_port, run

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.xdist_group("doctor_on_nodes")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two nodes")


@pytest.fixture(scope="module")
def said(
    small_sweep: Callable[..., Path], folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """By situation: what was said and with which exit status."""
    head = {"trainable": "head", "learning_rate": {"grid": [1e-2, 1e-3]}, "epochs": 1}
    sweep = small_sweep(asha=None, stage_one=head, resources={"stage_two": {"gpus_per_worker": 1}})
    program = Path(__file__).resolve().parents[2] / "support" / "doctor_on_two_nodes.py"
    # All of them without a token: nodes and clients settle for themselves at their first look whether there is one.
    # With a cache of their own: what other tests have made lies in the common one.
    cache = tmp_path_factory.mktemp("cache")
    environment = {"PYTHONPATH": ".", "RAY_AUTH_MODE": "disabled", "TAILSWEEP_CACHE": str(cache)}
    status, printed = run(sys.executable, program, sweep, folder, free_port(), **environment)
    assert status == 0, printed
    answers: dict[str, dict[str, Any]] = json.loads(printed.splitlines()[-1])
    return answers


def findings(document: dict[str, Any]) -> dict[str, list[tuple[str, list[str], str]]]:
    """Of every check that has any: severity, nodes, what."""
    return {
        check["name"]: [(finding["severity"], finding["where"], finding["message"]) for finding in check["findings"]]
        for check in document["checks"]
        if check["findings"]
    }


def test_a_difference_of_one_node_is_reported_for_that_node(said: dict[str, dict[str, Any]]):
    document = json.loads(said["whole"]["out"])
    first, second = sorted(document["nodes"], key=lambda node: node["gpus"])
    results = findings(document)
    assert [row["class"] for row in document["classes"][0]] == ["absorption", "excretion", "metabolism"]
    assert (said["whole"]["status"], document["ok"]) == (0, True), results
    numpy = f"numpy is 1.2.3, but {np.__version__} here"
    gpus = "Ray declares 1 GPU(s) of this node, but there is none: what asks for one runs on the CPU"
    assert results == {
        "versions": [("warning", [second["name"]], numpy)],
        "GPUs": [("warning", [second["name"]], gpus)],
    }
    assert second["rooms"][0]["folder"] != first["rooms"][0]["folder"]
    # The rows lie in the cache of the first, this machine's own; features lie in neither.
    assert second["rooms"][0]["lacking"] > first["rooms"][0]["lacking"] > 0


def test_storage_that_is_not_shared_is_an_error_of_every_node_that_lacks_it(said: dict[str, dict[str, Any]]):
    """`mock://` lies in the memory of each process that opens it."""
    document = json.loads(said["not shared"]["out"])
    ((severity, where, message),) = findings(document)["storage"]
    assert (said["not shared"]["status"], document["ok"]) == (2, False)
    assert (severity, where) == ("error", [node["name"] for node in document["nodes"]])
    assert message.startswith("mock://memory/runs is not the driver's")


def test_run_refuses_in_one_line_and_says_the_warnings(said: dict[str, dict[str, Any]]):
    refused = said["not shared, run"]
    assert refused["status"] == 2
    assert refused["err"].startswith("tailsweep: not started: storage: ")
    assert refused["err"].count("\n") == 1
    assert [line.split(": ")[1] for line in refused["out"].splitlines() if line.startswith("note: ")] == [
        "versions",
        "GPUs",
    ]


def test_a_node_that_does_not_answer_is_a_finding_and_no_hang(said: dict[str, dict[str, Any]]):
    document = json.loads(said["silent"]["out"])
    (stopped,) = [node for node in document["nodes"] if node["gpus"] == 1]
    assert said["silent"]["status"] == 2
    assert (stopped["answered"], stopped["gpus_seen"]) == (False, None)
    # A machine that is busy enough may keep the other one silent, too.
    ((severity, where, message),) = findings(document)["nodes"]
    assert (severity, stopped["name"] in where, message) == ("error", True, "no answer within 8 s")


def test_the_checks_leave_no_files(said: dict[str, dict[str, Any]], folder: Path):
    assert said
    assert [path.name for path in folder.iterdir()] == ["second"]
