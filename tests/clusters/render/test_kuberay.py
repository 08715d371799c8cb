"""What is rendered for KubeRay: valid objects, drivers on safe nodes, secrets by reference, ends of their own."""

import copy
import json
import shlex
from collections.abc import Iterator
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from support.cluster_definitions import GPU, SHIPPED, SPOT, definition
from support.kuberay_schema import SCHEMAS
from tailsweep.clusters.capacity import grown_nodes
from tailsweep.clusters.definition import Definition
from tailsweep.clusters.render import kuberay
from tailsweep.orchestrator.cli.main import build_parser
from tailsweep.orchestrator.jobs.definition_file import load_definition

KUBERNETES = "1.33"
SWEEP = "data: {train: /shared/rows.csv}\n"
ARGUMENTS = ["--storage", "s3://bucket/runs", "--set", "name=demo", "--set", "data.text=the text"]


def rich() -> Definition:
    """Everything that a definition can say to Kubernetes."""
    return definition(
        image="registry.example/tailsweep:0.1",
        environment={"pip": ["nltk>=3.9"]},
        groups=[GPU | {"accelerator": "NVIDIA-A10G"}, SPOT],
        storage={"path": "/shared/runs", "claim": "runs"},
        secrets={"WANDB_API_KEY": {"name": "wandb", "key": "api-key"}, "HF_TOKEN": {"name": "hub", "key": "token"}},
        time_limit_hours=1.5,
        kubernetes={
            "namespace": "sweeps",
            "service_account": "ray",
            "image_pull_secret": "registry",
            "gpu": {"tolerations": ["nvidia.com/gpu:NoSchedule"]},
            "spot": {"node_selector": ["gke-spot=true"], "tolerations": ["gke-spot=true:NoSchedule"]},
        },
    )


def plain() -> Definition:
    return definition(image="registry.example/tailsweep:0.1")


@pytest.fixture(params=["rich", "plain", "shipped"])
def described(request: pytest.FixtureRequest) -> Definition:
    return {"rich": rich, "plain": plain, "shipped": lambda: load_definition(SHIPPED / "kubernetes.yaml")}[
        request.param
    ]()


def job(described: Definition) -> dict[str, Any]:
    return kuberay.ray_job(described, SWEEP, ARGUMENTS, "2.60.0")[1]


def cluster(described: Definition) -> dict[str, Any]:
    return kuberay.ray_cluster(described, "2.60.0")[0]


