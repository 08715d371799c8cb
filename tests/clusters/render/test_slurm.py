"""The sbatch script, as it is written and as it runs: its logic, on nodes that stand-ins make of this machine."""

import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.cluster_definitions import GPU, definition
from support.fake_slurm import ON_TERM, Job, free_job_id
from tailsweep.clusters.render import slurm
from tailsweep.orchestrator.cli.main import build_parser

ARGUMENTS = ["--storage", "/shared/runs", "--set", f"name=demo-{slurm.JOB_ID}", "--set", "data.text=the $TEXT's"]


def script(**changes: Any) -> str:
    return slurm.sbatch_script(definition(**changes), "my sweeps/demo.yaml", ARGUMENTS)


def options(text: str) -> list[str]:
    return re.findall(r"^#SBATCH (.*)$", text, re.MULTILINE)


def test_options_say_nodes_and_their_size():
    actual = options(script(time_limit_hours=1.5, slurm={"partition": "gpu", "account": "lab", "qos": "high"}))
    assert actual == [
        "--job-name=rare", "--nodes=4", "--ntasks-per-node=1", "--cpus-per-task=8", "--mem=32768M", "--gres=gpu:1",
        "--partition=gpu", "--account=lab", "--qos=high", "--time=90", "--signal=B:USR1@300", "--no-kill", "--requeue",
        "--open-mode=append", "--output=rare-%j.log",
    ]  # fmt: skip


def test_options_leave_out_what_is_not_said_and_take_more():
    group = {"name": "cpu", "nodes": {"min": 1, "max": 3}, "cpus": 2, "memory_gb": 0.5}
    actual = options(script(groups=[group], slurm={"options": ["--exclusive"]}))
    assert "--nodes=1-3" in actual
    assert "--mem=512M" in actual
    assert actual[-1] == "--exclusive"
    assert not [option for option in actual if option.startswith(("--gres", "--time", "--signal", "--partition"))]


def test_an_accelerator_is_a_type_of_gres():
    assert "--gres=gpu:a100:1" in options(script(groups=[GPU | {"accelerator": "a100"}]))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"groups": [GPU, GPU | {"name": "cpu", "gpus": 0}]}, "groups: are gpu, cpu, but a Slurm job has nodes of one"),
        ({"groups": [GPU | {"nodes": {"min": 0, "max": 2}}]}, "groups.0.nodes.min: is 0"),
        ({"image": "a/b:1"}, "image: Slurm starts what its nodes have"),
        ({"environment": {"pip": ["a"]}}, "environment: Slurm starts what its nodes have"),
        ({"time_limit_hours": 0.05}, "slurm.notice_minutes: is 5, but must be less than time_limit_hours (0.05 h)"),
    ],
)
def test_what_slurm_cannot_do_is_reported(changes: dict[str, Any], expected: str):
    (issue,) = slurm.issues(definition(**changes))
    assert issue.startswith(expected)


def test_what_has_no_effect_on_slurm_is_reported():
    assert slurm.issues(definition()) == slurm.notes(definition()) == []
    notes = slurm.notes(definition(groups=[GPU | {"spot": True}], head={"cpus": 1}))
    assert [note.partition(" has no effect")[0] for note in notes] == ["head", "spot"]


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Job]:
    def make(**changes: Any) -> Job:
        return Job(tmp_path / "job", script(**changes), free_job_id())

    return make


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


def wait_for(job: Job, start: str) -> None:
    until = time.monotonic() + 30
    while not any(call.startswith(start) for call in job.calls):
        assert time.monotonic() < until, f"no {start} among {job.calls}"
        time.sleep(0.02)


