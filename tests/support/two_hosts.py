"""A Ray of three hosts on one machine, each with a network, a name and files of its own; a sweep there, and one that
loses a host in its middle.

    unshare --net --mount --pid --fork --kill-child --mount-proc python tests/support/two_hosts.py FOLDER

Needs root, or the right to make namespaces; leaves nothing behind, since all of it ends with the first process. The
head accepts jobs and trains nothing. ``FOLDER/shared`` is what all hosts see; ``FOLDER/own`` is each host's own disk,
the job's working directory, Ray's files and the cache among it. Prints what it does, and at last one JSON document.
"""

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from event_files import reports  # next to it

ROOT = Path(__file__).resolve().parents[2]
HEAD, FIRST, SECOND = "head", "first", "second"
ADDRESSES = {HEAD: "10.77.0.10", FIRST: "10.77.0.11", SECOND: "10.77.0.12"}  # this side is 10.77.0.1
JOBS = f"http://{ADDRESSES[HEAD]}:8265"
TOKEN = "0123456789abcdef" * 4


def make_network() -> None:
    """A bridge with this side and every host on it. Hosts reach one another, and nothing else."""
    ip("link", "set", "lo", "up")
    ip("link", "add", "hosts", "type", "bridge")
    ip("addr", "add", "10.77.0.1/24", "dev", "hosts")
    ip("link", "set", "hosts", "up")
    Path("/run/netns").mkdir(exist_ok=True)
    subprocess.run(("mount", "-t", "tmpfs", "tmpfs", "/run/netns"), check=True)
    for host, address in ADDRESSES.items():
        ip("netns", "add", host)
        ip("link", "add", f"to-{host}", "type", "veth", "peer", "name", "eth0", "netns", host)
        ip("link", "set", f"to-{host}", "master", "hosts", "up")
        ip("-n", host, "addr", "add", f"{address}/24", "dev", "eth0")
        ip("-n", host, "link", "set", "eth0", "up")
        ip("-n", host, "link", "set", "lo", "up")


def ip(*arguments: str) -> None:
    subprocess.run(("ip", *arguments), check=True)


def start_ray(host: str, folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """A host's Ray; gives the process whose mounts and network are the host's."""
    own = folder / "own"
    if host == HEAD:
        role = f"--head --port=6379 --dashboard-host={ADDRESSES[HEAD]} --temp-dir={own}/ray --num-cpus=0"
    else:
        role = f"--address={ADDRESSES[HEAD]}:6379 --num-cpus=1"
    script = f"""
        hostname {host}
        mount -t tmpfs tmpfs {own}
        mkdir {own}/home {own}/tmp
        cd {own}
        exec ray start --block {role} --node-ip-address={ADDRESSES[host]} --disable-usage-stats
    """
    own_files = {"HOME": f"{own}/home", "TMPDIR": f"{own}/tmp", "TAILSWEEP_CACHE": f"{own}/cache"}
    return subprocess.Popen(
        ("ip", "netns", "exec", host, "unshare", "--uts", "--mount", "bash", "-euc", script),
        env={**environment, **own_files},
        stdout=(folder / f"{host}.log").open("wb"),
        stderr=subprocess.STDOUT,
    )


def alive_hosts() -> int:
    asked = urllib.request.Request(f"{JOBS}/nodes?view=summary", headers={"Authorization": f"Bearer {TOKEN}"})
    try:
        with urllib.request.urlopen(asked, timeout=5) as response:
            summary = json.load(response)["data"]["summary"]
    except (OSError, KeyError, ValueError):
        return 0
    return sum(node["raylet"].get("state") == "ALIVE" for node in summary)


def wait_until(reached: Callable[[], bool], event: str, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            raise SystemExit(f"in {seconds:.0f} s did not come: {event}")
        time.sleep(0.2)


def submit(name: str, folder: Path, environment: dict[str, str], *settings: str) -> subprocess.Popen[str]:
    """The demo sweep, from outside."""
    command = [
        sys.executable, "-m", "tailsweep", "cluster", "submit", "orchestrator/sweeps/demo.yaml", "--address", JOBS,
        "--storage", f"{folder}/shared/runs", "--set", f"name={name}",
    ]  # fmt: skip
    for setting in settings:
        command += ["--set", setting]
    print("$ tailsweep", *command[3:], flush=True)
    return subprocess.Popen(
        command, env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def to_its_end(job: subprocess.Popen[str]) -> dict[str, Any]:
    began = time.monotonic()
    printed, _ = job.communicate()
    seconds = time.monotonic() - began
    print(printed, f"\nexit status {job.returncode} after {seconds:.0f} s", sep="", flush=True)
    return {"status": job.returncode, "seconds": round(seconds, 1), "printed": printed}


def own_files(host: subprocess.Popen[bytes], folder: Path) -> dict[str, list[str]]:
    """What lies on a host's own disk: its cache by kinds, and the checkouts that jobs were run in."""
    pid = int(subprocess.run(("pgrep", "-P", str(host.pid)), capture_output=True, text=True).stdout.split()[0])
    seen = Path(f"/proc/{pid}/root{folder}/own")
    return {
        "cache": sorted(path.name for path in seen.glob("cache/*")),
        "jobs": sorted(path.name for path in seen.glob("ray/session_*/runtime_resources/working_dir_files/_ray_pkg_*")),
    }


def main(folder: Path) -> None:
    for part in ("shared", "own", "home"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    token = folder / "token"
    token.touch(0o600)
    token.write_text(TOKEN)
    environment = {
        **os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1",
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    environment.pop("PYTHONPATH", None)
    outside = {**environment, "HOME": str(folder / "home"), "TAILSWEEP_CACHE": str(folder / "home/cache")}
    make_network()
    began = time.monotonic()
    hosts = {host: start_ray(host, folder, environment) for host in ADDRESSES}
    wait_until(lambda: alive_hosts() == len(ADDRESSES), "three hosts")
    answer: dict[str, Any] = {"started": round(time.monotonic() - began, 1)}
    print(f"three hosts after {answer['started']} s", flush=True)

    answer["whole"] = to_its_end(submit("whole", folder, outside))
    answer["files"] = {host: own_files(process, folder) for host, process in hosts.items()}

    job = submit("cut", folder, outside)
    interrupted = folder / "shared/runs/cut"
    wait_until(lambda: len(reports(interrupted)) >= 4 or job.poll() is not None, "four reports")
    ip("link", "set", f"to-{SECOND}", "down")
    print(f"--- {SECOND} is cut off", flush=True)
    answer["cut"] = to_its_end(job)
    print("\n" + json.dumps(answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
