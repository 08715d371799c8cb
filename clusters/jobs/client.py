"""Jobs on a Ray that is there already, by its Job Submission API: connecting, submitting, following to the end.

Ray's own client does the work. What it leaves out is here: the address that was asked for is the one that is used, the
token is found and shown only to a server that asks for one, no request waits for ever, what goes wrong is said in one
line with its remedy, and a job is followed through lost connections. What the job is, is not known here.
"""

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import aiohttp
import ray
import requests
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobErrorType, JobStatus, JobSubmissionClient, JobType

# Ray's client puts these before the address it is given.
BEFORE_ANY_ADDRESS = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
TIMEOUTS_S = (10.0, 300.0)  # of a connection, and of an answer: the head reads a whole upload before it gives one
SILENCE_S = 60.0  # after which a quiet log is asked for anew: a connection may be dead without a word
PATIENCE_S = 600.0  # with a cluster that no longer answers, while a job is followed
BETWEEN_S = 1.0  # two looks at a job
START_S = 120.0  # for a head that has just been started to take jobs

Say = Callable[[str], None]


class SubmissionError(ValueError):
    """Nothing was started, or looked at: the message has the cause in one line, and the remedy."""


class ClusterLostError(RuntimeError):
    """The cluster no longer answers, or no longer knows the job. It may be running all the same."""


class JobClient(JobSubmissionClient):  # type: ignore[misc]
    """Ray's client, whose requests end."""

    def _do_request(self, method: str, endpoint: str, **settings: Any) -> requests.Response:
        response: requests.Response = super()._do_request(method, endpoint, **{"timeout": TIMEOUTS_S, **settings})
        return response

    @property
    def server_version(self) -> str:
        """Of Ray, as the cluster has told it."""
        return str(self._server_ray_version)


def connect(address: str) -> JobClient:
    """A client of the cluster at ``address`` (http://HEAD:8265), which answers and runs the Ray of this machine.

    Raises:
        SubmissionError: it does not, or wants a token that is not here.
    """
    if not re.fullmatch(r"https?://[^/\s@]+/?", address):
        raise SubmissionError(
            f'the address "{address.rpartition("@")[2]}" is none of a job server: write http://HEAD:8265, with the '
            "port of Ray's dashboard and without a password"
        )
    for name in ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env"):
        logging.getLogger(name).setLevel(logging.ERROR)  # they tell of every step
    with _faults_at(address):
        try:
            client = _client(address, {})
        except AuthenticationError:  # it asks for a token, or has been shown the one that RAY_AUTH_MODE=token finds
            client = _client(address, _token(address))
    here, there = ray.__version__, client.server_version
    if here.split(".")[:2] != there.split(".")[:2]:
        raise SubmissionError(
            f"{address} runs Ray {there}, this machine Ray {here}: have the same release on both, here by "
            f'`pip install "ray[default,tune,train]=={there}"` or there by starting the cluster with Ray {here}'
        )
    return client


def _client(address: str, headers: dict[str, str]) -> JobClient:
    with _without(BEFORE_ANY_ADDRESS):
        return JobClient(address, headers=headers)


