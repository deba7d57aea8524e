"""The interface of backends: places that run jobs.

One file in this folder is one backend; the file's name is its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

UNFIT_NODE = 3  # exit code of a pre-flight check where another node would do
EXCLUDED_NODES = "excluded_nodes"  # a file in a run folder: names of unfit nodes, comma-separated
CANCELLED = "cancelled"  # a file in a run folder: its job must not restart by itself


@dataclass(frozen=True)
class Job:
    """A command for one run folder.

    `environment`: variables that it adds to this environment. The other fields are for backends
    that have a queue:

    `working_dir`: where the command runs. `time_limit_seconds`: how long it may take.
    `lead_seconds`: how long before that it is requested to save. `chain_length`: jobs that follow
    one another until the run is finished. `dependency`: id of a job that must succeed first, or,
    with `dependency_may_fail`, only end. `array_runs`: the run folders of a job array, in
    `run_folder`; each replaces `run_folder` in `argv`.
    """

    run_folder: Path
    argv: tuple[str, ...]
    environment: dict[str, str]
    name: str = "dtl"
    working_dir: Path = field(default_factory=Path.cwd)
    nodes: int = 1
    processes_per_node: int = 1
    time_limit_seconds: float | None = None
    lead_seconds: float = 0.0
    chain_length: int = 1
    dependency: str | None = None
    dependency_may_fail: bool = False
    array_runs: tuple[Path, ...] = ()


@dataclass(frozen=True)
class JobState:
    """The state of a job. `reason`: why, in the queue's own words."""

    state: Literal["queued", "running", "ended"]
    reason: str = ""


class Backend(ABC):
    """A place that runs jobs. A plugin file defines `Options` and a final `Plugin(Backend)`."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def render(self, job: Job) -> str:
        """Return what would be submitted, as text; change nothing."""

    @abstractmethod
    def check(self, job: Job) -> None:
        """Raise DtlError where the job would be rejected; start nothing."""

    @abstractmethod
    def submit(self, job: Job) -> tuple[str, ...]:
        """Start the job and return its ids: one per job of a chain, or per run of an array.

        Raises DtlError where it is rejected.
        """

    @abstractmethod
    def query_states(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        """Return the state of each job, by its id. Raises RunFailed where it cannot be queried."""

    @abstractmethod
    def cancel(self, job_id: str) -> None:
        """Request a running job to save and stop; remove a queued one from the queue."""

    @abstractmethod
    def log_files(self, job: Job) -> list[Path]:
        """Return the files of its output: one, or one per run of an array."""
