"""Jobs on a running Ray cluster, by its Job Submission API: connect, submit, and follow to the end.

Ray's own client does the work. This module adds what it lacks: it uses the requested address, sends the token only to a
server that asks for one, limits the time of every request, reports an error in one line with its fix, and follows a job
through lost connections. It does not know what the job does.
"""

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import aiohttp
import ray
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobErrorType, JobStatus, JobType
from tailsweep.clusters.errors import describe_error
from tailsweep.clusters.ray_compat import NOISY_LOGGERS, AuthenticationTokenLoader, OpenJobClient

logger = logging.getLogger(__name__)

# Ray's client puts these before the address it is given.
BEFORE_ANY_ADDRESS = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
TIMEOUTS_S = (10.0, 300.0)  # of a connection, and of an answer: the head reads a whole upload before it gives one
SILENCE_S = 60.0  # after which a quiet log is requested again: a connection may be dead without notice
PATIENCE_S = 600.0  # with a cluster that no longer answers, while a job is followed
BETWEEN_S = 1.0  # between two requests for the status of a job
AGAIN_S = 1.0  # between two attempts
START_S = 120.0  # for a head that has just been started to accept jobs


class SubmissionError(ValueError):
    """A request that failed before it had an effect; the message has the cause and the fix in one line."""


class NoAnswerError(SubmissionError):
    """A request without an answer."""


class ClusterLostError(RuntimeError):
    """A cluster that no longer answers or no longer knows the job, which may still be running."""


class JobClient(OpenJobClient):
    """Ray's client with a time limit for every request."""

    def request_settings(self) -> dict[str, object]:
        """Return the time limits."""
        return {"timeout": TIMEOUTS_S}


def connect(address: str) -> JobClient:
    """Connect to the cluster at ``address`` (http://HEAD:8265), which must run the release of Ray of this machine.

    Raises:
        SubmissionError: No such cluster answers, or it asks for a token that this machine does not have.
    """
    if not re.fullmatch(r"https?://[^/\s@]+/?", address):
        raise SubmissionError(
            f'the address "{address.rpartition("@")[2]}" is not that of a job server: write http://HEAD:8265, with the '
            "port of Ray's dashboard and without a password"
        )
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)  # they log every step
    with _faults_at(address):
        try:
            client = _client(address, {})
        except AuthenticationError:  # it asks for a token, or refused the one that RAY_AUTH_MODE=token finds
            client = _client(address, _token(address))
    here, there = ray.__version__, client.server_version
    if here.split(".")[:2] != there.split(".")[:2]:
        raise SubmissionError(
            f"{address} runs Ray {there}, this machine Ray {here}: use the same release on both, here by "
            f'`pip install "ray[default,tune,train]=={there}"` or there by starting the cluster with Ray {here}'
        )
    return client


def _client(address: str, headers: dict[str, str]) -> JobClient:
    with _without(BEFORE_ANY_ADDRESS):
        return JobClient(address, headers=headers)


