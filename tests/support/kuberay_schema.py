"""The envelope of RayJob and RayCluster in JSON Schema, as far as we render it: ours, since no package has the CRD.

Written by hand after the Go types of ray.io/v1 in KubeRay 1.5.1 (ray-operator/apis/ray/v1). Pod templates are left to
Kubernetes' own schemas; ``additionalProperties: false`` finds a misspelt field, which the API server would drop.
"""

from typing import Any

KUBERAY = "1.5.1"


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
TEMPLATE = _object(["spec"], spec={"type": "object"})

METADATA = _object(
    ["name", "namespace"],
    # ValidateRayJobMetadata: a DNS-1035 label of at most 47 characters
    name={"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47},
    namespace=TEXT,
)
CLUSTER_SPEC = _object(
    ["rayVersion", "headGroupSpec", "workerGroupSpecs"],
    rayVersion=TEXT,
    authOptions=_object(["mode"], mode={"enum": ["disabled", "token"]}),  # since 1.5.1
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions=_object(
        [], idleTimeoutSeconds=COUNT, upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]}
    ),
    headGroupSpec=_object(["rayStartParams", "template"], rayStartParams=TEXTS, template=TEMPLATE),
    workerGroupSpecs={
        "type": "array",
        "items": _object(
            ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=TEXTS,
            template=TEMPLATE,
        ),
    },
)
JOB_SPEC = _object(
    ["entrypoint", "rayClusterSpec"],
    entrypoint=TEXT,
    runtimeEnvYAML=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    backoffLimit=COUNT,
    activeDeadlineSeconds={"type": "integer", "minimum": 1, "maximum": 2**31 - 1},
    shutdownAfterJobFinishes={"const": True},  # else ttlSecondsAfterFinished is refused
    ttlSecondsAfterFinished=COUNT,
    rayClusterSpec=CLUSTER_SPEC,
)


def _kind(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    known = {"apiVersion": {"const": "ray.io/v1"}, "kind": {"const": kind}, "metadata": METADATA, "spec": spec}
    return _object(list(known), **known)


SCHEMAS = {"RayJob": _kind("RayJob", JOB_SPEC), "RayCluster": _kind("RayCluster", CLUSTER_SPEC)}
