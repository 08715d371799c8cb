"""What is rendered for ``ray up``, against Ray's own reading of it; and what that reading does not find."""

import json
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
from ray.autoscaler._private.util import prepare_config, validate_config  # private: a new Ray may move them
from support.cluster_definitions import GPU, SHIPPED, SPOT, definition
from tailsweep.clusters.capacity import grown_nodes
from tailsweep.clusters.render import ray_up, secret_exports
from tailsweep.orchestrator.jobs.definition_file import load_definition

TYPES = {"head": "m6i.xlarge", "gpu": "g5.xlarge"}
AWS = {"region": "us-west-2", "ami": "ami-0123456789abcdef0", "instance_types": TYPES}


def shipped(provider: ray_up.Provider) -> dict[str, Any]:
    return ray_up.ray_up_config(load_definition(SHIPPED / f"{provider}.yaml"), provider)


@pytest.mark.parametrize("provider", ray_up.PROVIDERS)
def test_ray_takes_the_file(provider: ray_up.Provider):
    prepared = prepare_config(shipped(provider))
    validate_config(prepared)
    kinds = prepared["available_node_types"]
    assert {name: (kind["min_workers"], kind["max_workers"]) for name, kind in kinds.items()} == {
        "head": (0, 0),
        "gpu": (0, 4),
        "spot": (0, 8),
    }
    assert prepared["head_node_type"] == "head"


def test_rays_check_finds_a_misspelt_field_at_the_top_and_none_inside_a_machine():
    misspelt = shipped("aws") | {"max_wokers": 3}
    with pytest.raises(jsonschema.ValidationError, match="max_wokers"):
        validate_config(prepare_config(misspelt))
    unseen = shipped("aws")
    unseen["available_node_types"]["gpu"]["node_config"]["InstanceTyp"] = "no-such-machine"
    validate_config(prepare_config(unseen))  # CLUSTERS.md says so


def test_azures_parameters_are_those_of_rays_template():
    template = Path(ray.__file__).parent / "autoscaler/_private/_azure/azure-vm-template.json"
    known = set(json.loads(template.read_text())["parameters"])
    for kind in shipped("azure")["available_node_types"].values():
        given = set(kind["node_config"]["azure_arm_parameters"])
        assert given - known == set()


@pytest.mark.parametrize("provider", ray_up.PROVIDERS)
def test_drivers_go_to_the_head_and_to_machines_that_are_not_spot(provider: ray_up.Provider):
    kinds = shipped(provider)["available_node_types"]
    assert {name for name, kind in kinds.items() if "tailsweep_driver" in kind["resources"]} == {"head", "gpu"}
    assert kinds["head"]["resources"]["CPU"] == 0


def test_spot_is_asked_for_in_each_clouds_words():
    spot, plain = (shipped("aws")["available_node_types"][name]["node_config"] for name in ("spot", "gpu"))
    assert spot["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in plain
    gcp = shipped("gcp")["available_node_types"]
    assert {"preemptible": True} in gcp["spot"]["node_config"]["scheduling"]
    assert gcp["gpu"]["node_config"]["scheduling"] == [{"onHostMaintenance": "TERMINATE"}]
    assert gcp["gpu"]["node_config"]["guestAccelerators"] == [
        {"acceleratorType": "nvidia-tesla-t4", "acceleratorCount": 1}
    ]
    assert "scheduling" not in gcp["head"]["node_config"]
    azure = shipped("azure")["available_node_types"]
    assert azure["spot"]["node_config"]["azure_arm_parameters"]["priority"] == "Spot"
    assert "priority" not in azure["gpu"]["node_config"]["azure_arm_parameters"]


def test_ray_demands_the_token_that_lies_here():
    config = shipped("aws")
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert "export RAY_AUTH_MODE=token" in commands[-1]


def start(config: dict[str, Any], home: Path, role: str = "head") -> subprocess.CompletedProcess[str]:
    """The command that starts Ray on a machine, with a ``ray`` that prints its environment and arguments."""
    tools = home / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "ray").write_text('#!/bin/bash\nprintf "%s\\n" "$@"\nenv\n')
    (tools / "ray").chmod(0o755)
    environment = {"HOME": str(home), "PATH": f"{tools}:/usr/bin:/bin", "RAY_HEAD_IP": "192.0.2.1"}
    command = config[f"{role}_start_ray_commands"][-1]
    # As Ray's command runner does it.
    return subprocess.run(["bash", "-c", f"true && ({command})"], env=environment, text=True, capture_output=True)


