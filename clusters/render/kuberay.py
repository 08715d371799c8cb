"""A definition as Kubernetes objects for the KubeRay operator: plain dictionaries, ready to be written as YAML.

The objects follow ``ray.io/v1`` as of KubeRay 1.5.1, the first whose ``authOptions`` create and distribute Ray's token.
A ConfigMap holds the sweep file, so that an image needs only the packages.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

import yaml
from tailsweep.clusters.capacity import GROWTH_VARIABLE, growth
from tailsweep.clusters.definition import DRIVER_RESOURCE, Definition, Group, Node, Placed
from tailsweep.clusters.render.entrypoint import entrypoint

Object = dict[str, Any]

API_VERSION = "ray.io/v1"
SWEEP_FOLDER = "/etc/tailsweep"
SWEEP_KEY = "sweep.yaml"  # of the ConfigMap
VOLUME, SWEEP_VOLUME = "runs", "sweep"
# If the head is lost, the job fails; KubeRay then creates a new cluster, on which the sweep is resumed.
RETRIES = 2


def ray_job(definition: Definition, sweep_text: str, arguments: Sequence[str], ray_version: str) -> list[Object]:
    """Return a RayJob and its sweep file; its cluster is removed some time after the sweep has ended.

    Args:
        definition: Of the cluster.
        sweep_text: The content of the sweep file.
        arguments: Those of ``run`` after the file.
        ray_version: The release of Ray in the image.
    """
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(definition),
        "data": {SWEEP_KEY: sweep_text},
    }
    spec: Object = {
        "entrypoint": entrypoint(f"{SWEEP_FOLDER}/{SWEEP_KEY}", arguments),
        "submissionMode": "K8sJobMode",
        "backoffLimit": RETRIES,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": definition.kubernetes.ttl_seconds,
    }
    if definition.time_limit_hours is not None:
        spec["activeDeadlineSeconds"] = math.ceil(definition.time_limit_hours * 3600)
    if definition.environment is not None:
        packages = definition.environment.model_dump(exclude_none=True)
        spec["runtimeEnvYAML"] = yaml.safe_dump(packages, sort_keys=False)
    spec["rayClusterSpec"] = _cluster_spec(definition, ray_version, with_sweep=True)
    return [config_map, _object("RayJob", definition, spec)]


def ray_cluster(definition: Definition, ray_version: str) -> list[Object]:
    """Return a RayCluster that accepts jobs until it is deleted."""
    return [_object("RayCluster", definition, _cluster_spec(definition, ray_version, with_sweep=False))]


def issues(definition: Definition) -> list[str]:
    """Return what of the definition KubeRay does not support."""
    issues = []
    image = definition.image
    if image is None:
        issues.append("image: missing, but pods need one: an image with Ray and tailsweep")
    elif image.removeprefix("docker.io/").startswith("rayproject/") and definition.environment is None:
        issues.append(
            f"image: {image} is Ray's own and lacks tailsweep: build one from it (RUN pip install tailsweep), or let "
            "environment: {pip: [...]} install it"
        )
    if definition.storage.path is not None and definition.storage.claim is None:
        issues.append(
            f"storage.claim: missing, but {definition.storage.path} must be a mounted volume: give the name of a "
            "PersistentVolumeClaim (ReadWriteMany); or give a uri"
        )
    issues += [
        f"secrets.{variable}: names no Secret, but Kubernetes needs one: {{name: SECRET, key: KEY}}"
        for variable, reference in definition.secrets.items()
        if reference is None
    ]
    if definition.kubernetes.spot is None and any(group.spot for group in definition.groups):
        place = next(place for place, group in enumerate(definition.groups) if group.spot)
        issues.append(
            f"groups.{place}.spot: is true, but nothing says which nodes are spot: set kubernetes: {{spot: "
            "{node_selector: [KEY=VALUE], tolerations: [KEY=VALUE:EFFECT]}}"
        )
    return issues


def notes(definition: Definition) -> list[str]:
    """Return notes on settings that have no effect here."""
    return ["secrets_file has no effect on Kubernetes: values come from Secrets"] if definition.secrets_file else []


def _object(kind: str, definition: Definition, spec: Object) -> Object:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": _metadata(definition), "spec": spec}


def _metadata(definition: Definition) -> Object:
    return {"name": definition.name, "namespace": definition.kubernetes.namespace}


def _cluster_spec(definition: Definition, ray_version: str, *, with_sweep: bool) -> Object:
    spec: Object = {"rayVersion": ray_version, "authOptions": {"mode": "token"}}
    if any(group.min_nodes < group.max_nodes for group in definition.groups):
        spec["enableInTreeAutoscaling"] = True
        spec["autoscalerOptions"] = {
            "idleTimeoutSeconds": definition.kubernetes.idle_seconds,
            "upscalingMode": "Default",
        }
    spec["headGroupSpec"] = {
        # No CPU for tasks: the head runs the sweep's own process and the trials' drivers.
        "rayStartParams": {
            "dashboard-host": "0.0.0.0",
            "num-cpus": "0",
            "resources": _driver_resource(definition.head),
        },
        "template": _head_pod(definition, with_sweep=with_sweep),
    }
    spec["workerGroupSpecs"] = [
        {
            "groupName": group.name,
            "replicas": group.min_nodes,
            "minReplicas": group.min_nodes,
            "maxReplicas": group.max_nodes,
            "rayStartParams": {} if group.spot else {"resources": _driver_resource(group)},
            "template": _worker_pod(definition, group),
        }
        for group in definition.groups
    ]
    return spec


def _driver_resource(node: Node) -> str:
    """Return the resource as KubeRay needs it: the operator puts it into a shell command, the autoscaler parses it."""
    return '"' + json.dumps({DRIVER_RESOURCE: node.driver_slots}).replace('"', '\\"') + '"'


def _head_pod(definition: Definition, *, with_sweep: bool) -> Object:
    pod = _pod("ray-head", definition, definition.head)
    container = pod["spec"]["containers"][0]
    ports = {"gcs-server": 6379, "dashboard": 8265, "client": 10001}
    container["ports"] = [{"name": name, "containerPort": port} for name, port in ports.items()]
    if any(group.min_nodes < group.max_nodes for group in definition.groups):
        container.setdefault("env", []).append({"name": GROWTH_VARIABLE, "value": growth(definition.groups)})
    if with_sweep:
        container.setdefault("volumeMounts", []).append(
            {"name": SWEEP_VOLUME, "mountPath": SWEEP_FOLDER, "readOnly": True}
        )
        pod["spec"].setdefault("volumes", []).append({"name": SWEEP_VOLUME, "configMap": {"name": definition.name}})
    return pod


def _worker_pod(definition: Definition, group: Group) -> Object:
    pod = _pod("ray-worker", definition, group)
    kubernetes = definition.kubernetes
    if group.gpus:
        limits = pod["spec"]["containers"][0]["resources"]
        limits["requests"]["nvidia.com/gpu"] = limits["limits"]["nvidia.com/gpu"] = str(group.gpus)
    placed = [
        *([kubernetes.gpu] if group.gpus else []),
        *([kubernetes.spot] if group.spot and kubernetes.spot is not None else []),
    ]
    selector = _selector(placed)
    if group.accelerator is not None:
        selector[kubernetes.accelerator_label] = group.accelerator
    if selector:
        pod["spec"]["nodeSelector"] = selector
    if tolerations := [_toleration(taint) for place in placed for taint in place.tolerations]:
        pod["spec"]["tolerations"] = tolerations
    return pod


def _pod(container: str, definition: Definition, node: Node) -> Object:
    """Return a pod template, a new one at every call, since the caller completes it."""
    quantities = {"cpu": str(node.cpus), "memory": f"{node.memory_gb:g}Gi"}
    main_container: Object = {
        "name": container,
        "image": definition.image,
        "resources": {"requests": dict(quantities), "limits": dict(quantities)},
    }
    spec: Object = {"containers": [main_container]}
    if definition.secrets:
        main_container["env"] = [
            {"name": variable, "valueFrom": {"secretKeyRef": {"name": reference.name, "key": reference.key}}}
            for variable, reference in definition.secrets.items()
            if reference is not None
        ]
    if definition.storage.claim is not None:
        main_container["volumeMounts"] = [{"name": VOLUME, "mountPath": definition.storage.path}]
        spec["volumes"] = [{"name": VOLUME, "persistentVolumeClaim": {"claimName": definition.storage.claim}}]
    if definition.kubernetes.service_account is not None:
        spec["serviceAccountName"] = definition.kubernetes.service_account
    if definition.kubernetes.image_pull_secret is not None:
        spec["imagePullSecrets"] = [{"name": definition.kubernetes.image_pull_secret}]
    return {"spec": spec}


def _selector(placed: Sequence[Placed]) -> dict[str, str]:
    pairs = [pair.partition("=") for place in placed for pair in place.node_selector]
    return {key: value for key, _, value in pairs}


def _toleration(taint: str) -> Object:
    """Return the toleration of ``KEY=VALUE:EFFECT`` or ``KEY:EFFECT``, as kubectl taint writes a taint."""
    pair, _, effect = taint.rpartition(":")
    key, equals, value = pair.partition("=")
    matching = {"operator": "Equal", "value": value} if equals else {"operator": "Exists"}
    return {"key": key, **matching, "effect": effect}
