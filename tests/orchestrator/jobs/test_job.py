"""A sweep or a comparison as a job: command, files, environment and id, and input that is refused early."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.job_submission import JobStatus
from tailsweep.clusters.definition import Definition
from tailsweep.orchestrator.jobs.job import RUN, RUN_DIRECTORY, Job, free_id, job_of_file, job_of_resume
from tailsweep.trainables.errors import InputError

ROOT = Path(__file__).resolve().parents[3]
SWEEP = {"name": "rare", "data": {"train": "rows.csv"}, "model": {"name": "tiny"}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the user's own with a sweep, its rows and a model."""
    (tmp_path / "rows.csv").write_text("text,label\n")
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny/config.json").write_text("{}")
    (tmp_path / "rare.yaml").write_text(yaml.safe_dump(SWEEP))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def job(folder: Path, *overrides: str, storage: str | None = "/shared/runs", **defined: Any) -> Job:
    """The job of ``rare.yaml`` in its folder; ``defined`` are fields of the cluster's definition, if any."""
    return job_of_file(Path("rare.yaml"), overrides, storage, definition(**defined) if defined else None, folder)


def definition(**fields: Any) -> Definition:
    group = {"name": "gpu", "nodes": 1, "cpus": 4, "memory_gb": 16}
    return Definition.model_validate({"name": "c", "groups": [group], "storage": {"path": "/of/the/cluster"}, **fields})


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(InputError) as refused:
        action()
    return str(refused.value)


