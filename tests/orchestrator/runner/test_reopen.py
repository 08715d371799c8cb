"""What a run directory is resumed with: nothing in it grants anything, and what is said now is compared with it."""

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import platformdirs
import pytest
import yaml
from tailsweep.orchestrator.cli.main import main
from tailsweep.orchestrator.config.changes import settings_digest
from tailsweep.orchestrator.config.sweep import SweepConfigError, load_sweep, to_yaml
from tailsweep.orchestrator.planning.environment import read_environment, write_environment
from tailsweep.orchestrator.planning.plan import plan_sweep
from tailsweep.orchestrator.runner.resume import Wanted, reopen
from tailsweep.orchestrator.runner.run_sweep import write_start
from tailsweep.orchestrator.runs.directory import (
    FORMAT_FILE,
    SIGNATURE_FILE,
    SWEEP_FILE,
    TRIALS_FILE,
    RunDirectory,
    RunDirectoryError,
)
from tailsweep.orchestrator.runs.records import RecordWriter, read_records, with_checksum
from tailsweep.orchestrator.runs.trials import Outcome, TrialState
from tailsweep.trainables.errors import DataError, ModelError
from tailsweep.trainables.models.hub import check_weights, weights_digest

METRIC = "validation/macro_f1"


@pytest.fixture(scope="module")
def sweep_file(small_sweep: Callable[..., Path]) -> Path:
    """Two trials."""
    return small_sweep(
        search="random",
        num_trials=2,
        asha=None,
        stage_one={"trainable": "head", "learning_rate": {"loguniform": [1e-4, 1e-2]}, "epochs": 1},
    )


@pytest.fixture
def begun(sweep_file: Path, tmp_path: Path) -> RunDirectory:
    """A run directory as it is when the first trial starts."""
    return begin(sweep_file, tmp_path)


def begin(file: Path, storage: Path, *overrides: str) -> RunDirectory:
    sweep = load_sweep(file, [*overrides, "name=begun"], str(storage))
    run = RunDirectory(str(storage / "begun"))
    run.create()
    write_start(run, plan_sweep(sweep), [])
    return run


def plant(run: RunDirectory, **sections: Mapping[str, object]) -> None:
    """Change settings as somebody would who wants to be obeyed: in every record, with checksums that are right."""
    tree = yaml.safe_load(run.read_text(SWEEP_FILE))
    for section, fields in sections.items():
        tree[section] |= fields
    path = Path(run.path, SWEEP_FILE)
    path.write_text(yaml.safe_dump(tree))
    sweep = load_sweep(path)
    path.write_text(to_yaml(sweep))
    listed = json.loads(run.read_text(TRIALS_FILE))["trials"]
    for trial in listed:
        for section in sections.keys() & {"data", "model"}:
            trial["config"][section] |= sections[section]
    run.write_text(TRIALS_FILE, json.dumps(with_checksum({"trials": listed})))
    environment = read_environment(run)
    write_environment(run, environment.model_copy(update={"settings_digest": settings_digest(sweep)}))


GRANTING = {
    "model.trust_remote_code": True,
    "features.dir": "/tmp/planted-features",
    "wandb.mode": "online",
    "wandb.entity": "somebody",
    "model.name": "/tmp/planted-model",
    "data.train": "/etc/passwd",
    "data.test": "s3://bucket/theirs.csv",
}


