"""Record which job was submitted for a run, and to which queue: job.json in the run folder."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dtl.backends.base import CANCELLED, Backend, SiteOptions
from dtl.config import registry
from dtl.core.files import read_record, write_record, write_text

FILE = "job.json"
CHAIN_JOBS = "chain_jobs"  # ids of the later jobs of a chain, which the job script may cancel
LAUNCHES = "launches"  # one line per submission, and per start and end of a job


@dataclass(frozen=True)
class Submission:
    """A submitted job.

    `options`: those of the backend at that time. `working_dir`: where the command was run. `log`:
    the file of the job's output.
    """

    backend: str
    options: dict[str, Any]
    nodes: int
    processes_per_node: int
    time_limit_seconds: float | None
    chain_length: int
    working_dir: str
    log: str
    job_ids: tuple[str, ...] = ()

    @classmethod
    def load(cls, run: Path) -> Submission | None:
        """Return the last submission of a run folder; None where nothing was submitted. Raises
        DtlError if it is damaged."""
        if not (run / FILE).is_file():
            return None
        stored = read_record(run / FILE)
        return cls(**{**stored, "job_ids": tuple(stored["job_ids"])})

    def open_backend(self) -> Backend:
        """Return the backend that knows the job ids."""
        plugin: Backend = registry.load("backends", self.backend).Plugin(self.load_options())
        return plugin

    def load_options(self) -> SiteOptions:
        """Return the options of the backend."""
        record: type[SiteOptions] = registry.load_options("backends", self.backend)
        return record.model_validate(self.options)

    def record_start(self, run: Path) -> None:
        """Write it into a run folder before there are job ids: a job may start at once."""
        (run / CANCELLED).unlink(missing_ok=True)
        (run / CHAIN_JOBS).unlink(missing_ok=True)
        with (run / LAUNCHES).open("a", encoding="utf-8") as file:
            file.write(f"submitted {time.time():.0f}\n")
        write_record(run / FILE, asdict(self))

    def record_job_ids(self, run: Path, job_ids: tuple[str, ...]) -> None:
        """Write the job ids into a run folder."""
        write_record(run / FILE, asdict(replace(self, job_ids=job_ids)))
        if job_ids[1:]:
            write_text(run / CHAIN_JOBS, " ".join(job_ids[1:]) + "\n", sync=True)


def record_first_step(run: Path) -> None:
    """Write that a start of the run's job has made a step, so that the job script counts it as
    progress; nothing outside of such a job."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is not None and (run / LAUNCHES).is_file():
        with (run / LAUNCHES).open("a", encoding="utf-8") as file:
            file.write(f"step {job} {time.time():.0f}\n")


def count_starts(run: Path) -> int:
    """Return how often the last submission has started so far."""
    path = run / LAUNCHES
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    lines = text.splitlines()
    words = [line.partition(" ")[0] for line in lines]
    last = len(words) - words[::-1].index("submitted") if "submitted" in words else 0
    return words[last:].count("begin")
