"""A definition as a file for ``ray up`` on AWS, GCP or Azure: a head that accepts jobs, and workers that come and go.

The head and every group that is not spot can run drivers of trials; the head trains nothing. The values of secrets are
in a file of mode 0600, which is mounted like the machine's own token; the rendered text contains none.
"""

import shlex
from typing import Any, Literal

from tailsweep.clusters.capacity import GROWTH_VARIABLE, growth
from tailsweep.clusters.definition import DRIVER_RESOURCE, Aws, Azure, Definition, Gcp, Group
from tailsweep.clusters.render.secret_exports import export_from_file

Tree = dict[str, Any]
Provider = Literal["aws", "gcp", "azure"]
PROVIDERS: tuple[Provider, ...] = ("aws", "gcp", "azure")

HEAD = "head"
SECRETS_THERE = "~/.tailsweep-secrets"
TOKEN = "~/.ray/auth_token"
PORT = 6379


def ray_up_config(definition: Definition, provider: Provider) -> Tree:
    """Return the file's content."""
    cloud = _section(definition, provider)
    config: Tree = {
        "cluster_name": definition.name,
        "max_workers": sum(group.max_nodes for group in definition.groups),
        "idle_timeout_minutes": cloud.idle_minutes,
        "provider": _provider(cloud),
        "auth": {"ssh_user": "ubuntu"},
    }
    if definition.image is not None:
        config["docker"] = {
            "image": definition.image,
            "container_name": "tailsweep",
            "pull_before_run": True,
            "run_options": ["--ulimit nofile=65536:65536", *_mounted(definition)],
        }
        config["initialization_commands"] = cloud.setup  # of the machine itself: mounts, drivers
    config["available_node_types"] = {
        HEAD: {
            "min_workers": 0,
            "max_workers": 0,
            "resources": {"CPU": 0, DRIVER_RESOURCE: definition.head.driver_slots},
            "node_config": _node_config(cloud, HEAD, None),
        },
        **{group.name: _node_type(cloud, group) for group in definition.groups},
    }
    config["head_node_type"] = HEAD
    mounts = {TOKEN: TOKEN}
    if definition.secrets and definition.secrets_file is not None:
        mounts[SECRETS_THERE] = definition.secrets_file
    config["file_mounts"] = mounts
    config["setup_commands"] = [*(cloud.setup if definition.image is None else []), *_installation(definition)]
    # The cluster launcher (2.60) gives each node its resources by itself.
    start = f"export RAY_AUTH_MODE=token {GROWTH_VARIABLE}={shlex.quote(growth(definition.groups))}"
    config["head_start_ray_commands"] = [
        "ray stop",
        _start(definition, start, f"--head --port={PORT} --autoscaling-config=~/ray_bootstrap_config.yaml"),
    ]
    config["worker_start_ray_commands"] = [
        "ray stop",
        _start(definition, "export RAY_AUTH_MODE=token", f"--address=$RAY_HEAD_IP:{PORT}"),
    ]
    return config


def issues(definition: Definition, provider: Provider) -> list[str]:
    """Return what of the definition the cloud does not support."""
    cloud = getattr(definition, provider)
    if cloud is None:
        return [f"{provider}: missing, but this section sets the region and the instance types"]
    issues = []
    wanted = [HEAD, *(group.name for group in definition.groups)]
    issues += [
        f"{provider}.instance_types.{name}: missing, but every group and the head must have one"
        for name in wanted
        if name not in cloud.instance_types
    ]
    issues += [
        f"{provider}.instance_types.{name}: there is no such group; groups are {', '.join(wanted)}"
        for name in cloud.instance_types
        if name not in wanted
    ]
    if provider == "gcp":
        issues += [
            f"groups.{place}.accelerator: missing, but GCP attaches GPUs by name, such as nvidia-tesla-t4"
            for place, group in enumerate(definition.groups)
            if group.gpus and group.accelerator is None
        ]
    if definition.image is None and not cloud.setup and definition.environment is None:
        issues.append(
            "image: missing, but the machines need tailsweep: name an image that has it, or install it in "
            f"{provider}.setup or by environment: {{pip: [...]}}"
        )
    if definition.storage.path is not None and not cloud.setup:
        issues.append(
            f"storage.path: nothing mounts {definition.storage.path}: do it in {provider}.setup, or give a uri"
        )
    if definition.secrets and definition.secrets_file is None:
        issues.append("secrets_file: missing, but the machines must get the values of secrets from somewhere")
    return issues


