"""The fields of a cluster's definition: one small schema for every kind of cluster that this project can describe.

Nodes, storage, names of secrets and a time limit are the same for every kind; settings of one kind are in a section of
their own. A definition contains nothing about sweeps. The rules here concern one field or section; the modules in
``render/`` report what a kind does not support.
"""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

# A Ray node's custom resource: if any node of a cluster has it, the drivers of trials run on such nodes only. The
# rendered clusters give ``Node.driver_slots`` of it to the head and to every group that is not spot.
DRIVER_RESOURCE = "tailsweep_driver"


def _matching(pattern: str, rule: str) -> AfterValidator:
    """Return a validator of text of this form; ``rule`` completes "is ..., but must be "."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f'is "{text[:80]}", but must be {rule}')
        return text

    return AfterValidator(check)


_LABEL = r"[a-z]([a-z0-9-]*[a-z0-9])?"
_LABEL_RULE = "lower-case letters, digits and hyphens, the first a letter and the last no hyphen"
# KubeRay derives the names of services and pods from that of a RayJob, and refuses more than 47 characters.
ClusterName = Annotated[str, _matching(rf"(?=.{{1,40}}\Z){_LABEL}", f"at most 40 {_LABEL_RULE}")]
GroupName = Annotated[str, _matching(rf"(?!head\Z)(?=.{{1,20}}\Z){_LABEL}", f"at most 20 {_LABEL_RULE}, not head")]
ObjectName = Annotated[  # of a Kubernetes object
    str,
    _matching(
        r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9.-]*[a-z0-9])?", "a name of lower-case letters, digits, dots and hyphens"
    ),
]
VariableName = Annotated[str, _matching(r"[A-Za-z_][A-Za-z0-9_]*", "the name of an environment variable")]
OneLine = Annotated[str, _matching(r"[^\x00-\x1f\x7f]+", "one line of text, not empty")]
Word = Annotated[str, _matching(r"[^\s\x00-\x1f\x7f]+", "one word, without blanks")]
AbsolutePath = Annotated[str, _matching(r"/[^\x00-\x1f\x7f]*", "a path from the root, /...")]


class Section(BaseModel):
    """A part of a definition: immutable, unknown keys forbidden."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class NodeRange(Section):
    """A range for the number of nodes, which follows the work."""

    min: int = Field(ge=0)
    max: PositiveInt

    @model_validator(mode="after")
    def _in_order(self) -> "NodeRange":
        if self.min > self.max:
            raise ValueError(f"min is {self.min}, but must be at most max ({self.max})")
        return self


class Node(Section):
    """The resources of one machine; for Kubernetes, those that its pod requests."""

    cpus: PositiveInt
    memory_gb: PositiveFloat  # GiB

    @property
    def driver_slots(self) -> int:
        """Return how many drivers of trials fit in memory, next to 4 GiB for Ray and the sweep's own process.

        A driver and the controller of its Train run take 0.7 GiB (Ray 2.60); this counts 1 GiB.
        """
        return max(1, int(self.memory_gb) - 4)


class Head(Node):
    """The machine with the sweep's own process, Ray's head and drivers; it trains nothing and is never spot."""

    cpus: PositiveInt = 4
    memory_gb: PositiveFloat = 16.0


class Group(Node):
    """A group of machines of one kind that train."""

    name: GroupName
    nodes: PositiveInt | NodeRange
    gpus: int = Field(0, ge=0)  # of one node
    accelerator: Word | None = None  # the GPU's name in this kind of cluster; null: any
    spot: bool = False  # may be taken away at short notice, at a lower price

    @property
    def min_nodes(self) -> int:
        """Return the smallest number of nodes."""
        return self.nodes if isinstance(self.nodes, int) else self.nodes.min

    @property
    def max_nodes(self) -> int:
        """Return the largest number of nodes."""
        return self.nodes if isinstance(self.nodes, int) else self.nodes.max


class Storage(Section):
    """The place of the run directories: an object store, or a folder that every node has at the same path."""

    uri: Annotated[str, _matching(r"[a-z][a-z0-9+.-]*://[^\s\x00-\x1f]+", "a URI such as s3://BUCKET/runs")] | None = (
        None
    )
    path: AbsolutePath | None = None
    claim: ObjectName | None = None  # Kubernetes: the PersistentVolumeClaim (ReadWriteMany) that is mounted at `path`

    @model_validator(mode="after")
    def _one_place(self) -> "Storage":
        if (self.uri is None) == (self.path is None):
            raise ValueError("must be either {uri: s3://...} or {path: /...}")
        if self.claim is not None and self.path is None:
            raise ValueError("claim is a volume that is mounted at a path, but here is a uri: leave one out")
        return self

    @property
    def location(self) -> str:
        """Return the location as ``--storage`` accepts it."""
        location = self.uri or self.path
        assert location is not None
        return location


class SecretKey(Section):
    """A key of a Kubernetes Secret, as a ``secretKeyRef`` names it."""

    name: ObjectName
    key: Annotated[str, _matching(r"[-._a-zA-Z0-9]{1,253}", "letters, digits, dots, underscores and hyphens")]


class Environment(Section):
    """Packages that Ray installs for the job on every node, in addition to those of the node."""

    pip: Annotated[list[OneLine], Field(min_length=1)] | None = None  # requirements
    uv: Annotated[list[OneLine], Field(min_length=1)] | None = None  # requirements

    @model_validator(mode="after")
    def _by_one_tool(self) -> "Environment":
        if (self.pip is None) == (self.uv is None):
            raise ValueError("must be either {pip: [...]} or {uv: [...]}")
        return self


