"""What others may have made (run directories, models, settings) does nothing but what it says; keys go nowhere."""

import ast
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from support.event_files import rewrite_events
from tailsweep.orchestrator.cli.main import main
from tailsweep.orchestrator.config.errors import SweepConfigError
from tailsweep.orchestrator.config.sweep import load_sweep
from tailsweep.orchestrator.runs.directory import RunDirectory, RunDirectoryError
from tailsweep.orchestrator.runs.event_log import EventLog, LogEnd
from tailsweep.orchestrator.runs.records import read_records, with_checksum
from tailsweep.trainables.config.data import BackTranslation, DataSource
from tailsweep.trainables.config.trial import HeadConfig, ModelConfig, TrialConfig
from tailsweep.trainables.data.tokenized import fetch_prepared
from tailsweep.trainables.errors import DataError, InputError, ModelError
from tailsweep.trainables.execution.feature_plan import FeaturePlan
from tailsweep.trainables.models.classifier import build_classifier, load_classifier
from tailsweep.trainables.preparation import prepare

pytestmark = pytest.mark.xdist_group("ray_sweeps")

ROOT = Path(__file__).resolve().parents[3]
KEY = "hush-7c1d" * 5

# --- pickles

PICKLES = (
    "tuner.pkl", "trainable.pkl", "params.pkl", "error.pkl", "result.pkl", "searcher-state.pkl", "_dict_checkpoint.pkl",
    "searcher-state-2026-01-01_00-00-00.pkl", "search_gen_state-2026-01-01_00-00-00.json", "preprocessor.pkl",
    "model.pkl",
    "experiment_state-2026-01-01_00-00-00.json", ".tune_metadata", "pytorch_model.bin", "adapter_model.bin", "model.pt",
    "optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state.pth", "parameters.pt", "progress.pkl", "cache.pkl",
)  # fmt: skip


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.trace), "w")


def plant(folder: Path, bomb: Bomb, but_not_in: tuple[str, ...]) -> int:
    """In every folder below, and in place of every pickle that is there."""
    content = pickle.dumps(bomb)
    planted = 0
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        if not place.relative_to(folder).as_posix().startswith(but_not_in):
            for name in PICKLES:
                (place / name).write_bytes(content)
                planted += 1
    for path in folder.rglob("*.pkl"):
        path.write_bytes(content)
    return planted


