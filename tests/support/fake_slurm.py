"""Stand-ins for what a Slurm job finds on its nodes: srun, scontrol, ray and python, as short bash scripts.

srun starts its tasks on this machine, ray waits until it is ended, and both, like python, write down how they
were called. With ``real_ray`` only srun and scontrol are stood in for.
"""

import contextlib
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil
from support.ending import still_running

# Options first, then the command; a process per task, each with the variables that Slurm gives it. Like Slurm's, it
# forwards signals to its tasks.
SRUN = r"""#!/bin/bash
echo "srun $*" >> "$CALLS"
while [[ $1 == --* ]]; do
    case $1 in
        --ntasks=*) tasks=${1#*=} ;;
        --nodelist=*) export ON=${1#*=} ;;
        --exclude=*) export ON=not-${1#*=} SLURM_STEP_ID=1 ;;
    esac
    shift
done
export SLURM_STEP_ID=${SLURM_STEP_ID:-0}
children=()
for ((SLURM_PROCID = 0; SLURM_PROCID < tasks; SLURM_PROCID++)); do
    export SLURM_PROCID
    "$@" &
    children+=("$!")
done
trap 'kill "${children[@]}" 2> /dev/null' TERM
status=0
for child in "${children[@]}"; do
    while kill -0 "$child" 2> /dev/null; do wait "$child" || status=$?; done
done
exit "$status"
"""
SCONTROL = r"""#!/bin/bash
echo "scontrol $*" >> "$CALLS"
if [ "$1 $2" = "show hostnames" ]; then tr , '\n' <<< "$3"; fi
"""
GETENT = r"""#!/bin/bash
echo "127.0.1.1 STREAM $2"
echo "127.0.0.2 STREAM $2"
"""
RAY = r"""#!/bin/bash
token="token $(stat -c %a "$RAY_AUTH_TOKEN_PATH") $(cat "$RAY_AUTH_TOKEN_PATH") in $RAY_AUTH_MODE mode"
folder="folder $(stat -c %a "$(dirname "$RAY_AUTH_TOKEN_PATH")")"
echo "ray $* [on $ON, $token, $folder, key $WANDB_API_KEY]" >> "$CALLS"
echo $$ >> "$PIDS"
if [ -n "$RAY_FAILS" ]; then
    echo "no such interface"
    exit 1
fi
sleep 300 &
trap 'kill $!; echo "ray ended" >> "$CALLS"; exit 143' TERM
wait
"""
# The sweep is $SWEEP, a line of bash; everything else is Python itself.
PYTHON = r"""#!/bin/bash
case "$1 $2" in
    "-m tailsweep")
        echo "python $* [at $RAY_ADDRESS, key $WANDB_API_KEY]" >> "$CALLS"
        eval "$SWEEP" ;;
    "-m tailsweep.clusters.nodes.wait_for_nodes")
        echo "python $*" >> "$CALLS"
        until [ "$(grep -c ^ray "$CALLS")" -ge "$3" ]; do sleep 0.02; done
        if [ -n "$RAY_FAILS" ]; then exec sleep 60; fi ;; # not as a child, which would outlive the signal
    "-c from"*) exit "${NO_PACKAGE:-0}" ;;
    *) exec "$REAL_PYTHON" "$@" ;;
esac
"""
# A sweep that runs on; "sweeping" is written once a signal can stop it.
ON_TERM = 'sleep 300 & trap \'kill $!; echo stopped >> "$CALLS"; exit 1\' TERM; echo sweeping >> "$CALLS"; wait'


@dataclass
class Job:
    """A job of Slurm's, as the script sees it; ``call`` runs the script, again where the job was queued again."""

    folder: Path
    script: str
    job_id: int
    real_ray: bool = False

    def __post_init__(self) -> None:
        self.tools = self.folder / "tools"
        self.tools.mkdir(parents=True)
        stands = {"srun": SRUN, "scontrol": SCONTROL, "getent": GETENT}
        for name, text in (stands if self.real_ray else stands | {"ray": RAY, "python": PYTHON}).items():
            (self.tools / name).write_text(text)
            (self.tools / name).chmod(0o755)
        (self.folder / "script.sh").write_text(self.script)
        self.calls_file, self.pids_file = self.folder / "calls", self.folder / "pids"
        for file in (self.calls_file, self.pids_file):
            file.touch()

    def start(self, nodes: str = "node-a,node-b", **variables: str) -> subprocess.Popen[str]:
        import sys

        environment = {
            "HOME": str(self.folder),
            "PATH": f"{self.tools}:{Path(sys.executable).parent}:/usr/bin:/bin",
            "REAL_PYTHON": sys.executable,
            "CALLS": str(self.calls_file),
            "PIDS": str(self.pids_file),
            "SLURM_JOB_ID": str(self.job_id),
            "SLURM_JOB_NODELIST": nodes,
            "RAY_FAILS": "",
            "WANDB_API_KEY": "",
        }
        return subprocess.Popen(
            ["bash", str(self.folder / "script.sh")],
            cwd=self.folder,
            env=environment | variables,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines()

    @property
    def left_running(self) -> list[int]:
        started = []
        for pid in {int(pid) for pid in self.pids_file.read_text().split()}:
            with contextlib.suppress(psutil.NoSuchProcess):
                started.append(psutil.Process(pid))
        return [process.pid for process in still_running(started, 0)]

    @property
    def left_behind(self) -> list[str]:
        """Folders of the job's own that it made and did not remove."""
        return [*map(str, self.folder.glob(".tailsweep-*")), *map(str, Path("/tmp").glob(f"ts-{self.job_id}-*"))]


def free_job_id() -> int:
    """No other test's at the same time: their ports are told apart by it."""
    return 100_000 + os.getpid() * 7 % 890_000
