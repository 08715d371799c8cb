"""The private names of Ray that ``clusters/`` uses: for each the release it was read in, and why no public name serves.

A new release of Ray may move them. ``tests/clusters/test_ray_compat.py`` fails then and names the one that moved; the
uses elsewhere in ``clusters/`` stay as they are.
"""

from collections.abc import Mapping

import requests
from ray._private.ray_constants import (
    # Ray 2.60, 2.61. The variable that makes uploads ignore .gitignore, and what is left out of every upload: the
    # public client reads both, but only while it packs and sends.
    RAY_RUNTIME_ENV_IGNORE_GITIGNORE,
    get_runtime_env_default_excludes,
)
from ray._private.runtime_env.packaging import (
    # Ray 2.60, 2.61. The largest package that the head stores; the public client reports it only after packing.
    GCS_STORAGE_MAX_SIZE,
)
from ray._private.runtime_env.packaging import (
    # Ray 2.60, 2.61. The walk that chooses the files of a package; there is no public way to list them without sending.
    _dir_travel as dir_travel,
)
from ray._private.runtime_env.packaging import _get_excludes as get_excludes
from ray._raylet import (  # type: ignore[attr-defined]
    # Ray 2.60, 2.61. Reads this machine's token from wherever Ray keeps it, also when RAY_AUTH_MODE is not set; the
    # public client reads it only in that mode.
    AuthenticationTokenLoader,
)
from ray.job_submission import JobSubmissionClient

# Ray 2.60, 2.61. The loggers that print every step of an upload; Ray has no option to silence them.
NOISY_LOGGERS = ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env")


class OpenJobClient(JobSubmissionClient):  # type: ignore[misc]
    """Ray's client with two private members made accessible (Ray 2.60, 2.61).

    ``_do_request`` sends every request, and has no time limit of its own. ``_server_ray_version`` is the cluster's
    version of Ray, which has no public name.
    """

    def request_settings(self) -> Mapping[str, object]:
        """Return the settings of ``requests`` that apply to every request."""
        return {}

    def _do_request(self, method: str, endpoint: str, **settings: object) -> requests.Response:
        settings = {**self.request_settings(), **settings}
        response: requests.Response = super()._do_request(method, endpoint, **settings)
        return response

    @property
    def server_version(self) -> str:
        """Return the cluster's version of Ray."""
        return str(self._server_ray_version)


__all__ = [
    "GCS_STORAGE_MAX_SIZE",
    "NOISY_LOGGERS",
    "RAY_RUNTIME_ENV_IGNORE_GITIGNORE",
    "AuthenticationTokenLoader",
    "OpenJobClient",
    "dir_travel",
    "get_excludes",
    "get_runtime_env_default_excludes",
]
