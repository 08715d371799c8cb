"""The private names of Ray that ``clusters/`` uses exist, behave as assumed, and are used through one module only."""

import inspect
import logging
import re
from pathlib import Path

import pytest
from ray._private import ray_constants
from ray._private.runtime_env import packaging
from ray.job_submission import JobSubmissionClient
from tailsweep.clusters import ray_compat

PRIVATE = re.compile(r"\bray(\.\w+)*\._[A-Za-z]|\b_private\b|_do_request|_server_ray_version")
CLUSTERS = Path(__file__).resolve().parents[2] / "clusters"


@pytest.mark.parametrize("name", ray_compat.__all__)
def test_each_private_name_is_there(name: str) -> None:
    assert getattr(ray_compat, name)


def test_the_functions_take_the_arguments_that_uploads_pass() -> None:
    inspect.signature(packaging._get_excludes).bind(Path(), ["/runs/"])
    inspect.signature(packaging._dir_travel).bind(Path(), [], print, include_gitignore=True, logger=logging.Logger("x"))
    assert "__pycache__" in ",".join(ray_constants.get_runtime_env_default_excludes())
    assert packaging.GCS_STORAGE_MAX_SIZE > 100_000_000


def test_the_token_loader_reads_a_token_without_the_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 64)
    loader = ray_compat.AuthenticationTokenLoader.instance()
    try:
        loader.reset_cache()
        assert "f" * 64 in str(dict(loader.get_token_for_http_header(ignore_auth_mode=True)))
    finally:
        loader.reset_cache()


def test_the_client_sends_requests_and_keeps_the_version_where_it_did() -> None:
    inspect.signature(JobSubmissionClient._do_request).bind(None, "GET", "/api/version", timeout=1)
    source = "".join(inspect.getsource(base) for base in JobSubmissionClient.__mro__ if base is not object)
    assert "self._server_ray_version =" in source


def test_the_noisy_loggers_are_those_of_modules_of_ray() -> None:
    for name in ray_compat.NOISY_LOGGERS:
        __import__(name)


def test_no_other_module_of_clusters_uses_a_private_name_of_ray() -> None:
    others = [path for path in CLUSTERS.rglob("*.py") if path.name != "ray_compat.py"]
    offenders = [path.name for path in others if PRIVATE.search(path.read_text())]
    assert offenders == []
