"""Jobs by Ray's client against a server that answers as a head does: faults, tokens, uploads, following."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.job_submission import JobDetails
from support.fake_head import DROPPED, FakeHead, fake_head
from support.messages import each_message, messages
from tailsweep.clusters.jobs import client as job_client
from tailsweep.clusters.jobs.client import (
    ClusterLostError,
    JobClient,
    SubmissionError,
    cause_of_failure,
    connect,
    follow,
    jobs_of,
    stop,
    submit,
)

pytestmark = pytest.mark.before_ray  # Ray keeps the token mode of its first start in a process

TOKEN = "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def _no_default_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No token and no address of whoever runs the tests; and nothing waits long."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", *job_client.BEFORE_ANY_ADDRESS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(job_client, "BETWEEN_S", 0.02)


@pytest.fixture
def head() -> Iterator[FakeHead]:
    with fake_head() as head:
        yield head


def refusal(address: str) -> str:
    with pytest.raises(SubmissionError) as refused:
        connect(address)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_the_address_that_was_asked_for_is_the_one_that_is_used(head: FakeHead, monkeypatch: pytest.MonkeyPatch):
    """Ray's client would put both of these before it."""
    for name in job_client.BEFORE_ANY_ADDRESS:
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert connect(head.address).get_address() == head.address
    assert [os.environ[name] for name in job_client.BEFORE_ANY_ADDRESS] == ["http://127.0.0.1:9"] * 2


@pytest.mark.parametrize("address", ["head:8265", "ray://head:10001", "auto", "http://", "http://head/a/path", ""])
def test_an_address_that_is_none_of_a_job_server_is_refused(address: str):
    assert f'the address "{address}" is not that of a job server: write http://HEAD:8265' in refusal(address)


def test_a_password_in_an_address_is_refused_and_not_repeated():
    message = refusal("http://me:hunter2@head:8265")
    assert "without a password" in message
    assert "hunter2" not in message


def test_where_nothing_listens_the_cause_is_said():
    message = refusal("http://127.0.0.1:9")
    assert message.startswith("no Ray answers at http://127.0.0.1:9 (Connection refused): check the address")


def test_a_server_that_keeps_silent_is_not_waited_for(head: FakeHead, monkeypatch: pytest.MonkeyPatch):
    head.seconds = 2
    monkeypatch.setattr(job_client, "TIMEOUTS_S", (0.2, 0.2))
    assert f"no Ray answers at {head.address} (no answer in time)" in refusal(head.address)


@pytest.mark.parametrize(
    ("status", "text"),
    [(200, "<html>It works!</html>"), (200, "{}"), (200, '{"ray_version": "newest"}'), (404, "nothing here")],
)
def test_what_is_no_job_server_is_reported(head: FakeHead, status: int, text: str):
    head.answers["GET", "/api/version"] = [(status, text)]
    assert f"the server at {head.address} is no job server of Ray" in refusal(head.address)


def test_a_server_in_trouble_is_reported(head: FakeHead):
    head.answers["GET", "/api/version"] = [(503, "overloaded")]
    assert "503" in refusal(head.address)


def test_another_release_is_refused_with_both_versions_and_the_fix(head: FakeHead):
    head.version = "2.55.1"
    message = refusal(head.address)
    assert f"{head.address} runs Ray 2.55.1, this machine Ray {ray.__version__}" in message
    assert '`pip install "ray[default,tune,train]==2.55.1"`' in message
    assert "packages" not in str(head.requests)


def test_another_patch_of_the_same_release_is_not_refused(head: FakeHead):
    head.version = ".".join([*ray.__version__.split(".")[:2], "99"])
    connect(head.address)