def test_from_a_checkout_the_code_comes_with_the_upload(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    sent = job_of_file(Path("orchestrator/sweeps/demo.yaml"), ["name=x", "seed=1"], "s3://b/runs/", None, ROOT)
    assert shlex.split(sent.command) == [
        "python", "-m", "tailsweep", "run", "orchestrator/sweeps/demo.yaml", "--set", "name=x", "--set", "seed=1",
        "--storage", "s3://b/runs/",
    ]  # fmt: skip
    assert sent.runtime_env["working_dir"] == str(ROOT)
    assert "py_modules" not in sent.runtime_env
    assert (sent.metadata, sent.notes) == ({RUN: "x", RUN_DIRECTORY: "s3://b/runs/x"}, [])


def test_from_a_folder_of_ones_own_the_code_goes_along(folder: Path):
    sent = job(folder)
    (package,) = map(Path, sent.runtime_env["py_modules"])
    assert package.name == "tailsweep"
    assert [upload.folder for upload in sent.uploads] == [folder, package]
    assert {"__main__.py", "orchestrator/cli/main.py", "clusters/definition.py"} <= sent.uploads[1].sizes.keys()
    assert not [name for name in sent.uploads[1].sizes if "__pycache__" in name]


def test_a_package_of_the_users_own_with_our_name_is_refused(folder: Path):
    (folder / "tailsweep").mkdir()
    (folder / "tailsweep" / "__init__.py").touch()
    assert "holds a package `tailsweep` of its own" in refusal(lambda: job(folder))


@pytest.mark.parametrize(
    "defined", [{"image": "registry.example/own:1"}, {"environment": {"uv": ["tailsweep==0.1.0"]}}]
)
def test_where_the_cluster_has_the_code_it_does_not_go_along(folder: Path, defined: dict[str, Any]):
    assert "py_modules" not in job(folder, **defined).runtime_env


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_packages_of_the_definition_are_the_jobs_environment(folder: Path, installer: str):
    sent = job(folder, environment={installer: ["optuna>=4"]})
    assert sent.runtime_env[installer] == ["optuna>=4"]
    assert "py_modules" in sent.runtime_env


COMPARISON = {"methods": ["vanilla", "lp_ft"], "budget": {"trials": 1}, **SWEEP}


def test_a_comparison_is_a_job_too(folder: Path):
    (folder / "rare.yaml").write_text(yaml.safe_dump(COMPARISON))
    sent = job(folder, "seeds=[7]", storage=None, image="x")
    assert shlex.split(sent.command) == [
        "python", "-m", "tailsweep", "compare", "rare.yaml", "--set", "seeds=[7]", "--set", "name=rare",
        "--storage", "/of/the/cluster",
    ]  # fmt: skip
    assert sent.metadata == {RUN: "rare", RUN_DIRECTORY: "/of/the/cluster/rare"}


def test_what_a_comparisons_methods_read_must_be_in_the_upload_and_each_note_is_said_once(folder: Path):
    augmented = {"data": {"augmentation": {"kind": "paraphrases", "file": "more.csv"}}}
    methods = {"vanilla": {}, "two_stage_augmented": augmented}
    (folder / "rare.yaml").write_text(yaml.safe_dump({**COMPARISON, "methods": methods}))
    assert refusal(lambda: job(folder)).startswith('data.augmentation.file is "more.csv", but there is no such file')
    (folder / "more.csv").write_text("text,label\n")
    assert job(folder, f"data.train={folder}/rows.csv").notes == [
        f'data.train is "{folder}/rows.csv": the nodes\' own, which each must have at this path',
        "storage is /shared/runs: a folder that all nodes must share",
    ]
    assert "methods.vanila" in refusal(lambda: job(folder, "methods.vanila={}"))


def test_a_sweep_without_a_name_gets_the_same_one_here_and_there(folder: Path):
    (folder / "rare.yaml").write_text(yaml.safe_dump({**SWEEP, "name": None}))
    sent = job(folder)
    assert sent.run.startswith("rare-20")
    assert f"name={sent.run}" in shlex.split(sent.command)
    assert sent.run_directory == f"/shared/runs/{sent.run}"


@pytest.mark.parametrize(
    ("overrides", "storage", "expected"),
    [
        ([], "/by/argument", "/by/argument"),
        (["storage=/by/set"], None, "/by/set"),
        ([], None, "/of/the/cluster"),
        (["storage=/by/set"], "/by/argument", "/by/argument"),
    ],
)
def test_storage_is_the_arguments_then_the_clusters(
    folder: Path, overrides: list[str], storage: str | None, expected: str
):
    sent = job(folder, *overrides, storage=storage, image="x")
    assert sent.run_directory == f"{expected}/rare"
    assert shlex.split(sent.command)[-2:] == ["--storage", expected]


def test_relative_storage_is_refused(folder: Path):
    message = refusal(lambda: job(folder, storage=None))  # "runs", the default
    assert message.startswith('storage is "runs", a folder relative to this one: on the cluster')
    assert "--storage" in message


def test_all_errors_of_the_sweep_are_reported_before_anything_is_sent(folder: Path):
    message = refusal(lambda: job(folder, "stage_two.epoch=3", "num_trials=0"))
    assert "2 errors" in message
    assert 'did you mean "epochs"?' in message


def test_a_sweep_outside_of_the_upload_is_refused(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "rare.yaml"
    elsewhere.write_text(yaml.safe_dump(SWEEP))
    message = refusal(lambda: job_of_file(elsewhere, [], "/shared", None, folder))
    assert f"{elsewhere} lies outside of {folder}, the folder that is uploaded: go to a folder above it" in message
    (folder / ".rayignore").write_text("rare.yaml\n")
    assert "rare.yaml is kept out (by .gitignore or .rayignore) of" in refusal(lambda: job(folder))


@pytest.mark.parametrize(
    ("override", "ignored", "expected"),
    [
        ("seed=0", "rows.csv", 'data.train is "rows.csv", but rows.csv is not in the upload: kept out by .gitignore'),
        ("data.test=absent.csv", "", 'data.test is "absent.csv", but there is no such file in'),
        ("seed=0", "tiny/weights.bin", 'model.name is "tiny", but tiny/weights.bin is not in the upload'),
        ("data.augmentation={kind: paraphrases, file: more.csv}", "more.csv", 'data.augmentation.file is "more.csv"'),
    ],
)
def test_a_file_that_the_job_would_not_find_is_refused(folder: Path, override: str, ignored: str, expected: str):
    (folder / "tiny/weights.bin").write_bytes(b"x")
    (folder / "more.csv").write_text("text,label\n")
    (folder / ".rayignore").write_text(ignored + "\n")
    assert expected in refusal(lambda: job(folder, override, "stage_one.sampling=original"))


def test_paths_from_the_root_are_the_nodes_own(folder: Path):
    sent = job(folder, f"data.train={folder}/rows.csv")
    assert sent.notes == [
        f'data.train is "{folder}/rows.csv": the nodes\' own, which each must have at this path',
        "storage is /shared/runs: a folder that all nodes must share",
    ]
    assert job(folder, "model.name=~/model", storage=None, image="x").notes == [
        'model.name is "~/model": the nodes\' own, which each must have at this path'
    ]


def test_what_a_job_cannot_carry_is_said(folder: Path):
    message = job(folder, storage=None, secrets={"HF_TOKEN": None}, time_limit_hours=2).notes
    assert message == [
        "HF_TOKEN: a job carries no keys, the nodes' environment must hold them",
        "time_limit_hours: Ray's job server has no time limit; set `max_wallclock_seconds` in the sweep file",
    ]


@pytest.mark.parametrize(
    ("overrides", "defined"),
    [
        (["wandb.api_key=hunter2"], {}),
        (["data.train=https://me:hunter2@host/rows.csv", "storage=/shared"], {}),
        (["storage=s3://key:hunter2@bucket/runs"], {}),
        ([], {"environment": {"pip": ["--extra-index-url https://me:hunter2@host/simple", "optuna"]}}),
        ([], {"environment": {"pip": ["--index-url=https://me:hunter2@host/simple"]}}),
        ([], {"environment": {"uv": ["own @ git+https://hunter2@host/own.git"]}}),
    ],
)
def test_keys_are_refused_and_not_repeated(folder: Path, overrides: list[str], defined: dict[str, Any]):
    message = refusal(lambda: job(folder, *overrides, storage=None if overrides else "/shared", **defined))
    assert "hunter2" not in message
    assert "key or a password" in message or "keys and passwords are never settings" in message


def test_packages_from_an_index_are_no_keys(folder: Path):
    job(folder, environment={"pip": ["--index-url https://host/simple", "own @ https://host/own-1.whl", "torch==2.6"]})


def test_a_run_is_resumed_by_its_location(folder: Path):
    sent = job_of_resume(
        "s3://bucket/runs/rare/", ["wandb.mode=online"], definition(environment={"pip": ["optuna"]}), folder
    )
    assert sent.command == "python -m tailsweep resume s3://bucket/runs/rare --set wandb.mode=online"
    assert (sent.run, sent.metadata[RUN_DIRECTORY]) == ("rare", "s3://bucket/runs/rare")
    assert sent.runtime_env["pip"] == ["optuna"]


@pytest.mark.parametrize(
    ("location", "expected"),
    [("runs/rare", 'RUN is "runs/rare", a folder relative to this one'), ("s3://a:hunter2@b/rare", "holds a key")],
)
def test_a_run_that_the_cluster_does_not_reach_is_refused(folder: Path, location: str, expected: str):
    message = refusal(lambda: job_of_resume(location, [], None, folder))
    assert expected in message
    assert "hunter2" not in message


@dataclass
class Listed:
    submission_id: str
    status: JobStatus
    metadata: dict[str, str] | None = field(default_factory=dict)


def test_ids_are_the_runs_name_and_count_on_after_jobs_that_have_ended():
    assert free_id("rare", []) == "rare"
    ended = [Listed("rare", JobStatus.FAILED, {RUN: "rare"}), Listed("rare-2", JobStatus.STOPPED, None)]
    assert free_id("rare", ended) == "rare-3"
    assert free_id("other", ended) == "other"


def test_a_run_is_not_worked_on_by_two_jobs():
    jobs = [Listed("rare", JobStatus.FAILED, {RUN: "rare"}), Listed("rare-2", JobStatus.RUNNING, {RUN: "rare"})]
    message = refusal(lambda: free_id("rare", jobs))
    assert message.startswith("job rare-2 is RUNNING already and works on rare: see `tailsweep cluster status rare-2`")
    assert "`tailsweep cluster stop rare-2`" in message
    assert free_id("rare-2", [Listed("rare-2", JobStatus.SUCCEEDED)]) == "rare-2-2"


def test_a_job_that_somebody_submitted_by_hand_under_that_id_counts():
    message = refusal(lambda: free_id("rare", [Listed("rare", JobStatus.PENDING, None)]))
    assert "job rare is PENDING already" in message


def test_a_run_whose_name_ends_in_a_number_is_another():
    assert free_id("rare", [Listed("rare-2", JobStatus.RUNNING, {RUN: "rare-2"})]) == "rare"
