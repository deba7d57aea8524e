"""Run Slurm's commands, and translate what they print."""

from __future__ import annotations

import getpass
import re
import subprocess
from collections import Counter
from collections.abc import Sequence
from functools import partial

from dtl.backends.base import JobState
from dtl.core.errors import DtlError, RunFailed

TIMEOUT_SECONDS = 60.0
# A word in the message of a rejected job, and what fixes it.
FIXES = {
    "account": "set yours with --account; `sacctmgr show associations user=$USER` lists them",
    "partition": "choose another with --partition; `sinfo -s` lists them",
    "qos": "set qos in the site file to one that is yours",
    "time limit": "request less with --time",
    "dependency": "set a job that is in the queue with --after",
    "configuration": "request fewer nodes or GPUs, or another partition; `sinfo -N -l` lists them",
    "node count": "request fewer with --nodes; `sinfo -s` lists them",
    "not available": "request fewer nodes or GPUs, or another partition; `sinfo -N -l` lists them",
    "contact": "try again where Slurm answers: `scontrol ping`",
    "gres": "set gpu_request and gres in the site file; `sinfo -o '%P %G'` lists them",
}
DEFAULT_FIX = "fix the request or the site file"

QUEUED = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
RUNNING = ("RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING")


def run_command(argv: Sequence[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands. `text`: its input.

    Raises DtlError where it is not installed, and RunFailed where it does not answer in time.
    """
    run = partial(subprocess.run, capture_output=True, text=True, check=False)
    try:
        done: subprocess.CompletedProcess[str] = run(argv, input=text, timeout=TIMEOUT_SECONDS)
    except FileNotFoundError:
        raise DtlError.of(
            argv[0], "there is no such command here", "use a login node of the cluster"
        ) from None
    except subprocess.TimeoutExpired:
        raise RunFailed.of(
            argv[0], f"does not answer within {TIMEOUT_SECONDS:.0f} s", FIXES["contact"]
        ) from None
    return done


def query_states(job_ids: Sequence[str]) -> dict[str, JobState]:
    """Return the state of each job, by its id; a job that squeue does not list has ended.

    Raises RunFailed where Slurm does not answer.
    """
    if not job_ids:
        return {}
    options = ["--user", getpass.getuser(), "--states=all", "--array", "--noheader"]
    done = run_command(["squeue", *options, "--format=%i|%T|%r"])
    if done.returncode:
        raise RunFailed.of("squeue", join_errors(done.stderr), FIXES["contact"])
    states = dict.fromkeys(job_ids, JobState("ended"))
    for line in done.stdout.splitlines():
        number, state, reason = line.strip().split("|", 2)
        if number in states:
            states[number] = _parse_state(state, reason)
    return states


def describe_unusable_nodes(
    partition: str | None, *, nodes: int, cpus: int, words: str
) -> str | None:
    """Return which nodes are down, drained or reserved, where that may be why a job cannot start
    now; None where it could not start on any of them, or where Slurm has another reason (`words`).

    `sbatch --test-only` fails for both with the same words, but sbatch accepts the former.
    """
    if not re.search("not available|busy|in use|not usable", words.lower()):
        return None
    chosen = ["--partition", partition] if partition is not None else []
    done = run_command(["sinfo", "--noheader", "--Node", "--format=%N|%T|%c", *chosen])
    if done.returncode:
        return None
    rows = {tuple(line.strip().split("|")) for line in done.stdout.splitlines()}
    fit = {name: state for name, state, count in rows if int(count) >= cpus}
    unusable = Counter(
        state.rstrip("*~#!%$@^-+")
        for state in fit.values()
        if not state.startswith(("idle", "mixed", "alloc", "compl")) or state.endswith("*")
    )
    if len(fit) < nodes or not unusable:
        return None
    counts = ", ".join(f"{count} {state}" for state, count in sorted(unusable.items()))
    return f"of {len(fit)} nodes {counts}"


def join_errors(output: str) -> str:
    """Return the errors that a command of Slurm printed, in one line."""
    lines = [re.sub(r"^\w+: (error|fatal): ", "", line) for line in output.splitlines()]
    return "; ".join(line.strip() for line in lines if line.strip()) or "it gives no reason"


def rejection(output: str) -> DtlError:
    """Return the error for a job that sbatch rejected: Slurm's own words, and what fixes it."""
    words = join_errors(output)
    fix = next((fix for word, fix in FIXES.items() if word in words.lower()), DEFAULT_FIX)
    return DtlError.of("sbatch", words, fix)


def _parse_state(state: str, reason: str) -> JobState:
    if state in QUEUED:
        return JobState("queued", "" if reason == "None" else reason)
    if state in RUNNING:
        return JobState("running", "" if state == "RUNNING" else state.lower())
    return JobState("ended", state.lower())
