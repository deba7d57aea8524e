"""Run Slurm's commands, and translate what they print."""

from __future__ import annotations

import getpass
import re
import subprocess
from collections.abc import Sequence
from functools import partial

from dtl.backends.base import JobState
from dtl.core.errors import DtlError, RunFailed

TIMEOUT_SECONDS = 60.0
# A word in Slurm's refusal, and what fixes it.
FIXES = {
    "account": "name yours by --account; `sacctmgr show associations user=$USER` lists them",
    "partition": "name another by --partition; `sinfo -s` lists them",
    "qos": "set qos in the site file to one that is yours",
    "time limit": "ask for less by --time",
    "dependency": "name by --after a job that is in the queue",
    "configuration": "ask for fewer nodes or GPUs, or another partition; `sinfo -N -l` lists them",
    "node count": "ask for fewer by --nodes; `sinfo -s` lists them",
    "not available": "ask for fewer nodes or GPUs, or another partition; `sinfo -N -l` lists them",
    "contact": "try again where Slurm answers: `scontrol ping`",
    "gres": "set gpu_request and gres in the site file; `sinfo -o '%P %G'` lists them",
}
OTHERWISE = "fix the request or the site file"
