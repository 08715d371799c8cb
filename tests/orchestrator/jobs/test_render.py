"""``tailsweep cluster render``: what it asks of the user, and what it finds out without a cluster."""

import shlex
from pathlib import Path

import pytest
import yaml
from tailsweep.orchestrator.cli.main import main

SWEEP = """
data: {train: demo://drug-labels, validation: 0.2, test: 0.2}
model: {name: sentence-transformers/all-MiniLM-L6-v2}
"""
SLURM = """
name: rare
groups: [{name: gpu, nodes: 2, cpus: 4, memory_gb: 16, gpus: 1}]
storage: {path: /shared/runs}
"""
KUBERNETES = """
name: rare
image: registry.example/tailsweep:0.1
groups: [{name: gpu, nodes: {min: 0, max: 2}, cpus: 4, memory_gb: 16, gpus: 1}]
storage: {uri: s3://bucket/runs}
"""


def written(tmp_path: Path, cluster: str, sweep: str = SWEEP) -> tuple[str, str]:
    (tmp_path / "cluster.yaml").write_text(cluster)
    (tmp_path / "my sweep.yaml").write_text(sweep)
    return str(tmp_path / "my sweep.yaml"), str(tmp_path / "cluster.yaml")


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["cluster", "render", *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err


def test_a_sweep_without_a_name_gets_that_of_the_slurm_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    sweep, cluster = written(tmp_path, SLURM)
    assert main(["cluster", "render", "slurm", sweep, "--cluster", cluster]) == 0
    assert "--set 'name=my-sweep-'\"${SLURM_JOB_ID}\"'' &" in capsys.readouterr().out


@pytest.mark.parametrize("named_by", ["file", "override"])
def test_a_sweep_with_a_name_keeps_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], named_by: str):
    sweep, cluster = written(tmp_path, SLURM, SWEEP + ("name: mine\n" if named_by == "file" else ""))
    overrides = ["--set", "name=mine"] if named_by == "override" else []
    assert main(["cluster", "render", "slurm", sweep, "--cluster", cluster, *overrides]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("python -m tailsweep run")]
    assert shlex.split(line)[3:] == [
        "run", sweep, "--resume", "--storage", "/shared/runs", "--set", "name=mine", "&",
    ]  # fmt: skip


def test_a_rayjob_brings_the_sweep_along_under_a_name_that_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    sweep, cluster = written(tmp_path, KUBERNETES)
    words = ["rayjob", sweep, "--cluster", cluster, "--set", "num_trials=3"]
    assert main(["cluster", "render", *words]) == 0
    config_map, job = yaml.safe_load_all(capsys.readouterr().out)
    assert config_map["data"]["sweep.yaml"] == SWEEP
    entrypoint = shlex.split(job["spec"]["entrypoint"])
    assert entrypoint[-4] == "--set"
    assert entrypoint[-3].startswith("name=my-sweep-20")
    assert entrypoint[-1] == "num_trials=3"


def test_a_demand_that_no_group_can_meet_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    two_gpus = "resources: {stage_two: {workers: 1, gpus_per_worker: 2}}\n"
    sweep, cluster = written(tmp_path, SLURM, SWEEP + two_gpus)
    message = refused(["slurm", sweep, "--cluster", cluster], capsys)
    assert "groups: hold 0 worker(s) of 1 CPU and 2 GPU each, but resources.stage_two of" in message
    assert "asks for 1 (gpu: 2 of 4 CPU and 1 GPU): ask for less, or add nodes" in message


def test_a_demand_that_the_grown_cluster_meets_is_let_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    sweep, cluster = written(tmp_path, KUBERNETES, SWEEP + "resources: {stage_two: {workers: 2, gpus_per_worker: 1}}\n")
    assert main(["cluster", "render", "rayjob", sweep, "--cluster", cluster]) == 0
    capsys.readouterr()
    sweep, cluster = written(tmp_path, KUBERNETES, SWEEP + "resources: {stage_two: {workers: 3, gpus_per_worker: 1}}\n")
    assert "hold 2 worker(s)" in refused(["rayjob", sweep, "--cluster", cluster], capsys)


def test_stage_one_is_checked_in_two_phase_mode_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    much = "resources: {stage_one: {gpus_per_worker: 8}}\n"
    sweep, cluster = written(tmp_path, SLURM, SWEEP + much + "promote: all\n")
    assert main(["cluster", "render", "slurm", sweep, "--cluster", cluster]) == 0
    capsys.readouterr()
    sweep, cluster = written(tmp_path, SLURM, SWEEP + much + "promote: 1\n")
    assert "resources.stage_one" in refused(["slurm", sweep, "--cluster", cluster], capsys)


def test_all_errors_of_definition_and_sweep_are_reported_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    cluster_text = KUBERNETES.replace("image: registry.example/tailsweep:0.1", "image: rayproject/ray:2.60.0")
    sweep_text = SWEEP + "wandb: {mode: online}\nresources: {stage_two: {gpus_per_worker: 4}}\n"
    sweep, cluster = written(tmp_path, cluster_text, sweep_text)
    message = refused(["rayjob", sweep, "--cluster", cluster], capsys).splitlines()
    assert message[0].endswith("cluster.yaml: 3 errors")
    assert [line.strip().partition(":")[0] for line in message[1:]] == ["image", "groups", "secrets.WANDB_API_KEY"]


def test_rows_of_this_machine_are_not_those_of_pods(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\na,b\n")
    sweep, cluster = written(tmp_path, KUBERNETES, SWEEP.replace("demo://drug-labels", str(rows)))
    message = refused(["rayjob", sweep, "--cluster", cluster], capsys)
    assert f"storage: {rows}, data.train of" in message
    mounted = KUBERNETES.replace("{uri: s3://bucket/runs}", f"{{path: {tmp_path}, claim: rows}}")
    sweep, cluster = written(tmp_path, mounted, SWEEP.replace("demo://drug-labels", str(rows)))
    assert main(["cluster", "render", "rayjob", sweep, "--cluster", cluster]) == 0


@pytest.mark.parametrize(
    ("kind", "with_sweep", "expected"),
    [
        ("rayjob", False, "rayjob runs one sweep: name its file"),
        ("slurm", False, "slurm runs one sweep: name its file"),
        ("raycluster", True, "raycluster is a cluster that accepts jobs: render it without"),
        ("aws", True, "aws is a cluster that accepts jobs"),
        ("aws", False, "aws: missing, but this section sets the region and the instance types"),
        ("local", False, "image: this machine starts what it has"),
    ],
)
def test_a_kind_says_what_it_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, with_sweep: bool, expected: str
):
    sweep, cluster = written(tmp_path, KUBERNETES)
    assert expected in refused([kind, *([sweep] if with_sweep else []), "--cluster", cluster], capsys)


def test_errors_of_the_sweep_are_reported_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    sweep, cluster = written(tmp_path, SLURM, SWEEP + "num_trial: 3\n")
    assert 'did you mean "num_trials"?' in refused(["slurm", sweep, "--cluster", cluster], capsys)


def test_settings_without_effect_are_noted_next_to_the_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    sweep, cluster = written(tmp_path, SLURM + "head: {cpus: 2}\n")
    assert main(["cluster", "render", "slurm", sweep, "--cluster", cluster]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("#!/bin/bash\n")
    assert printed.err == "note: head has no effect on Slurm: Ray's head shares the first node\n"