@contextmanager
def _without(variables: Sequence[str]) -> Iterator[None]:
    """Within it, these environment variables are not set."""
    before = {name: os.environ.pop(name) for name in variables if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


def _token(address: str) -> dict[str, str]:
    """The header with the token of this machine, wherever Ray keeps it; its mode is the server's to say."""
    loader = AuthenticationTokenLoader.instance()
    loader.reset_cache()
    try:
        header = dict(loader.get_token_for_http_header(ignore_auth_mode=True))
    except AuthenticationError as error:
        raise SubmissionError(f"{address} asks for a token, and {_first_sentence(error)}: {_token_remedy()}") from None
    if not header:
        raise SubmissionError(f"{address} asks for a token, and there is none here: {_token_remedy()}")
    return header


def _token_remedy() -> str:
    return (
        "copy the one that `ray get-auth-token` prints on the head to ~/.ray/auth_token, or name a file with it in "
        "RAY_AUTH_TOKEN_PATH"
    )


def _token_place() -> str:
    """Where Ray finds this machine's token: the first of these that is set."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        if os.environ.get(name):
            return f"in {name}"
    return "in ~/.ray/auth_token"


@contextmanager
def _faults_at(address: str) -> Iterator[None]:
    """Within it, whatever a request to the job server raises leaves as a :class:`SubmissionError`."""
    try:
        yield
    except SubmissionError:
        raise
    except AuthenticationError:
        raise SubmissionError(
            f"{address} refuses the token {_token_place()}: it is another cluster's; {_token_remedy()}"
        ) from None
    except (ConnectionError, requests.ConnectionError, requests.Timeout) as error:
        raise SubmissionError(
            f"no Ray answers at {address} ({_reason(error)}): check the address, that the cluster is up, and the "
            "tunnel to its dashboard if there is one (ssh -L 8265:localhost:8265 HEAD)"
        ) from None
    except (requests.RequestException, KeyError, TypeError, ValueError, RuntimeError) as error:
        if type(error) is RuntimeError and "Version check returned 404" not in str(error):  # Ray's client, of a status
            raise SubmissionError(f"{address} refused the request: {_refusal(error)}") from None
        raise SubmissionError(
            f"what answers at {address} is no job server of Ray ({_first_line(error)}): give the address of Ray's "
            "dashboard, http://HEAD:8265"
        ) from None


@contextmanager
def _faults_of(runtime_env: Mapping[str, Any]) -> Iterator[None]:
    """Within it, what Ray has against a job's environment, or cannot pack of it, leaves as SubmissionError."""
    try:
        yield
    except requests.RequestException:
        raise
    except ValueError as error:
        raise SubmissionError(f"Ray does not take the job's environment: {_first_line(error)}") from None
    except OSError as error:
        if isinstance(error, ConnectionError):
            raise
        raise SubmissionError(f"{runtime_env.get('working_dir')} cannot be packed: {error}") from None


def _reason(error: BaseException) -> str:
    """The innermost of an error's causes, which the libraries wrap in several of their own."""
    chain: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in chain:
        chain.append(following)
        following = following.__cause__ or following.__context__
    for cause in reversed(chain):
        if isinstance(cause, OSError) and cause.strerror and not isinstance(cause, requests.RequestException):
            return cause.strerror
        if isinstance(cause, TimeoutError | requests.Timeout):
            return "no answer in time"
    return _first_line(error)


def _refusal(error: BaseException) -> str:
    """``Request failed with status code 500: <traceback>`` -> the traceback's last line."""
    text = str(error).rstrip(". \n")
    _, _, body = text.partition(": ")
    lines = [line.strip() for line in body.splitlines() if line.strip()]
    return (lines[-1] if lines else text)[:500]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _first_sentence(error: BaseException) -> str:
    return _first_line(error).partition(". ")[0]


def jobs_of(client: JobClient) -> list[JobDetails]:
    """All jobs that were submitted to the cluster since its head was started, the newest last."""
    with _faults_at(client.get_address()):
        found = [job for job in client.list_jobs() if job.type == JobType.SUBMISSION]
    return sorted(found, key=lambda job: job.start_time or 0)


def submit(
    client: JobClient,
    command: str,
    submission_id: str,
    runtime_env: Mapping[str, Any],
    metadata: Mapping[str, str],
    say: Say,
) -> None:
    """Upload what ``runtime_env`` names and start the shell command ``command`` as a job.

    Raises:
        SubmissionError: the cluster does not take it; then nothing runs.
    """
    deadline = time.monotonic() + START_S
    told = False
    while True:
        try:
            with _faults_at(client.get_address()), _faults_of(runtime_env):
                client.submit_job(
                    entrypoint=command,
                    submission_id=submission_id,
                    runtime_env=dict(runtime_env),
                    metadata=dict(metadata),
                )
                return
        except SubmissionError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
        if not told:
            say("the cluster's head has only just been started: waiting until it takes jobs")
            told = True


def follow(client: JobClient, submission_id: str, write: Say, say: Say) -> JobDetails:
    """Hand on what a job prints until it has ended; how it ended.

    Args:
        write: what the job prints, as it comes, lines in whole or in part.
        say: for a line of ours: that the job waits, that the connection was lost.

    Raises:
        ClusterLostError: the cluster has not answered for :data:`PATIENCE_S`, or no longer knows the job.
    """
    log = _Log(write)
    waiting = False
    lost_since: float | None = None
    while True:
        try:
            job = client.get_job_info(submission_id)
            if lost_since is not None:
                say("the cluster answers again")
                lost_since = None
            if job.status.is_terminal():
                with suppress(RuntimeError):  # the node that keeps the log is gone
                    log.take(client.get_job_logs(submission_id))
                return job
            if job.status == JobStatus.RUNNING:
                _listen(client, submission_id, log)
            elif not waiting:
                say(f"job {submission_id} waits for the cluster: nodes, files and packages are made ready")
                waiting = True
        except (OSError, RuntimeError, ValueError, AuthenticationError) as error:  # ValueError: an answer that is none
            if "does not exist" in str(error):
                raise ClusterLostError(
                    f"the cluster no longer knows job {submission_id}: its head was started anew, and the job ended "
                    "with the old one"
                ) from None
            if lost_since is None:
                say(f"the cluster does not answer ({_reason(error)}): the job goes on there, trying again here")
                lost_since = time.monotonic()
            elif time.monotonic() - lost_since > PATIENCE_S:
                raise ClusterLostError(
                    f"{client.get_address()} has not answered for {PATIENCE_S / 60:.0f} minutes ({_reason(error)}); "
                    f"job {submission_id} may be running all the same"
                ) from None
        time.sleep(BETWEEN_S)


class _Log:
    """What has been printed of a log that comes in pieces, and from its beginning at every new connection."""

    def __init__(self, write: Say) -> None:
        self.write = write
        self.shown = 0  # characters

    def take(self, text: str, start: int = 0) -> None:
        """``text`` is the log from its character ``start`` on; what of it is new is printed."""
        new = text[max(self.shown - start, 0) :]
        if new:
            self.write(new)
            self.shown += len(new)


def _listen(client: JobClient, submission_id: str, log: _Log) -> None:
    """The log as it is written, by a web socket; where there is no way for one (some proxies), as it stands."""
    try:
        asyncio.run(_tail(client, submission_id, log))
    except (aiohttp.ClientError, RuntimeError):
        log.take(client.get_job_logs(submission_id))


async def _tail(client: JobClient, submission_id: str, log: _Log) -> None:
    """The log over one connection, until its end or :data:`SILENCE_S` without a word."""
    received = 0
    lines = client.tail_job_logs(submission_id)
    try:
        while True:
            text = await asyncio.wait_for(anext(lines), SILENCE_S)
            log.take(text, received)
            received += len(text)
    except (StopAsyncIteration, TimeoutError):
        return
    finally:
        await lines.aclose()


def logs_of(client: JobClient, submission_id: str) -> str:
    with _faults_at(client.get_address()):
        return str(client.get_job_logs(submission_id))


def stop(client: JobClient, submission_id: str, seconds: float) -> JobDetails:
    """Ask a job to end, as SIGTERM does, and wait for it at most so long; how it stands then."""
    deadline = time.monotonic() + seconds
    with _faults_at(client.get_address()):
        client.stop_job(submission_id)
        while True:
            job = client.get_job_info(submission_id)
            if job.status.is_terminal() or time.monotonic() > deadline:
                return job
            time.sleep(BETWEEN_S)


def cause_of_failure(job: JobDetails) -> str:
    """Why a job has failed, in one line, with the remedy where one is known."""
    message = job.message or ""
    if job.error_type == JobErrorType.RUNTIME_ENV_SETUP_FAILURE:
        return f"its environment could not be made: {_telling_line(message)}; mend `environment` in the cluster's file"
    if job.driver_exit_code is None:  # the command never ran, or what ran it is gone
        return f"{_telling_line(message)}; see `ray status` and the dashboard for what became of the node"
    missing = re.findall(r"No module named '?([\w.]+)'?", message)
    if missing:
        return (
            f"its environment lacks the package {missing[-1].partition('.')[0]}: name it under `environment`, or start "
            "the cluster from an image that has it"
        )
    return f"its command ended with exit status {job.driver_exit_code}"


def _telling_line(message: str) -> str:
    """Of a message of many lines: the first of an installer's errors, else the last line."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(ERROR|error|×)\b", line)]
    return (errors or lines[-1:] or ["no reason was given"])[0][:300]