@pytest.mark.parametrize("place", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "home"])
def test_a_token_is_found_and_shown_where_it_is_asked_for(
    head: FakeHead, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str
):
    head.token = TOKEN
    file = tmp_path / "home/.ray/auth_token"
    file.parent.mkdir(parents=True)
    if place == "RAY_AUTH_TOKEN":
        monkeypatch.setenv(place, TOKEN)
    else:
        file.write_text(TOKEN + "\n")
    if place == "RAY_AUTH_TOKEN_PATH":
        monkeypatch.setenv(place, str(file.rename(tmp_path / "elsewhere")))
    head.job("demo", "RUNNING")
    assert [job.submission_id for job in jobs_of(connect(head.address))] == ["demo"]


def test_a_token_is_not_shown_to_a_server_that_does_not_ask(head: FakeHead, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    jobs_of(connect(head.address))
    assert TOKEN not in str(head.requests)


def test_a_missing_token_is_explained(head: FakeHead, monkeypatch: pytest.MonkeyPatch):
    head.token = TOKEN
    message = refusal(head.address)
    assert f"{head.address} asks for a token, and there is none here: copy the one that `ray get-auth-token`" in message
    assert "~/.ray/auth_token" in message
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/not/there")
    assert "RAY_AUTH_TOKEN_PATH is set but file cannot be opened or is empty: /not/there" in refusal(head.address)


def test_a_wrong_token_is_explained_with_where_it_came_from(head: FakeHead, monkeypatch: pytest.MonkeyPatch):
    head.token = TOKEN
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 64)
    message = refusal(head.address)
    assert "refuses the token in RAY_AUTH_TOKEN: it is another cluster's" in message
    assert "f" * 64 not in message