@pytest.mark.ray
@pytest.mark.slow
def test_planted_pickles_stay_unread_by_every_command(
    finished: Path, rows_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished run, made to have an epoch left, so that `resume` has Tune and Train take up what is there."""
    run, trace = tmp_path / "taken over", tmp_path / "trace"
    shutil.copytree(finished, run)
    _leave_an_epoch_to_do(run)
    monkeypatch.setenv("TAILSWEEP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "tokens" / "0123").mkdir(parents=True)
    # Whatever lies where our own records are is read as JSON, and refused.
    records = ("state/events",)
    assert plant(run, Bomb(trace), but_not_in=records) > 100
    plant(tmp_path / "cache", Bomb(trace), but_not_in=("-",))
    pickle.loads((run / "tuner.pkl").read_bytes()).close()
    assert trace.exists()  # they do go off
    trace.unlink()

    assert main(["report", str(run)]) == 0
    assert main(["cache", "list"]) == 0
    assert main(["predict", str(run / "best"), str(rows_csv), "--output", str(tmp_path / "predicted.csv")]) == 0
    shutil.rmtree(run / "best")
    assert main(["resume", str(run)]) == 0
    assert main(["report", str(run)]) == 0
    assert main(["cache", "remove", "--all"]) == 0
    assert not trace.exists()
    rows = pq.read_table(run / "trials.parquet").to_pylist()
    assert [row["state"] for row in rows] == ["completed", "pruned", "failed"]
    assert rows[0]["stage_two_epochs"] == 2


def _leave_an_epoch_to_do(run: Path) -> None:
    """Of t000: its outcome and last report were never written."""

    def without_the_last_of_t000(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        last = [event for event in events if event["record"]["trial"] == "t000" and event["kind"] == "report"][3:]
        return [
            event
            for event in events
            if event not in last and (event["kind"], event["record"]["trial"]) != ("outcome", "t000")
        ]

    rewrite_events(run, without_the_last_of_t000)


def test_no_module_reads_pickles() -> None:
    """What unpickles, by whatever name; Ray's own messages between its processes are Ray's."""
    loaders = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    calls = {("torch", "load"), ("np", "load"), ("pd", "read_pickle"), ("Tuner", "restore"), ("Result", "from_path")}
    for path in (
        file for package in ("trainables", "orchestrator", "clusters") for file in (ROOT / package).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                if [alias.name for alias in node.names] != ["UnpicklingError"]:
                    names = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
                    assert not loaders & {name.split(".")[-1] for name in names}, path
            elif isinstance(node, ast.Attribute):
                value = node.value
                called = value.id if isinstance(value, ast.Name) else getattr(value, "attr", "")
                assert (called, node.attr) not in calls, f"{path}:{node.lineno}"


def test_weights_that_are_no_safetensors_are_not_unpickled(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    folder, trace = tmp_path / "model", tmp_path / "trace"
    shutil.copytree(tiny_model("bert"), folder)
    (folder / "model.safetensors").unlink()
    for save in (torch.save, lambda value, file: file.write_bytes(pickle.dumps(value, protocol=2))):
        save({"weight": Bomb(trace)}, folder / "pytorch_model.bin")
        for head in ("native", HeadConfig()):
            with pytest.raises(
                ModelError, match=r"cannot load .* its weights are a pickle that holds more than tensors"
            ):
                build_classifier(ModelConfig(name=str(folder), head=head), ("a", "b"), 0)
        with pytest.raises(ModelError, match="cannot be opened: its weights are a pickle that holds more than tensors"):
            load_classifier(folder)
    assert not trace.exists()


# --- code


@pytest.fixture
def with_code(tiny_model: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path]:
    """A model folder that brings code for all it is asked for, and the file that this code makes."""
    folder, trace = tmp_path / "with_code", tmp_path / "trace"
    shutil.copytree(tiny_model("bert", 0.0), folder)
    config = json.loads((folder / "config.json").read_text())
    models = ("AutoModel", "AutoModelForSequenceClassification", "AutoModelForSeq2SeqLM")
    config["auto_map"] = {"AutoConfig": "own.Config"} | dict.fromkeys(models, "own.Model")
    config["model_type"] = "own"
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {"auto_map": {"AutoTokenizer": ["own.Tokenizer", "own.Tokenizer"]}, "tokenizer_class": "Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "own.py").write_text(
        f"open({str(trace)!r}, 'w').close()\n"
        "import transformers\n"
        "class Config(transformers.BertConfig): model_type = 'own'\n"
        "class Model(transformers.BertForSequenceClassification): config_class = Config\n"
        "class Tokenizer(transformers.PreTrainedTokenizerFast): pass\n"
    )
    return folder, trace


@pytest.fixture
def no_questions_asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Left to itself, transformers asks on the terminal whether to run the code, and waits."""
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr("builtins.input", lambda *prompt: asked.append(prompt) or "n")
    yield
    assert not asked


@pytest.mark.usefixtures("no_questions_asked")
def test_code_that_a_model_brings_is_not_run(with_code: tuple[Path, Path], rows_csv: Path, tmp_path: Path) -> None:
    folder, trace = with_code
    trial_config = TrialConfig.model_validate(
        {"data": {"train": str(rows_csv)}, "stage_one": {}, "stage_two": {}, "model": {"name": str(folder)}}
    )
    for head in ("native", HeadConfig()):
        with pytest.raises(ModelError, match=r"(?s)code of its own.*trust_remote_code: true"):
            build_classifier(ModelConfig(name=str(folder), head=head), ("a", "b"), 0)
    for load in (
        lambda: prepare(trial_config.data, str(folder), tmp_path / "cache"),
        lambda: load_classifier(folder),
        lambda: _translate(folder, tmp_path),
    ):
        with pytest.raises(InputError):
            load()
    assert not trace.exists()


@pytest.mark.usefixtures("no_questions_asked")
def test_code_is_run_of_a_model_that_is_trusted_by_name(
    with_code: tuple[Path, Path], rows_csv: Path, tmp_path: Path
) -> None:
    folder, trace = with_code
    model = build_classifier(ModelConfig(name=str(folder), trust_remote_code=True), ("a", "b"), 0)
    assert (type(model).__name__, trace.exists()) == ("Model", True)


def _translate(folder: Path, tmp_path: Path) -> None:
    from tailsweep.trainables.augmentation.back_translation import back_translations

    config = BackTranslation.model_validate(
        {"kind": "back_translation", "pivots": [{"to": str(folder), "back": str(folder)}]}
    )
    with back_translations(config, tmp_path) as copies:
        copies([("A text.", 0)])


# --- ways out of a run directory

OUTSIDE = ["../../outside", "/etc", "..", ".", "t000/../..", "t000\n", "T000", ""]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(str(tmp_path / "run"))
    run.create()
    return run


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("where", ["trial", "parent", "outcome", "history", "stage"])
def test_records_that_name_a_path_are_refused(name: str, where: str, run: RunDirectory) -> None:
    trial = {"name": "t000", "values": {}, "config": {}, "parent": None}
    row = {"trial": "t000", "stage": "stage_one", "epoch": 1}
    outcome = {"trial": "t000", "state": "pruned", "reason": "", "seconds": 1.0, "num_reports": 1}
    trial |= {"name": name} if where == "trial" else {"parent": name} if where == "parent" else {}
    row |= {"trial": name} if where == "history" else {"stage": name} if where == "stage" else {}
    outcome |= {"trial": name} if where == "outcome" else {}
    run.write_text("state/trials.json", json.dumps(with_checksum({"trials": [trial]})))
    log = EventLog(run, LogEnd())
    log.append("report", row)
    log.append("outcome", outcome)
    with pytest.raises(RunDirectoryError, match="the records"):
        read_records(run)


def test_a_link_that_leads_out_of_a_run_directory_is_refused(run: RunDirectory, tmp_path: Path) -> None:
    assert run.local is not None
    (tmp_path / "outside").mkdir()
    (run.local / "state/checkpoints").mkdir()
    inside = run.local / "state/checkpoints/t000"
    inside.symlink_to(run.local / "state")
    run.reject_unsafe_files()
    inside.unlink()
    inside.symlink_to(tmp_path / "outside")
    with pytest.raises(RunDirectoryError, match="is a link that leads out"):
        run.reject_unsafe_files()


@pytest.mark.parametrize("sweep", [".", "methods/vanilla/search"])  # a run's own, a comparison's
def test_the_links_that_wandb_makes_itself_are_no_reason_to_refuse(
    run: RunDirectory, tmp_path: Path, sweep: str
) -> None:
    """A process that is killed leaves them: to the log of W&B's own process, in the user's cache."""
    assert run.local is not None
    logs = run.local / sweep / "wandb/offline-run-20260131_120000-demo-t000/logs"
    logs.mkdir(parents=True)
    (logs / "debug-core.log").symlink_to(tmp_path / "core-debug.log")
    run.reject_unsafe_files()
    (logs.parent / "files").symlink_to(tmp_path)
    with pytest.raises(RunDirectoryError, match="files is a link that leads out"):
        run.reject_unsafe_files()


@pytest.mark.parametrize("key", ["../../outside", "/tmp/outside", "0" * 63, "0" * 63 + "/", "A" * 64])
def test_a_key_that_is_a_path_names_nothing_in_the_cache(key: str, tmp_path: Path) -> None:
    (tmp_path / "published").mkdir()
    with pytest.raises(DataError, match="is no key of rows or features"):
        fetch_prepared(DataSource(key=key, published=str(tmp_path / "published"), digest=""), tmp_path / "cache")
    with pytest.raises(DataError, match="is no key of rows or features"):
        FeaturePlan.load({"key": key, "split_point": {}, "counts": [1, 1]})
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["../../x", "/x", "..", ".x", "a/b", "a\\b", "a\n", ""])
def test_a_name_that_is_a_path_is_no_name_of_a_run(name: str, tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(json.dumps({"name": name, "data": {"train": "x.csv"}}))
    with pytest.raises(SweepConfigError, match="it names a folder"):
        load_sweep(path)


# --- keys


@pytest.mark.ray
def test_no_key_is_in_anything_that_a_run_wrote(
    finished: Path, ray_temp: str, keys_in_the_environment: list[str], small_sweep: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Not in the run directory, W&B's files, the cache, nor in the logs of the Ray that had them in its environment."""
    arguments = ["run", str(small_sweep()), "--storage", str(finished.parent), "--set", f"wandb.api_key={KEY}"]
    assert main([*arguments, "--set", "name=refused"]) == 2
    assert not (finished.parent / "refused").exists()
    said = capsys.readouterr()
    assert KEY not in said.out + said.err
    places = (finished.parent, Path(ray_temp), Path(os.environ["TAILSWEEP_CACHE"]))
    written = [path for place in places for path in place.rglob("*") if path.is_file() and not path.is_symlink()]
    assert {"environment.json", "sweep.yaml", "raylet.out"} <= {path.name for path in written}
    assert any(path.suffix == ".wandb" for path in written)
    for path in written:
        content = path.read_bytes()
        assert not [key for key in (*keys_in_the_environment, KEY) if key.encode() in content], path


@pytest.mark.parametrize(
    ("file", "overrides"),
    [
        ("wandb: {api_key: VALUE}", []),
        ("wandb: {WANDB_API_KEY: VALUE}", []),
        ("data: {hf_token: VALUE, train: x}", []),
        ("methods: {vanilla: {wandb: {api-key: VALUE}}}", []),
        ("stage_one: [{password: VALUE}]", []),
        ("storage: s3://user:VALUE@bucket/runs", []),
        ("storage: 'abfs://runs?client_secret=VALUE'", []),
        ("", ["wandb.api_key=VALUE"]),
        ("", ["wandb={api_key: VALUE}"]),
        ("", ['wandb={"api_key":"VALUE"}']),
        ("", ["wandb.api_key:VALUE"]),
        ("", ["api_key VALUE"]),
        ("", ["hub_token=VALUE"]),
        ("", ["storage=s3://VALUE:VALUE@bucket"]),
    ],
)
def test_a_key_among_settings_is_refused_and_not_repeated(
    file: str, overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sweep.yaml"
    sets = [part for override in overrides for part in ("--set", override.replace("VALUE", KEY))]
    for command, methods in (("run", ""), ("compare", "" if file.startswith("methods") else "methods: [vanilla]")):
        data = "" if file.startswith("data") else "data: {train: x.csv}"
        path.write_text("\n".join([data, methods, file.replace("VALUE", KEY)]))
        assert main([command, str(path), *sets]) == 2
        said = capsys.readouterr()
        assert KEY not in said.out + said.err
        assert "export WANDB_API_KEY" in said.err


def test_a_key_in_a_run_directorys_uri_is_refused_and_not_repeated(
    rows_csv: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    location = f"s3://user:{KEY}@bucket/runs/demo"
    for arguments in (
        ["report", location],
        ["resume", location],
        ["predict", location, str(rows_csv)],
        ["doctor", "--storage", location],
    ):
        assert main(arguments) == 2
        said = capsys.readouterr()
        assert KEY not in said.out + said.err
        assert "export" in said.err


@pytest.mark.parametrize(
    "file",
    [
        "methods: {token_dropout: {method: vanilla}}",
        "name: token",
        "storage: s3://bucket/a@b?region=x",
        "storage: gs://anonymous@bucket/a",
    ],
)
def test_what_only_sounds_like_a_key_is_not_refused_as_one(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(f"data: {{train: x.csv}}\n{file}\n")
    for command in ("run", "compare"):
        assert main([command, str(path), "--set", "data.no_such_field=1"]) == 2
        said = capsys.readouterr().err
        assert "no_such_field: unknown" in said or "methods" in said
        assert "keys and passwords" not in said