@contextmanager
def _without(variables: Sequence[str]) -> Iterator[None]:
    """Unset these environment variables within the context."""
    before = {name: os.environ.pop(name) for name in variables if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


def _token(address: str) -> dict[str, str]:
    """Return the header with the token of this machine, wherever Ray keeps it and whatever RAY_AUTH_MODE is."""
    loader = AuthenticationTokenLoader.instance()
    loader.reset_cache()
    try:
        header = dict(loader.get_token_for_http_header(ignore_auth_mode=True))
    except AuthenticationError as error:
        raise SubmissionError(f"{address} asks for a token, and {_first_sentence(error)}: {_token_hint()}") from None
    if not header:
        raise SubmissionError(f"{address} asks for a token, and there is none here: {_token_hint()}")
    return header


def _token_hint() -> str:
    return (
        "copy the one that `ray get-auth-token` prints on the head to ~/.ray/auth_token, or name a file with it in "
        "RAY_AUTH_TOKEN_PATH"
    )


def _token_place() -> str:
    """Return where Ray finds this machine's token: the first of these that is set."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        if os.environ.get(name):
            return f"in {name}"
    return "in ~/.ray/auth_token"


@contextmanager
def _faults_at(address: str) -> Iterator[None]:
    """Raise whatever a request to the job server raises as a :class:`SubmissionError`."""
    try:
        yield
    except SubmissionError:
        raise
    except AuthenticationError:
        raise SubmissionError(
            f"{address} refuses the token {_token_place()}: it is another cluster's; {_token_hint()}"
        ) from None
    except (ConnectionError, requests.ConnectionError, requests.Timeout) as error:
        raise NoAnswerError(
            f"no Ray answers at {address} ({_reason(error)}): check the address, that the cluster is up, and the "
            "tunnel to its dashboard if there is one (ssh -L 8265:localhost:8265 HEAD)"
        ) from None
    except (requests.RequestException, KeyError, TypeError, ValueError, RuntimeError) as error:
        if type(error) is RuntimeError and "Version check returned 404" not in str(
            error
        ):  # raised by Ray's client for a status
            raise SubmissionError(f"{address} refused the request: {_refusal(error)}") from None
        raise SubmissionError(
            f"the server at {address} is no job server of Ray ({describe_error(error, 'first')}): give the address of "
            "Ray's dashboard, http://HEAD:8265"
        ) from None


@contextmanager
def _faults_of(runtime_env: Mapping[str, object]) -> Iterator[None]:
    """Raise errors about a job's environment, and about packing it, as SubmissionError."""
    try:
        yield
    except requests.RequestException:
        raise
    except ValueError as error:
        raise SubmissionError(f"Ray does not accept the job's environment: {describe_error(error, 'first')}") from None
    except OSError as error:
        if isinstance(error, ConnectionError):
            raise
        raise SubmissionError(f"{runtime_env.get('working_dir')} cannot be packed: {error}") from None


def _reason(error: BaseException) -> str:
    """Return the innermost cause of an error, which the libraries wrap several times."""
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
    return describe_error(error, "first")


def _refusal(error: BaseException) -> str:
    """Return the last line of the traceback in ``Request failed with status code 500: <traceback>``."""
    text = str(error).rstrip(". \n")
    _, _, body = text.partition(": ")
    lines = [line.strip() for line in body.splitlines() if line.strip()]
    return (lines[-1] if lines else text)[:500]


def _first_sentence(error: BaseException) -> str:
    return describe_error(error, "first").partition(". ")[0]


def jobs_of(client: JobClient) -> list[JobDetails]:
    """Return all jobs that were submitted to the cluster since its head was started, the newest last."""
    with _faults_at(client.get_address()):
        jobs = [job for job in client.list_jobs() if job.type == JobType.SUBMISSION]
    return sorted(jobs, key=lambda job: job.start_time or 0)


def submit(
    client: JobClient,
    command: str,
    submission_id: str,
    runtime_env: Mapping[str, object],
    metadata: Mapping[str, str],
) -> None:
    """Upload what ``runtime_env`` names and start the shell command ``command`` as a job.

    Raises:
        SubmissionError: The cluster refuses the job. Nothing runs then.
    """
    deadline = time.monotonic() + START_S
    is_starting = False
    while True:
        is_unknown = False  # whether the cluster has accepted the job
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
            is_unknown = is_starting and isinstance(error, NoAnswerError)
            if not (is_unknown or "No available agent" in str(error)) or time.monotonic() > deadline:
                raise
        if not is_starting:
            logger.info("the cluster's head has just been started: waiting until it accepts jobs")
            is_starting = True
        time.sleep(AGAIN_S)
        if is_unknown:
            with suppress(OSError, RuntimeError, ValueError):  # there is no such job
                client.get_job_info(submission_id)
                return


def follow(client: JobClient, submission_id: str, write: Callable[[str], None]) -> JobDetails:
    """Pass on the output of a job until it ends, and return its final details.

    Args:
        client: Of the cluster.
        submission_id: The job's.
        write: Receives the job's output as it arrives, in whole lines or parts of them.

    Raises:
        ClusterLostError: The cluster has not answered for :data:`PATIENCE_S`, or no longer knows the job.
    """
    log = _Log(write)
    waiting = False
    lost_since: float | None = None
    while True:
        try:
            job = client.get_job_info(submission_id)
            if lost_since is not None:
                logger.info("the cluster answers again")
                lost_since = None
            if job.status.is_terminal():
                with suppress(RuntimeError):  # the node that keeps the log is gone
                    log.take(client.get_job_logs(submission_id))
                return job
            if job.status == JobStatus.RUNNING:
                _listen(client, submission_id, log)
            elif not waiting:
                logger.info(f"job {submission_id} waits for the cluster to prepare nodes, files and packages")
                waiting = True
        except (OSError, RuntimeError, ValueError, AuthenticationError) as error:  # ValueError: no valid answer
            if "does not exist" in str(error):
                raise ClusterLostError(
                    f"the cluster no longer knows job {submission_id}: its head was restarted, and the job ended "
                    "with the old one"
                ) from None
            if lost_since is None:
                logger.warning(
                    f"the cluster does not answer ({_reason(error)}): the job continues there, retrying here"
                )
                lost_since = time.monotonic()
            elif time.monotonic() - lost_since > PATIENCE_S:
                raise ClusterLostError(
                    f"{client.get_address()} has not answered for {PATIENCE_S / 60:.0f} minutes ({_reason(error)}); "
                    f"job {submission_id} may still be running"
                ) from None
        time.sleep(BETWEEN_S)


class _Log:
    """The printed part of a log that arrives in pieces, and from its beginning at every new connection."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.write = write
        self.shown = 0  # characters

    def take(self, text: str, start: int = 0) -> None:
        """Print what is new in ``text``, which is the log from its character ``start``."""
        new = text[max(self.shown - start, 0) :]
        if new:
            self.write(new)
            self.shown += len(new)


def _listen(client: JobClient, submission_id: str, log: _Log) -> None:
    """Print the log as it is written, by a web socket; behind some proxies, print it as it is now."""
    try:
        asyncio.run(_tail(client, submission_id, log))
    except (aiohttp.ClientError, RuntimeError):
        log.take(client.get_job_logs(submission_id))


async def _tail(client: JobClient, submission_id: str, log: _Log) -> None:
    """Print the log over one connection, until its end or :data:`SILENCE_S` without output."""
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
    """Return what a job has printed.

    Raises:
        SubmissionError: The cluster does not answer.
    """
    with _faults_at(client.get_address()):
        return str(client.get_job_logs(submission_id))


def stop(client: JobClient, submission_id: str, seconds: float) -> JobDetails:
    """Ask a job to end, as SIGTERM does, wait at most so many seconds, and return its details then."""
    deadline = time.monotonic() + seconds
    with _faults_at(client.get_address()):
        client.stop_job(submission_id)
        while True:
            job = client.get_job_info(submission_id)
            if job.status.is_terminal() or time.monotonic() > deadline:
                return job
            time.sleep(BETWEEN_S)


def cause_of_failure(job: JobDetails) -> str:
    """Return in one line why a job has failed, with the fix if it is known."""
    message = job.message or ""
    if job.error_type == JobErrorType.RUNTIME_ENV_SETUP_FAILURE:
        return (
            f"its environment could not be created: {_telling_line(message)}; fix `environment` in the cluster's file"
        )
    if job.driver_exit_code is None:  # the command never ran, or its supervisor is gone
        return f"{_telling_line(message)}; see `ray status` and the dashboard for what became of the node"
    missing = re.findall(r"No module named '?([\w.]+)'?", message)
    if missing:
        return (
            f"its environment lacks the package {missing[-1].partition('.')[0]}: name it under `environment`, or start "
            "the cluster from an image that has it"
        )
    return f"its command ended with exit status {job.driver_exit_code}"


def _telling_line(message: str) -> str:
    """Return the first error of an installer in a message of many lines, else the last line."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(ERROR|error|×)\b", line)]
    return (errors or lines[-1:] or ["no reason was given"])[0][:300]