def test_the_head_is_reported_how_far_the_cluster_grows(tmp_path: Path):
    printed = start(shipped("aws"), tmp_path)
    assert printed.returncode == 0, printed.stderr
    environment = dict(line.split("=", 1) for line in printed.stdout.splitlines() if "=" in line)
    assert grown_nodes(environment) == [{"CPU": 4, "GPU": 1}] * 12
    assert "--head" in printed.stdout.splitlines()
    assert "--address=192.0.2.1:6379" in start(shipped("aws"), tmp_path, "worker").stdout.splitlines()


def test_values_of_secrets_come_from_a_file_that_no_one_else_reads(tmp_path: Path):
    described = definition(
        image="i", secrets={"WANDB_API_KEY": None}, secrets_file="~/secrets.env", aws=AWS
    )  # fmt: skip
    config = ray_up.ray_up_config(described, "aws")
    validate_config(prepare_config(config))
    there = config["file_mounts"].items() - {("~/.ray/auth_token", "~/.ray/auth_token")}
    assert there == {("~/.tailsweep-secrets", "~/secrets.env")}
    file = tmp_path / ".tailsweep-secrets"
    file.write_text("OTHER=no\nWANDB_API_KEY=a b$c'd\n")
    file.chmod(0o600)
    printed = start(config, tmp_path)
    assert "WANDB_API_KEY=a b$c'd" in printed.stdout.splitlines()
    assert "OTHER=no" not in printed.stdout
    file.chmod(0o640)
    refused = start(config, tmp_path)
    assert refused.returncode == 2
    assert "must be a file of mode 600" in refused.stderr
    assert "--head" not in refused.stdout
    file.write_text("OTHER=no\n")
    file.chmod(0o600)
    assert "WANDB_API_KEY has no value: add a line" in start(config, tmp_path).stderr


def test_a_secrets_file_is_checked_where_it_is_sent_from(tmp_path: Path):
    file = tmp_path / "secrets.env"
    assert secret_exports.issues(str(file), ["A"]) == [
        f"secrets_file: {file} cannot be read here: No such file or directory"
    ]
    file.write_text("A=1\nB=\n")
    file.chmod(0o644)
    assert secret_exports.issues(str(file), ["A"]) == [
        f"secrets_file: {file} has the mode 644, but must have 600: chmod 600 {file}"
    ]
    file.chmod(0o600)
    assert secret_exports.issues(str(file), ["A"]) == []
    assert secret_exports.issues(str(file), ["A", "B"]) == [f"secrets.B: {file} has no line B=VALUE"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"aws": None}, "aws: missing"),
        ({"groups": [GPU, SPOT]}, "aws.instance_types.spot: missing"),
        ({"aws": AWS | {"instance_types": TYPES | {"cpu": "m6i.large"}}}, "aws.instance_types.cpu: there is no such"),
        ({"image": None}, "image: missing, but the machines need tailsweep"),
        ({"storage": {"path": "/shared/runs"}}, "storage.path: nothing mounts /shared/runs"),
        ({"secrets": {"HF_TOKEN": None}}, "secrets_file: missing"),
    ],
)
def test_what_a_cloud_cannot_do_is_reported(changes: dict[str, Any], expected: str):
    described = definition(**{"image": "registry.example/tailsweep:0.1", "aws": AWS, **changes})
    (issue,) = ray_up.issues(described, "aws")
    assert issue.startswith(expected)


def test_gcp_must_know_which_gpus():
    gcp = {"project_id": "p", "region": "r", "availability_zone": "z", "source_image": "s", "instance_types": TYPES}
    (issue,) = ray_up.issues(definition(image="i", gcp=gcp), "gcp")
    assert issue.startswith("groups.0.accelerator: missing, but GCP attaches GPUs by name")


@pytest.mark.parametrize("provider", ray_up.PROVIDERS)
def test_the_shipped_definitions_can_be_done(provider: ray_up.Provider):
    assert ray_up.issues(load_definition(SHIPPED / f"{provider}.yaml"), provider) == []


def test_setup_is_of_the_machine_where_there_is_a_container_and_of_ray_where_there_is_none():
    mounted = {"path": "/mnt/runs"}
    within = ray_up.ray_up_config(definition(image="i", aws=AWS | {"setup": ["mount x"]}, storage=mounted), "aws")
    assert (within["initialization_commands"], within["setup_commands"]) == (["mount x"], [])
    assert "-v /mnt/runs:/mnt/runs" in within["docker"]["run_options"]
    bare = ray_up.ray_up_config(definition(aws=AWS | {"setup": ["mount x"]}, environment={"uv": ["a>1"]}), "aws")
    assert bare["setup_commands"] == ["mount x", "uv pip install 'a>1'"]
    assert "docker" not in bare
    assert "initialization_commands" not in bare