def notes(definition: Definition, provider: Provider) -> list[str]:
    """Return notes on settings that have no effect here."""
    notes = []
    if definition.time_limit_hours is not None:
        notes.append("time_limit_hours has no effect on a cluster that accepts jobs: end it by `ray down FILE`")
    if provider != "gcp" and any(group.accelerator is not None for group in definition.groups):
        notes.append(f"accelerator has no effect here: {provider}.instance_types says which GPUs there are")
    return notes


def _section(definition: Definition, provider: Provider) -> Aws | Gcp | Azure:
    section = getattr(definition, provider)
    assert isinstance(section, Aws | Gcp | Azure), "issues() reports a missing section"
    return section


def _provider(cloud: Aws | Gcp | Azure) -> Tree:
    provider: Tree
    match cloud:
        case Aws():
            where = {"region": cloud.region, "availability_zone": cloud.availability_zone}
            provider = {"type": "aws", **where, "cache_stopped_nodes": False}
        case Gcp():
            where = {"region": cloud.region, "availability_zone": cloud.availability_zone}
            provider = {"type": "gcp", **where, "project_id": cloud.project_id}
        case Azure():
            where = {"location": cloud.location, "resource_group": cloud.resource_group}
            provider = {
                "type": "azure",
                **where,
                "subscription_id": cloud.subscription_id,
                "cache_stopped_nodes": False,
            }
    return {name: value for name, value in provider.items() if value is not None}


def _node_type(cloud: Aws | Gcp | Azure, group: Group) -> Tree:
    resources = {"CPU": group.cpus, "GPU": group.gpus, DRIVER_RESOURCE: 0 if group.spot else group.driver_slots}
    return {
        "min_workers": group.min_nodes,
        "max_workers": group.max_nodes,
        "resources": {name: amount for name, amount in resources.items() if amount},
        "node_config": _node_config(cloud, group.name, group),
    }


def _node_config(cloud: Aws | Gcp | Azure, name: str, group: Group | None) -> Tree:
    """Return the request to the cloud's own API; ``group`` is None for the head."""
    instance_type = cloud.instance_types[name]
    spot = group is not None and group.spot
    match cloud:
        case Aws():
            disk = {"VolumeSize": cloud.disk_gb, "VolumeType": "gp3"}
            config: Tree = {
                "InstanceType": instance_type,
                "ImageId": cloud.ami,
                "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": disk}],
            }
            if cloud.instance_profile is not None:
                config["IamInstanceProfile"] = {"Arn": cloud.instance_profile}
            if spot:
                config["InstanceMarketOptions"] = {"MarketType": "spot"}
        case Gcp():
            disk = {"diskSizeGb": cloud.disk_gb, "sourceImage": cloud.source_image}
            config = {
                "machineType": instance_type,
                "disks": [{"boot": True, "autoDelete": True, "type": "PERSISTENT", "initializeParams": disk}],
            }
            if cloud.service_account is not None:
                scopes = ["https://www.googleapis.com/auth/cloud-platform"]
                config["serviceAccounts"] = [{"email": cloud.service_account, "scopes": scopes}]
            if group is not None and group.gpus:
                config["guestAccelerators"] = [{"acceleratorType": group.accelerator, "acceleratorCount": group.gpus}]
                config["metadata"] = {"items": [{"key": "install-nvidia-driver", "value": "True"}]}
            scheduling: list[Tree] = [{"preemptible": True}] if spot else []
            if group is not None and group.gpus:
                scheduling.append({"onHostMaintenance": "TERMINATE"})  # a machine with GPUs cannot be moved
            if scheduling:
                config["scheduling"] = scheduling
        case Azure():
            publisher, offer, sku, version = cloud.vm_image.split(":")
            image = {"imagePublisher": publisher, "imageOffer": offer, "imageSku": sku, "imageVersion": version}
            config = {"azure_arm_parameters": {"vmSize": instance_type, **image, "osDiskSize": cloud.disk_gb}}
            if spot:  # at any price up to that of machines that are not spot
                config["azure_arm_parameters"] |= {"priority": "Spot", "billingProfile": {"maxPrice": -1}}
    return config


def _mounted(definition: Definition) -> list[str]:
    """Return the options that mount the machine's storage in its container."""
    path = definition.storage.path
    return [] if path is None else [f"-v {shlex.quote(f'{path}:{path}')}"]


def _installation(definition: Definition) -> list[str]:
    environment = definition.environment
    if environment is None:
        return []
    tool, packages = ("pip", environment.pip) if environment.pip is not None else ("uv pip", environment.uv)
    return [f"{tool} install {shlex.join(packages or [])}"]


def _start(definition: Definition, before: str, options: str) -> str:
    exported = ""
    if definition.secrets:
        exported = export_from_file(SECRETS_THERE, list(definition.secrets)) + "\n"
    return f"{exported}{before}\nulimit -n 65536\nray start {options} --disable-usage-stats"
