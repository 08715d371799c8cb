"""Whether W&B can be reached with a key. The key itself goes to W&B's server alone, and is never shown or kept."""

import base64
import json
import netrc
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

SECONDS = 4.0  # for the server to answer
DEFAULT_SERVER = "https://api.wandb.ai"


@dataclass(frozen=True)
class WandbAccount:
    """A W&B server, and whether it can be used."""

    server: str
    has_key: bool
    problem: str | None = None  # why the server does not take the key; None: it does, or there is none to ask with


def wandb_account() -> WandbAccount:
    """Return the account of the environment or of the user's netrc file. Asks the server whether it accepts the key."""
    server = os.environ.get("WANDB_BASE_URL", "").rstrip("/") or DEFAULT_SERVER
    if os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return WandbAccount(server, has_key=True)
    key = os.environ.get("WANDB_API_KEY") or _netrc_key(server)
    return WandbAccount(server, has_key=bool(key), problem=_problem(server, key) if key else None)


def _netrc_key(server: str) -> str | None:
    home = Path.home()
    named = os.environ.get("NETRC")
    files = [Path(named).expanduser()] if named else [home / ".netrc", home / "_netrc"]
    for file in files:
        try:
            credentials = netrc.netrc(file).authenticators(urlsplit(server).netloc)
        except (OSError, netrc.NetrcParseError):
            continue
        if credentials:
            return credentials[2]
    return None


def _problem(server: str, key: str) -> str | None:
    credentials = base64.b64encode(f"api:{key}".encode()).decode()
    request = urllib.request.Request(
        f"{server}/graphql",
        data=json.dumps({"query": "query { viewer { username } }"}).encode(),
        headers={"Content-Type": "application/json"},
    )
    request.add_unredirected_header("Authorization", f"Basic {credentials}")
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as response:
            viewer = (json.load(response).get("data") or {}).get("viewer")
    except urllib.error.HTTPError as error:
        return "the key is refused" if error.code in (401, 403) else f"the server answers {error.code}"
    except (OSError, ValueError) as error:  # URLError is an OSError
        return f"the server does not answer ({getattr(error, 'reason', None) or error})"
    return None if viewer else "the key is refused"
