"""This machine: a process group that goes on when the terminal closes."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from pathlib import Path

from dtl.backends import Backend, Job, JobState
from dtl.config.record import Record


class Options(Record):
    """The local backend has no options."""


class Plugin(Backend):
    """Job ids are process ids."""

    def render(self, job: Job) -> str:
        settings = [f"{name}={shlex.quote(value)}" for name, value in job.environment.items()]
        return " ".join([*settings, shlex.join(job.argv)])

    def submit(self, job: Job) -> str:
        job.run.mkdir(parents=True, exist_ok=True)
        with self.logs(job)[0].open("ab") as log:
            process = subprocess.Popen(
                job.argv,
                env={**os.environ, **job.environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        process.returncode = 0  # a job may outlive this object, which is then silent about it
        return str(process.pid)

    def state(self, job_id: str) -> JobState:
        try:
            ended, _ = os.waitpid(int(job_id), os.WNOHANG)
            return "ended" if ended else "running"
        except ChildProcessError:  # not started by this process
            try:
                os.kill(int(job_id), 0)
            except (ProcessLookupError, PermissionError):  # gone; or its number is another user's
                return "ended"
            return "running"

    def cancel(self, job_id: str) -> None:
        try:
            os.kill(int(job_id), signal.SIGTERM)
        except (ProcessLookupError, PermissionError):
            return

    def logs(self, job: Job) -> list[Path]:
        return [job.run / "job.log"]