def test_a_job_is_uploaded_and_submitted(head: FakeHead, tmp_path: Path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work/rows.csv").write_text("text,label\n")
    submitted(head, tmp_path / "work")
    (job,) = head.submitted
    assert (job["entrypoint"], job["submission_id"], job["metadata"]) == ("true", "demo", {"run": "demo"})
    assert job["runtime_env"]["working_dir"].startswith("gcs://_ray_pkg_")
    assert [path for method, path, _ in head.requests if method == "PUT"] != []


@pytest.mark.parametrize(
    ("request_", "answer", "expected"),
    [
        (("PUT", "/api/packages"), (500, "Traceback:\n  File x\nRuntimeError: the store is full"), "the store is full"),
        (("POST", "/api/jobs"), (400, "Traceback\nValueError: Job with submission_id demo already exists"), "exists"),
        (("GET", "/api/packages"), (401, "Unauthorized"), "refuses the token"),
    ],
)
def test_where_a_part_of_it_is_refused_nothing_is_started(
    head: FakeHead, tmp_path: Path, request_: tuple[str, str], answer: tuple[int, str], expected: str
):
    head.answers[request_] = [answer]
    with pytest.raises(SubmissionError, match=expected) as refused:
        submitted(head, tmp_path)
    assert "\n" not in str(refused.value)
    assert head.submitted == []


def test_an_environment_that_ray_does_not_accept_is_reported_before_the_job_is_sent(head: FakeHead, tmp_path: Path):
    with pytest.raises(SubmissionError, match="Ray does not accept the job's environment"):
        submitted(head, tmp_path, pip=["a"], uv=["b"])
    assert head.submitted == []


def test_a_head_that_has_only_just_been_started_is_waited_for(head: FakeHead, tmp_path: Path):
    head.answers["POST", "/api/jobs"] = [(500, "No available agent to submit job, please try again later.")] * 2
    said = submitted(head, tmp_path)
    assert said == ["the cluster's head has just been started: waiting until it accepts jobs"]
    assert len(head.submitted) == 1


def test_a_head_that_drops_connections_while_it_starts_is_waited_for(
    head: FakeHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(job_client, "AGAIN_S", 0.0)
    head.answers["POST", "/api/jobs"] = [(500, "No available agent to submit job"), (DROPPED, ""), (DROPPED, "")]
    assert len(submitted(head, tmp_path)) == 1
    assert len(head.submitted) == 1


def test_a_job_whose_acceptance_got_lost_is_not_submitted_twice(
    head: FakeHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(job_client, "AGAIN_S", 0.0)
    head.answers["POST", "/api/jobs"] = [(500, "No available agent to submit job"), (DROPPED, "")]
    head.job("demo", "PENDING")
    submitted(head, tmp_path)
    assert head.submitted == []


def test_another_job_of_the_same_id_is_not_taken_for_the_one_submitted(
    head: FakeHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(job_client, "AGAIN_S", 0.0)
    exists = "Traceback\nValueError: Job with submission_id demo already exists"
    head.answers["POST", "/api/jobs"] = [(500, "No available agent to submit job"), (400, exists)]
    head.job("demo", "SUCCEEDED")
    with pytest.raises(SubmissionError, match="already exists"):
        submitted(head, tmp_path)


def test_a_connection_that_is_dropped_at_once_is_no_start(head: FakeHead, tmp_path: Path):
    head.answers["POST", "/api/jobs"] = [(DROPPED, "")]
    with pytest.raises(SubmissionError, match="no Ray answers at"):
        submitted(head, tmp_path)


def submitted(head: FakeHead, folder: Path, **environment: object) -> list[str]:
    """Submits a job of id demo from a folder; what was said."""
    runtime_env = {"working_dir": str(folder), **environment}
    with messages() as logged:
        submit(connect(head.address), "true", "demo", runtime_env, {"run": "demo"})
    return logged


@pytest.fixture
def client(head: FakeHead) -> JobClient:
    return connect(head.address)


def followed(client: JobClient) -> tuple[JobDetails, str, list[str]]:
    """How job demo ended, what it printed, what was said."""
    printed: list[str] = []
    with messages() as logged:
        return follow(client, "demo", printed.append), "".join(printed), logged


def test_a_log_comes_once_whatever_becomes_of_the_connection(head: FakeHead, client: JobClient):
    """Each connection begins with the log's first character again."""
    head.job("demo", "RUNNING")
    head.connections = [(["one\n", "tw"], "cut"), (["one\ntwo\nthr"], "cut"), (["one\n", "two\n", "three\n"], "end")]
    job, printed, said = followed(client)
    assert (job.status, printed, said) == ("SUCCEEDED", "one\ntwo\nthree\nthe end\n", [])
    assert head.connections == []


def test_a_log_that_was_quiet_for_long_is_asked_for_anew(
    head: FakeHead, client: JobClient, monkeypatch: pytest.MonkeyPatch
):
    """As where a laptop has slept: nothing says that the connection is dead."""
    monkeypatch.setattr(job_client, "SILENCE_S", 0.3)
    head.job("demo", "RUNNING")
    head.connections = [(["one\n"], "silence"), (["one\n", "two\n"], "end")]
    job, printed, said = followed(client)
    assert (job.status, printed, said) == ("SUCCEEDED", "one\ntwo\nthe end\n", [])


def test_without_web_sockets_the_log_is_asked_for(head: FakeHead, client: JobClient):
    head.job("demo", "RUNNING")
    head.logs = "one\n"
    printed: list[str] = []

    def ends_after_the_first_piece(text: str) -> None:
        printed.append(text)
        head.logs = "one\ntwo\n"
        head.jobs["demo"]["status"] = "FAILED"

    assert follow(client, "demo", ends_after_the_first_piece).status == "FAILED"
    assert printed == ["one\n", "two\n"]


def test_a_job_that_waits_is_said_to(head: FakeHead, client: JobClient, monkeypatch: pytest.MonkeyPatch):
    head.job("demo", "PENDING")
    said: list[str] = []

    def starts(text: str) -> None:
        said.append(text)
        head.jobs["demo"]["status"] = "SUCCEEDED"

    with each_message(starts):
        follow(client, "demo", said.append)
    assert said == ["job demo waits for the cluster to prepare nodes, files and packages"]


def test_a_cluster_that_answers_again_is_followed_on(head: FakeHead, client: JobClient):
    head.job("demo", "RUNNING")
    head.answers["GET", "/api/jobs/demo"] = [(500, "the head is busy")] * 3
    head.connections = [(["one\n"], "cut"), (["one\n"], "end")]
    job, printed, said = followed(client)
    assert (job.status, printed) == ("SUCCEEDED", "one\nthe end\n")
    assert [text.partition(" (")[0] for text in said] == ["the cluster does not answer", "the cluster answers again"]


def test_a_cluster_that_is_gone_ends_the_following(client: JobClient, head: FakeHead, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(job_client, "PATIENCE_S", 0.2)
    client._address = "http://127.0.0.1:9"
    with pytest.raises(ClusterLostError, match=r"Connection refused.*demo may still be running"):
        followed(client)


def test_a_head_that_was_started_anew_knows_nothing_of_the_job(client: JobClient, head: FakeHead):
    with pytest.raises(ClusterLostError, match="no longer knows job demo: its head was restarted"):
        followed(client)


def test_a_log_that_is_lost_with_its_node_is_not_waited_for(head: FakeHead, client: JobClient):
    head.job("demo", "FAILED")
    head.answers["GET", "/api/jobs/demo/logs"] = [(500, "Traceback\nClientConnectorError: the node is gone")]
    job, printed, said = followed(client)
    assert (job.status, printed, said) == ("FAILED", "", [])


def test_drivers_that_no_one_submitted_are_no_jobs(head: FakeHead, client: JobClient):
    head.job("by hand", "RUNNING", type="DRIVER")
    head.job("later", "RUNNING", start_time=1_700_000_000_002)
    head.job("earlier", "RUNNING", start_time=1_700_000_000_001)
    assert [job.submission_id for job in jobs_of(client)] == ["earlier", "later"]


def test_stopping_waits_for_the_end(head: FakeHead, client: JobClient):
    head.job("demo", "RUNNING")
    head.looks_to_stop = 2
    assert stop(client, "demo", 10).status == "STOPPED"


def test_a_job_that_does_not_end_is_not_waited_for_for_ever(head: FakeHead, client: JobClient):
    head.job("demo", "PENDING")
    assert stop(client, "demo", 0.1).status == "PENDING"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"error_type": "RUNTIME_ENV_SETUP_FAILURE", "message": "runtime_env setup failed:\nCommand 'pip' ...\n"
             "ERROR: No matching distribution found for torhc\nWARNING: upgrade pip"},
            "its environment could not be created: ERROR: No matching distribution found for torhc; fix `environment`",
        ),
        (
            {"error_type": "JOB_ENTRYPOINT_COMMAND_ERROR", "driver_exit_code": 1,
             "message": "failed with exit code 1, last logs:\n/usr/bin/python: No module named orchestrator\n"},
            "its environment lacks the package orchestrator: name it under `environment`, or start the cluster from an",
        ),
        (
            {"error_type": "JOB_ENTRYPOINT_COMMAND_ERROR", "driver_exit_code": 1,
             "message": "last available logs:\nModuleNotFoundError: No module named 'torch.nn'\n"},
            "its environment lacks the package torch",
        ),
        (
            {"error_type": "JOB_SUPERVISOR_ACTOR_DIED", "message": "Job supervisor actor died: The actor died.\n"
             "Its node was lost."},
            "Its node was lost.; see `ray status`",
        ),
        ({"driver_exit_code": 1, "message": "failed with exit code 1"}, "its command ended with exit status 1"),
        ({}, "no reason was given; see `ray status`"),
    ],
)  # fmt: skip
def test_why_a_job_has_failed_is_one_line(fields: dict[str, object], expected: str):
    message = cause_of_failure(JobDetails(type="SUBMISSION", status="FAILED", entrypoint="true", **fields))
    assert message.startswith(expected)
    assert "\n" not in message