def pods(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        yield group["template"]


def test_the_envelope_is_that_of_kuberay(described: Definition):
    for rendered in (job(described), cluster(described)):
        jsonschema.validate(rendered, SCHEMAS[rendered["kind"]])


@pytest.mark.parametrize(
    "path",
    [("spec",), ("spec", "rayClusterSpec"), ("spec", "rayClusterSpec", "workerGroupSpecs", 0), ("metadata",)],
    ids=lambda path: str(path[-1]),
)
def test_our_schema_finds_a_misspelt_field(path: tuple[Any, ...]):
    rendered = copy.deepcopy(job(rich()))
    place = rendered
    for step in path:
        place = place[step]
    place["replicsa"] = 1
    with pytest.raises(jsonschema.ValidationError, match="replicsa"):
        jsonschema.validate(rendered, SCHEMAS["RayJob"])


def test_pods_and_the_config_map_are_kubernetes_own(described: Definition):
    config_map, rendered = kuberay.ray_job(described, SWEEP, ARGUMENTS, "2.60.0")
    kubernetes_validate.validate(config_map, KUBERNETES, strict=True)
    templates = [*pods(rendered["spec"]["rayClusterSpec"]), *pods(cluster(described)["spec"])]
    assert len(templates) == 2 * (1 + len(described.groups))
    for template in templates:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": template["spec"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_kubernetes_schema_finds_a_misspelt_field_of_a_pod():
    (head, *_) = pods(cluster(rich())["spec"])
    head["spec"]["containers"][0]["env"][0]["valueFrom"]["secretKeyReff"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="secretKeyReff"):
        kubernetes_validate.validate(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": head["spec"]},
            KUBERNETES,
            strict=True,
        )


def test_rays_own_autoscaler_reads_groups_bounds_and_resources():
    """By the function with which Ray's autoscaler on Kubernetes reads a RayCluster (2.60; private)."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler._private.util import validate_config

    config = _derive_autoscaling_config_from_ray_cr(cluster(rich()))
    validate_config(config)
    kinds = config["available_node_types"]
    resources = {name: {k: v for k, v in kind["resources"].items() if k != "memory"} for name, kind in kinds.items()}
    assert resources == {
        "headgroup": {"CPU": 0, "tailsweep_driver": 12},
        "gpu": {"CPU": 8, "GPU": 1, "tailsweep_driver": 28},
        "spot": {"CPU": 8, "GPU": 1},
    }
    assert {name: (kind["min_workers"], kind["max_workers"]) for name, kind in kinds.items()} == {
        "headgroup": (0, 0),
        "gpu": (1, 1),
        "spot": (0, 8),
    }
    assert config["idle_timeout_minutes"] == 5


def test_a_cluster_of_fixed_size_has_no_autoscaler_and_says_nothing_of_growth():
    spec = cluster(plain())["spec"]
    assert "enableInTreeAutoscaling" not in spec
    assert "env" not in next(pods(spec))["spec"]["containers"][0]


def test_a_cluster_that_grows_tells_the_sweep_how_far():
    (head, *workers) = pods(cluster(rich())["spec"])
    environment = {item["name"]: item.get("value", "") for item in head["spec"]["containers"][0]["env"]}
    assert grown_nodes(environment) == [{"CPU": 8, "GPU": 1}] * 9
    assert "TAILSWEEP_GROWS_TO" not in json.dumps(workers)


def test_secrets_come_by_reference_into_every_pod():
    for pod in pods(cluster(rich())["spec"]):
        references = {
            item["name"]: item["valueFrom"]["secretKeyRef"]
            for item in pod["spec"]["containers"][0]["env"]
            if "valueFrom" in item
        }
        assert references == {
            "WANDB_API_KEY": {"name": "wandb", "key": "api-key"},
            "HF_TOKEN": {"name": "hub", "key": "token"},
        }


def test_only_spot_groups_go_to_spot_nodes():
    head, gpu, spot = (pod["spec"] for pod in pods(cluster(rich())["spec"]))
    assert "nodeSelector" not in head
    assert "tolerations" not in head
    gpu_toleration = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    assert gpu["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-A10G"}
    assert gpu["tolerations"] == [gpu_toleration]
    assert spot["nodeSelector"] == {"gke-spot": "true"}
    assert spot["tolerations"] == [
        gpu_toleration, {"key": "gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
    ]  # fmt: skip


def test_every_pod_mounts_the_storage_and_the_head_alone_the_sweep():
    for place, pod in enumerate(pods(job(rich())["spec"]["rayClusterSpec"])):
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]}
        assert mounts == {"runs": "/shared/runs"} | ({"sweep": "/etc/tailsweep"} if place == 0 else {})
        assert {volume["name"] for volume in pod["spec"]["volumes"]} == set(mounts)


def test_the_entrypoint_is_a_command_of_ours_on_the_sweep_of_the_config_map():
    config_map, rendered = kuberay.ray_job(rich(), SWEEP, ARGUMENTS, "2.60.0")
    python, *words = shlex.split(rendered["spec"]["entrypoint"])
    assert [python, *words[:2]] == ["python", "-m", "tailsweep"]
    parsed = build_parser().parse_args(words[2:])
    assert (parsed.command, parsed.resume, parsed.storage) == ("run", True, "s3://bucket/runs")
    assert parsed.overrides == ["name=demo", "data.text=the text"]
    assert parsed.file.parent.as_posix() == "/etc/tailsweep"
    assert config_map["data"] == {parsed.file.name: SWEEP}


def test_a_job_ends_itself_and_its_cluster():
    spec = job(rich())["spec"]
    assert spec["activeDeadlineSeconds"] == 5400
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] == 600
    assert "activeDeadlineSeconds" not in job(plain())["spec"]


def test_packages_travel_in_the_runtime_environment():
    assert yaml.safe_load(job(rich())["spec"]["runtimeEnvYAML"]) == {"pip": ["nltk>=3.9"]}
    assert "runtimeEnvYAML" not in job(plain())["spec"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"image": None}, "image: missing"),
        ({"image": "rayproject/ray:2.60.0-py311-gpu"}, "image: rayproject/ray:2.60.0-py311-gpu is Ray's own and lacks"),
        ({"image": "docker.io/rayproject/ray:2.60.0"}, "image: docker.io/rayproject/ray:2.60.0 is Ray's own"),
        ({"storage": {"path": "/shared/runs"}}, "storage.claim: missing"),
        ({"secrets": {"HF_TOKEN": None}}, "secrets.HF_TOKEN: names no Secret"),
        ({"groups": [GPU, SPOT]}, "groups.1.spot: is true, but nothing says which nodes are spot"),
    ],
)
def test_what_kubernetes_cannot_do_is_reported(changes: dict[str, Any], expected: str):
    (issue,) = kuberay.issues(definition(**{"image": "registry.example/tailsweep:0.1", **changes}))
    assert issue.startswith(expected)


def test_what_kubernetes_can_do_is_let_pass(described: Definition):
    assert kuberay.issues(described) == []
    rays_own = definition(image="rayproject/ray:2.60.0", environment={"pip": ["tailsweep==0.1.0"]})
    assert kuberay.issues(rays_own) == []