def test_one_ray_over_all_nodes_runs_the_sweep_and_ends_with_it(job: Callable[..., Job]):
    """The calls of the stand-ins, in one run of the script: three nodes, a secret in the environment."""
    here = job(secrets={"WANDB_API_KEY": None})
    status, output, errors = ended(here.start("node-a,node-b,node-c", SWEEP="exit 0", WANDB_API_KEY="k3y"))
    assert (status, errors) == (0, "")
    first, others = sorted(call for call in here.calls if call.startswith("srun"))
    assert "--nodes=1 --ntasks=1 " in first
    assert "--nodelist=node-a " in first
    assert "--nodes=2 --ntasks=2 " in others
    assert "--exclude=node-a " in others
    rays = sorted(call for call in here.calls if call.startswith("ray start"))
    assert len(rays) == 3
    (head,) = [call for call in rays if "--head" in call]
    port = re.search(r"--node-ip-address=127\.0\.0\.2 --port=(\d+) ", head)[1]
    assert "[on node-a," in head
    others = [call for call in rays if call != head]
    assert all(f"--address=127.0.0.2:{port} " in call and "[on not-node-a," in call for call in others)
    assert all("--num-cpus=8 --num-gpus=1" in call and "key k3y" in call for call in rays)

    tokens = {re.search(r"token 600 ([0-9a-f]{64}) in token mode, folder 700", call)[1] for call in rays}
    assert len(tokens) == 1, "every node has the one token, from a file that no one else reads"
    assert tokens.pop() not in output + errors

    (sweep,) = [call for call in here.calls if call.startswith("python -m tailsweep run")]
    assert sweep.endswith(f"[at 127.0.0.2:{port}, key k3y]")
    name = f"name=demo-{here.job_id}"
    words = f"run my sweeps/demo.yaml --resume --storage /shared/runs --set {name} --set data.text=the $TEXT's"
    assert f"python -m tailsweep {words} [" in sweep
    joined = here.calls.index(next(call for call in here.calls if "tailsweep.clusters.nodes.wait_for_nodes" in call))
    assert joined < here.calls.index(sweep)

    assert here.calls.count("ray ended") == 3
    assert here.left_running == here.left_behind == []


def test_the_command_is_one_that_our_own_parser_takes():
    words = ["run", "a.yaml", "--resume", *ARGUMENTS]
    assert build_parser().parse_args(words).overrides[0] == f"name=demo-{slurm.JOB_ID}"


@pytest.mark.thorough
@pytest.mark.parametrize("status", [1, 2])
def test_the_exit_status_is_the_sweeps(job: Callable[..., Job], status: int):
    here = job()
    assert ended(here.start(SWEEP=f"exit {status}"))[0] == status
    assert not [call for call in here.calls if "requeue" in call]
    assert here.left_running == here.left_behind == []


@pytest.mark.thorough
def test_a_job_of_one_node_starts_no_other(job: Callable[..., Job]):
    here = job()
    assert ended(here.start("node-a", SWEEP="exit 0"))[0] == 0
    assert len([call for call in here.calls if call.startswith("srun")]) == 1


@pytest.mark.thorough
def test_before_the_time_limit_the_job_is_queued_again_and_then_resumes_its_run(job: Callable[..., Job]):
    here = job()
    process = here.start(SWEEP=ON_TERM)
    wait_for(here, "sweeping")
    process.send_signal(signal.SIGUSR1)
    status, output, _ = ended(process)
    assert status == 1
    assert "queued again" in output
    assert here.calls[-3:].count(f"scontrol requeue {here.job_id}") == 1
    assert here.calls.index("stopped") < here.calls.index(f"scontrol requeue {here.job_id}")
    assert here.left_running == here.left_behind == []

    assert ended(here.start(SWEEP="exit 0"))[0] == 0
    first, second = (call.partition(" [")[0] for call in here.calls if call.startswith("python -m tailsweep run"))
    assert first == second, "the same run directory"
    assert " --resume " in second


@pytest.mark.thorough
def test_a_sweep_that_ends_well_at_the_last_moment_is_not_queued_again(job: Callable[..., Job]):
    here = job()
    process = here.start(SWEEP=ON_TERM.replace("exit 1", "exit 0"))
    wait_for(here, "sweeping")
    process.send_signal(signal.SIGUSR1)
    assert ended(process)[0] == 0
    assert not [call for call in here.calls if "requeue" in call]


