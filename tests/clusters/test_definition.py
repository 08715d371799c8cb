"""A definition's errors are reported together, each with its field; values of secrets are never repeated."""

import re
from pathlib import Path

import pytest
from support.cluster_definitions import SHIPPED, definition
from tailsweep.orchestrator.cli.main import build_parser
from tailsweep.orchestrator.config.errors import SweepConfigError
from tailsweep.orchestrator.jobs.definition_file import load_definition

LEAST = """
name: rare
groups: [{name: gpu, nodes: 2, cpus: 4, memory_gb: 16}]
storage: {path: /shared/runs}
"""


def issues_of(tmp_path: Path, text: str) -> list[str]:
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    with pytest.raises(SweepConfigError) as raised:
        load_definition(file)
    return raised.value.issues


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.yaml")), ids=lambda file: file.stem)
def test_a_shipped_definition_is_right_and_opens_with_a_command_that_there_is(file: Path):
    assert load_definition(file).groups
    head = file.read_text().split("\n\nname:")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    commands = re.findall(r"tailsweep (cluster render .*?\.yaml)(?= *[|>)]|$)", head, re.MULTILINE)
    assert commands
    for command in commands:
        parsed = build_parser().parse_args(command.split())
        assert parsed.cluster == Path("clusters/definitions") / file.name


def test_what_is_left_out_has_its_default(tmp_path: Path):
    file = tmp_path / "cluster.yaml"
    file.write_text(LEAST)
    read = load_definition(file)
    assert (read.address, read.image, read.time_limit_hours, read.secrets) == (None, None, None, {})
    assert read.groups[0].gpus == 0
    assert not read.groups[0].spot
    assert read.storage.location == "/shared/runs"


def test_all_errors_are_reported_together_in_the_order_of_the_file(tmp_path: Path):
    text = """
name: Rare One
imge: registry.example/tailsweep:0.1
head: {cpu: 4}
groups:
  - {name: gpu, nodes: 0, cpus: 8, memory_gb: "64"}
  - {name: spot, nodes: {min: 9, max: 8}, cpus: 8, memory_gb: 64, gpu: 1}
storage: {url: s3://bucket/runs}
secrets: {WANDB_API_KEY: {nme: wandb, key: api-key}}
kubernetes: {spot: {tolerations: [gke-spot=true:NoSchedul]}}
"""
    assert [issue.partition(": ")[::2] for issue in issues_of(tmp_path, text)] == [
        ("name", 'is "Rare One", but must be at most 40 lower-case letters, digits and hyphens, the first a letter and '
                 "the last no hyphen"),
        ("imge", 'unknown field; did you mean "image"?'),
        ("head.cpu", 'unknown field; did you mean "cpus"?'),
        ("groups.0.nodes", "is 0, but must be a whole number > 0 or {min: k, max: k}"),
        ("groups.0.memory_gb", 'is "64", but must be a number > 0'),
        ("groups.1.nodes", "min is 9, but must be at most max (8)"),
        ("groups.1.gpu", 'unknown field; did you mean "gpus"?'),
        ("storage.url", 'unknown field; did you mean "uri"?'),
        ("secrets.WANDB_API_KEY.nme", 'unknown field; did you mean "name"?'),
        ("kubernetes.spot.tolerations.0", 'is "gke-spot=true:NoSchedul", but must be KEY=VALUE:EFFECT or KEY:EFFECT, '
                                          "as in kubectl taint"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("storage: {}", "storage: must be either {uri: s3://...} or {path: /...}"),
        ("storage: {uri: 's3://b', path: /runs}", "storage: must be either {uri: s3://...} or {path: /...}"),
        ("storage: {uri: 's3://b', claim: runs}", "storage: claim is a volume that is mounted at a path"),
        ("storage: {path: runs}", 'storage.path: is "runs", but must be a path from the root'),
        ("environment: {pip: [a], uv: [b]}", "environment: must be either {pip: [...]} or {uv: [...]}"),
        ("environment: {conda: [a]}", "environment.conda: unknown field; valid are pip, uv"),
        ("address: head:8265", 'address: is "head:8265", but must be http://HOST:PORT'),
        ("time_limit_hours: 0", "time_limit_hours: is 0, but must be a number > 0 or null"),
        ("secrets: {1KEY: null}", "secrets.1KEY"),
        ("slurm: {options: [-N 3]}", "slurm.options.0: is \"-N 3\", but must be an option of sbatch"),
        ("slurm: {setup: [\"module load a\\nrm b\"]}", "slurm.setup.0"),
        ("aws: {region: us-west-2}", "aws.instance_types: missing"),
    ],
)  # fmt: skip
def test_a_rule_that_is_broken_is_named(tmp_path: Path, line: str, expected: str):
    field = line.partition(":")[0]
    kept = [row for row in LEAST.splitlines() if not row.startswith(f"{field}:")]
    assert issues_of(tmp_path, "\n".join([*kept, line]))[0].startswith(expected)


@pytest.mark.parametrize("name", ["head", "GPU", "a" * 21, "gpu-", ""])
def test_a_groups_name_is_that_of_an_object(tmp_path: Path, name: str):
    text = LEAST.replace("name: gpu", f'name: "{name}"')
    assert issues_of(tmp_path, text)[0].startswith(f'groups.0.name: is "{name}", but must be at most 20')


def test_two_groups_of_one_name_are_refused(tmp_path: Path):
    group = "{name: gpu, nodes: 2, cpus: 4, memory_gb: 16}"
    assert issues_of(tmp_path, LEAST.replace(f"[{group}]", f"[{group}, {group}]")) == [
        "groups: two of them have the name gpu: give each a name of its own"
    ]


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("secrets: {WANDB_API_KEY: verysecret}", "secrets.WANDB_API_KEY"),
        ("secrets: {SOMETHING: verysecret}", "secrets.SOMETHING"),
        ("hf_token: verysecret", "hf_token"),
        ("storage: {uri: 's3://id:verysecret@bucket/runs'}", "storage.uri"),
    ],
)
def test_a_value_in_place_of_a_secrets_name_is_refused_and_not_repeated(tmp_path: Path, line: str, field: str):
    kept = LEAST if not line.startswith("storage") else LEAST.partition("storage")[0]
    (issue,) = issues_of(tmp_path, f"{kept}\n{line}\n")
    assert issue.startswith(f"{field}: a definition names secrets and never holds their values")
    assert "verysecret" not in issue


def test_drivers_have_what_ray_and_the_sweep_leave_of_a_nodes_memory():
    assert definition(head={"cpus": 4, "memory_gb": 16}).head.driver_slots == 12
    assert definition(head={"cpus": 1, "memory_gb": 2}).head.driver_slots == 1


def test_a_file_that_is_no_definition_says_what_one_has(tmp_path: Path):
    assert "must at least say groups: [" in issues_of(tmp_path, "")[0]