@pytest.mark.parametrize("field", GRANTING)
def test_what_a_run_directory_asks_for_is_refused_until_it_is_said_again(
    begun: RunDirectory, field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    section, name = field.split(".")
    plant(begun, **{section: {name: GRANTING[field]}})
    before = snapshot(begun)
    assert main(["resume", begun.location]) == 2
    said = capsys.readouterr().err
    shown = json.dumps(GRANTING[field])
    assert f"{begun.uri(SWEEP_FILE)} asks for what a run directory cannot grant" in said
    assert f"\n  {field}: {shown}: it " in said
    assert "Traceback" not in said
    assert snapshot(begun) == before
    overrides = [f"{field}={GRANTING[field] if isinstance(GRANTING[field], str) else shown}"]
    overrides += other_paths(begun, field)  # the planted file is no longer the one that was signed
    with suppress(DataError, ModelError):  # what was planted is not there
        assert reopen(begun, Wanted(overrides=overrides)).sweep.name == "begun"


def other_paths(run: RunDirectory, but: str) -> list[str]:
    tree = yaml.safe_load(run.read_text(SWEEP_FILE))
    paths = {"data.train": tree["data"]["train"], "model.name": tree["model"]["name"]}
    return [f"{field}={value}" for field, value in paths.items() if field != but]


def snapshot(run: RunDirectory) -> dict[str, bytes]:
    """Every file, apart from the lock."""
    files = (path for path in Path(run.path).rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in files if path.name not in ("lock", "holder.json", "log.jsonl")}


def test_a_value_that_is_said_with_a_typing_error_grants_nothing(begun: RunDirectory) -> None:
    plant(begun, wandb={"mode": "online", "entity": "somebody"})
    with pytest.raises(RunDirectoryError, match="cannot grant"):
        reopen(begun, Wanted(overrides=["wandb.mode=online", "wandb.tags=[a]", *other_paths(begun, "")]))


def test_what_is_said_to_be_off_needs_no_grant(begun: RunDirectory) -> None:
    plant(begun, wandb={"mode": "online", "entity": "somebody"})
    said = ["wandb.mode=offline", "wandb.entity=null", *other_paths(begun, "")]
    assert reopen(begun, Wanted(overrides=said)).sweep.config.wandb.mode == "offline"


def test_a_trial_whose_records_grant_more_than_the_sweep_is_refused(begun: RunDirectory) -> None:
    listed = json.loads(begun.read_text(TRIALS_FILE))["trials"]
    listed[1]["config"]["model"]["trust_remote_code"] = True
    begun.write_text(TRIALS_FILE, json.dumps(with_checksum({"trials": listed})))
    with pytest.raises(RunDirectoryError, match=r"give t001 model\.trust_remote_code: true, which the sweep does not"):
        reopen(begun, Wanted())


def test_paths_of_the_persons_own_run_need_not_be_said_again_and_those_of_others_do(
    begun: RunDirectory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert reopen(begun, Wanted()).sweep.name == "begun"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "of another person"))
    with pytest.raises(RunDirectoryError, match=r"data\.train: .*\n  model\.name: ") as raised:
        reopen(begun, Wanted())
    again = str(raised.value).split("`")[1]
    assert again.startswith(f"tailsweep resume {begun.path} --set data.train=")
    assert reopen(begun, Wanted(overrides=other_paths(begun, ""))).sweep.name == "begun"


def test_a_model_in_the_run_directory_is_no_path_elsewhere(begun: RunDirectory, tmp_path: Path) -> None:
    tree = yaml.safe_load(begun.read_text(SWEEP_FILE))
    shutil.copytree(tree["model"]["name"], Path(begun.path, "model"))
    plant(begun, model={"name": str(Path(begun.path, "model"))})
    with pytest.raises(RunDirectoryError) as raised:
        reopen(begun, Wanted())
    assert "model.name" not in str(raised.value)


def test_the_key_is_the_persons_alone_and_a_missing_one_costs_a_signature(
    sweep_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    begin(sweep_file, tmp_path)
    key = platformdirs.user_state_path("tailsweep") / "key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert len(key.read_bytes()) == 32
    (tmp_path / "no folder").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "no folder"))
    run = begin(sweep_file, tmp_path / "unsigned")
    assert not run.exists(SIGNATURE_FILE)


def test_a_sweep_file_edited_by_hand_is_named(begun: RunDirectory) -> None:
    tree = yaml.safe_load(begun.read_text(SWEEP_FILE))
    tree["stage_one"]["epochs"] = 9
    begun.write_text(SWEEP_FILE, yaml.safe_dump(tree))
    with pytest.raises(RunDirectoryError, match=r"sweep\.yaml is not as it was when the run began: restore it"):
        reopen(begun, Wanted())


# --- formats