@pytest.mark.thorough
def test_a_job_that_is_cancelled_stops_its_sweep_and_is_not_queued_again_by_itself(job: Callable[..., Job]):
    here = job()
    process = here.start(SWEEP=ON_TERM)
    wait_for(here, "sweeping")
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 1
    assert "stopped" in here.calls
    assert not [call for call in here.calls if "requeue" in call]
    assert here.left_running == here.left_behind == []


@pytest.mark.thorough
def test_where_ray_does_not_start_no_sweep_is_and_nothing_stays(job: Callable[..., Job]):
    here = job()
    status, _, errors = ended(here.start(SWEEP="exit 0", RAY_FAILS="1"))
    assert status == 1
    assert "no such interface" in errors, "what Ray said"
    assert "Ray did not start on all of 2 nodes" in errors
    assert not [call for call in here.calls if call.startswith("python -m tailsweep run")]
    assert here.left_running == here.left_behind == []


@pytest.mark.thorough
def test_two_jobs_on_one_node_have_ports_of_their_own(job: Callable[..., Job]):
    here = job()
    first = 10000 + here.job_id % 1000 * 20
    with socket.socket() as other_job:
        other_job.bind(("", first))
        other_job.listen()
        assert ended(here.start("node-a", SWEEP="exit 0"))[0] == 0
    (head,) = [call for call in here.calls if call.startswith("ray start --head")]
    ports = [int(port) for port in re.findall(r"--(?:port|dashboard-port|ray-client-server-port)=(\d+)", head)]
    assert ports == [first + 1, first + 2, first + 3]
    own = re.findall(r"--(?:dashboard-agent-\w+|metrics-export|runtime-env-agent)-port=(\d+)", head)
    assert [int(port) for port in own] == [first + 4, first + 5, first + 6, first + 7]


@pytest.mark.thorough
def test_a_secret_comes_from_a_file_that_no_one_else_reads(job: Callable[..., Job]):
    here = job(secrets={"WANDB_API_KEY": None}, secrets_file="~/secrets.env")
    file = here.folder / "secrets.env"
    file.write_text("OTHER=x\nWANDB_API_KEY=a b$c'd")
    file.chmod(0o600)
    status, output, errors = ended(here.start(SWEEP="exit 0"))
    assert status == 0
    assert any("key a b$c'd]" in call for call in here.calls if call.startswith("python -m tailsweep run"))
    assert "a b$c'd" not in output + errors


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("content", "mode", "expected"),
    [
        ("WANDB_API_KEY=k3y", 0o644, "must be a file of mode 600"),
        ("OTHER=k3y", 0o600, "WANDB_API_KEY has no value: add a line NAME=VALUE to ~/secrets.env"),
        (None, 0o600, "must be a file of mode 600"),
    ],
)
def test_a_secret_that_is_missing_or_open_is_reported_before_anything_starts(
    job: Callable[..., Job], content: str | None, mode: int, expected: str
):
    here = job(secrets={"WANDB_API_KEY": None}, secrets_file="~/secrets.env")
    if content is not None:
        (here.folder / "secrets.env").write_text(content)
        (here.folder / "secrets.env").chmod(mode)
    status, _, errors = ended(here.start(SWEEP="exit 0"))
    assert status == 2
    assert expected in errors
    assert errors.count("\n") == 1
    assert "k3y" not in errors
    assert here.calls == here.left_behind == []


@pytest.mark.thorough
def test_a_secret_that_is_not_exported_is_reported(job: Callable[..., Job]):
    status, _, errors = ended(job(secrets={"WANDB_API_KEY": None}).start(SWEEP="exit 0"))
    assert status == 2
    assert errors == ("tailsweep: WANDB_API_KEY has no value: export it before sbatch, whose default is --export=ALL\n")


@pytest.mark.thorough
def test_an_environment_without_the_package_is_reported(job: Callable[..., Job]):
    here = job(slurm={"setup": ["export NO_PACKAGE=1"]})
    status, _, errors = ended(here.start(SWEEP="exit 0"))
    assert status == 2
    assert errors.startswith("tailsweep: this python has no tailsweep")
    assert here.calls == []
