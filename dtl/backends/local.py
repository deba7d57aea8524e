"""Run jobs on this machine, each in a session that survives its terminal."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from dtl.backends.base import Backend, Job, JobState
from dtl.config.schema.base import Record
from dtl.core.errors import DtlError


class Options(Record):
    """The local backend has no options."""


class Plugin(Backend):
    """Job ids are process ids."""

    def render(self, job: Job) -> str:
        settings = [f"{name}={shlex.quote(value)}" for name, value in job.environment.items()]
        return " ".join([*settings, shlex.join(job.argv)])

    def check(self, job: Job) -> tuple[str, ...]:
        if shutil.which(job.argv[0]) is None:
            raise DtlError.of(job.argv[0], "there is no such command here", "install it")
        return ()

    def submit(self, job: Job) -> tuple[str, ...]:
        job.run_folder.mkdir(parents=True, exist_ok=True)
        with self.log_files(job)[0].open("ab") as log:
            process = subprocess.Popen(
                job.argv,
                env={**os.environ, **job.environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        process.returncode = 0  # no ResourceWarning: a job may outlive this object
        return (str(process.pid),)

    def query_states(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        return {
            job_id: JobState("running" if _is_running(int(job_id)) else "ended")
            for job_id in job_ids
        }

    def cancel(self, job_id: str) -> None:
        try:
            os.kill(int(job_id), signal.SIGTERM)
        except (ProcessLookupError, PermissionError):
            return

    def log_files(self, job: Job) -> list[Path]:
        return [job.run_folder / "job.log"]


def _is_running(process: int) -> bool:
    try:
        ended, _ = os.waitpid(process, os.WNOHANG)
        return not ended
    except ChildProcessError:  # not started by this process
        try:
            os.kill(process, 0)
        except (ProcessLookupError, PermissionError):  # ended, or the id is now another user's
            return False
        return True