def _as_pairs(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]*=[A-Za-z0-9._-]*", text):
        raise ValueError(f'is "{text[:80]}", but must be KEY=VALUE, as in kubectl get --selector')
    return text


def _as_taint(text: str) -> str:
    if not re.fullmatch(
        r"[A-Za-z0-9][A-Za-z0-9._/-]*(=[A-Za-z0-9._-]*)?:(NoSchedule|PreferNoSchedule|NoExecute)", text
    ):
        raise ValueError(f'is "{text[:80]}", but must be KEY=VALUE:EFFECT or KEY:EFFECT, as in kubectl taint')
    return text


class Placed(Section):
    """The nodes of a Kubernetes cluster that pods may run on."""

    node_selector: list[Annotated[str, AfterValidator(_as_pairs)]] = Field(default_factory=list)  # KEY=VALUE
    tolerations: list[Annotated[str, AfterValidator(_as_taint)]] = Field(default_factory=list)  # KEY=VALUE:EFFECT


class Kubernetes(Section):
    """The settings for KubeRay: ``rayjob`` and ``raycluster``."""

    namespace: ObjectName = "default"
    service_account: ObjectName | None = None  # of all pods; for an object store without keys
    image_pull_secret: ObjectName | None = None
    # The label of nodes whose value is a group's accelerator; as NVIDIA's GPU feature discovery sets it. On GKE:
    # cloud.google.com/gke-accelerator
    accelerator_label: Annotated[str, _matching(r"[A-Za-z0-9][A-Za-z0-9._/-]*", "a label's name")] = (
        "nvidia.com/gpu.product"
    )
    gpu: Placed = Placed()  # of groups with GPUs
    spot: Placed | None = None  # of spot groups; GKE: {node_selector: [cloud.google.com/gke-spot=true]}
    ttl_seconds: int = Field(600, ge=0)  # rayjob: the cluster is gone so long after the sweep has ended
    idle_seconds: PositiveInt = 300  # after which a node that the autoscaler added is given back


class Slurm(Section):
    """The settings for Slurm."""

    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    options: list[Annotated[str, _matching(r"--[a-z][^\s\x00-\x1f]*", "an option of sbatch, --NAME=VALUE")]] = Field(
        default_factory=list
    )  # more options of sbatch
    setup: list[OneLine] = Field(default_factory=list)  # shell commands of every node before Ray: modules, environments
    notice_minutes: PositiveInt = 5  # so long before the time limit the sweep is stopped and the job queued again


class _Cloud(Section):
    # Of the head and of every group, by name.
    instance_types: dict[str, Word]
    disk_gb: PositiveInt = 200  # of each node
    setup: list[OneLine] = Field(default_factory=list)  # shell commands of every machine before Ray, and its container
    idle_minutes: PositiveInt = 5  # after which a node that the autoscaler added is given back


class Aws(_Cloud):
    """The settings for AWS."""

    region: Word
    availability_zone: Word | None = None  # one or more, between commas; null: any of the region
    ami: Annotated[str, _matching(r"ami-[0-9a-f]+", "an AMI, ami-...")]  # Ubuntu, with docker where an image is named
    instance_profile: Word | None = None  # its ARN: may read and write the bucket and start machines


class Gcp(_Cloud):
    """The settings for Google Cloud."""

    project_id: Word
    region: Word
    availability_zone: Word
    source_image: Word  # projects/PROJECT/global/images/..., with docker where an image is named
    service_account: Word | None = None  # e-mail; for Cloud Storage without keys


class Azure(_Cloud):
    """The settings for Azure."""

    location: Word
    resource_group: Word
    subscription_id: Word | None = None  # null: that of `az login`
    # Ubuntu, with docker where an image is named
    vm_image: Annotated[str, _matching(r"[^\s:]+(:[^\s:]+){3}", "PUBLISHER:OFFER:SKU:VERSION")]


class Definition(Section):
    """A cluster, as its file describes it."""

    name: ClusterName  # of the cluster, of its jobs
    address: Annotated[str, _matching(r"https?://[^\s/]+/?", "http://HOST:PORT")] | None = None  # of Ray's dashboard
    image: Word | None = None  # container image with Ray and this project; null: what the nodes have
    environment: Environment | None = None
    head: Head = Head()  # of kinds whose head is a machine of its own
    groups: Annotated[list[Group], Field(min_length=1)]
    storage: Storage
    # Environment variables whose values are secret: their names, and where Kubernetes keeps them. Never a value.
    secrets: dict[VariableName, SecretKey | None] = Field(default_factory=dict)
    # Their values on Slurm and in clouds: a file of lines NAME=VALUE that no one else may read (mode 0600); on Slurm in
    # a folder that all nodes share. null: on Slurm the environment that sbatch exports.
    secrets_file: OneLine | None = None
    time_limit_hours: PositiveFloat | None = None  # of a job; null: not ours
    # Sections that only their own kind reads:
    kubernetes: Kubernetes = Kubernetes()
    slurm: Slurm = Slurm()
    aws: Aws | None = None
    gcp: Gcp | None = None
    azure: Azure | None = None

    @model_validator(mode="after")
    def _group_names_differ(self) -> "Definition":
        names = [group.name for group in self.groups]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"groups: two of them have the name {', '.join(twice)}: give each a name of its own")
        return self