def test_a_run_of_another_format_is_named_with_both_versions(
    begun: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    begun.write_text(FORMAT_FILE, json.dumps({"format_version": 7, "written_by": "tailsweep 9.9"}))
    for command in ("report", "resume"):
        assert main([command, begun.location]) == 2
        said = capsys.readouterr().err
        assert "was written by tailsweep 9.9 in format 7, but this is tailsweep 0" in said
    for text in ("{}", "", "[1]"):
        begun.write_text(FORMAT_FILE, text)
        assert main(["report", begun.location]) == 2
        assert f"{FORMAT_FILE} is damaged" in capsys.readouterr().err


# --- another file


def wanted(file: Path, run: RunDirectory, *overrides: str) -> Wanted:
    return Wanted(load_sweep(file, [*overrides, f"name={run.name}"], str(Path(run.path).parent)))


def test_a_changed_file_is_refused_with_field_old_and_new(sweep_file: Path, begun: RunDirectory) -> None:
    with pytest.raises(SweepConfigError, match=r"stage_one\.epochs: 1 -> 4: results depend on it"):
        reopen(begun, wanted(sweep_file, begun, "stage_one.epochs=4"))


def test_what_is_adopted_is_written_down(sweep_file: Path, begun: RunDirectory) -> None:
    reopened = reopen(begun, wanted(sweep_file, begun, "retries=9", "resources.stage_two.cpus_per_worker=2"))
    assert reopened.sweep.config.retries == 9
    later = reopen(begun, Wanted())
    assert later.sweep.config == reopened.sweep.config


def test_more_trials_extend_the_sweep_by_those_that_it_would_have_drawn(sweep_file: Path, begun: RunDirectory) -> None:
    reopened = reopen(begun, wanted(sweep_file, begun, "num_trials=4"))
    expected = load_sweep(sweep_file, ["num_trials=4"]).trials()
    assert [trial.name for trial in reopened.records.trials] == ["t000", "t001", "t002", "t003"]
    assert [trial.values for trial in read_records(begun).trials] == [trial.values for trial in expected]
    again = reopen(begun, Wanted())
    assert (again.sweep.num_trials, len(again.records.trials)) == (4, 4)


def test_a_process_killed_while_it_extends_a_sweep_is_made_up_for(
    sweep_file: Path, begun: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(RecordWriter, "draw", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            reopen(begun, wanted(sweep_file, begun, "num_trials=4"))
    assert len(read_records(begun).trials) == 2
    assert len(reopen(begun, Wanted()).records.trials) == 4


def test_new_trials_that_need_other_inputs_have_them_prepared(sweep_file: Path, tmp_path: Path) -> None:
    swept = ["stage_one.trainable={choice: [head, {top_layers: 1}]}", "seed=3", "num_trials=1"]
    run = begin(sweep_file, tmp_path, *swept)
    before = reopen(run, Wanted()).environment
    after = reopen(run, wanted(sweep_file, run, *swept[:2], "num_trials=8")).environment
    assert len(before.inputs) == 1
    assert len(after.inputs) == 2
    assert read_environment(run) == after


def test_more_seconds_open_the_trials_again_that_had_none(sweep_file: Path, tmp_path: Path) -> None:
    run = begin(sweep_file, tmp_path, "max_wallclock_seconds=10")
    writer = RecordWriter(run)
    writer.end_trials([Outcome("t000", TrialState.PRUNED, "never started", 0.0, never_started=True)])
    writer.end_trials([Outcome("t001", TrialState.FAILED, "its loss was NaN", 0.0)])
    assert set(reopen(run, Wanted(overrides=["max_wallclock_seconds=10"])).records.outcomes) == {"t000", "t001"}
    assert set(reopen(run, Wanted(overrides=["max_wallclock_seconds=20"])).records.outcomes) == {"t001"}
    assert set(read_records(run).outcomes) == {"t001"}


def test_a_phase_one_that_is_over_takes_no_more_trials(sweep_file: Path, tmp_path: Path) -> None:
    run = begin(sweep_file, tmp_path, "promote=1")
    RecordWriter(run).end_trials([Outcome("t000", TrialState.NOT_PROMOTED, "rank 2", 1.0)])
    with pytest.raises(SweepConfigError, match="more trials cannot join a sweep whose phase one is over"):
        reopen(run, Wanted(overrides=["num_trials=5"]))


# --- missing and damaged files


def test_a_missing_or_damaged_file_is_named_by_resume_in_one_message(
    begun: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = RecordWriter(begun)
    for epoch in (1, 2):
        writer.report({"trial": "t000", "stage": "stage_one", "epoch": epoch, "seconds": 1.0, METRIC: 0.5})
    copy = tmp_path / "copy"
    files = [SWEEP_FILE, "environment.json", TRIALS_FILE, FORMAT_FILE, "state/events/00000000.json"]
    for file in files:
        for damage in (Path.unlink, lambda path: path.write_text("{"), lambda path: path.write_text('{"a": 1}')):
            shutil.copytree(begun.path, copy)
            damage(copy / file)
            assert main(["resume", str(copy)]) == 2, file
            said = capsys.readouterr().err
            assert Path(file).name in said or "record 0 is missing" in said
            assert "Traceback" not in said
            shutil.rmtree(copy)


@pytest.mark.parametrize("link", ["state", "wandb", "best", "sweep.yaml", "state/events", "methods"])
@pytest.mark.parametrize("command", ["resume", "report"])
def test_a_link_out_of_the_run_directory_is_refused_before_anything_is_touched(
    begun: RunDirectory, tmp_path: Path, link: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    outside, path = tmp_path / "outside", Path(begun.path, link)
    if path.exists():
        shutil.move(path, outside)
    else:
        outside.mkdir()
    path.symlink_to(outside)
    before: Any = sorted((file, file.stat().st_mtime_ns) for file in (tmp_path / "outside").rglob("*"))
    assert main([command, begun.location]) == 2
    assert f"{path} is a link that leads out of the run directory" in capsys.readouterr().err
    assert sorted((file, file.stat().st_mtime_ns) for file in (tmp_path / "outside").rglob("*")) == before


def test_a_model_folder_that_changed_since_the_run_began_is_named(begun: RunDirectory) -> None:
    name = yaml.safe_load(begun.read_text(SWEEP_FILE))["model"]["name"]
    weights = Path(name, "model.safetensors")
    before = weights.read_bytes()
    try:
        weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        with pytest.raises(ModelError, match=rf"the weights of {name} are not those that the sweep began with"):
            reopen(begun, Wanted())
    finally:
        weights.write_bytes(before)
    assert reopen(begun, Wanted()).environment.weights.keys() == {name}


def test_a_model_folder_that_is_gone_has_no_digest_and_is_left_to_who_loads_it(tmp_path: Path) -> None:
    assert weights_digest(str(tmp_path / "gone")) is None
    check_weights(str(tmp_path / "gone"), "the digest that it had")
