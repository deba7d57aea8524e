"""Where it runs. One file in this folder is one backend; the file's name is its name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

UNFIT = 3  # exit code of a pre-flight where another node would do
UNFIT_NODES = "unfit_nodes"  # a file in a run folder: their names, with commas
CANCELLED = "cancelled"  # a file in a run folder: its job is not to start again by itself


@dataclass(frozen=True)
class Job:
    """A command for one run folder. `environment`: what it has beside ours.

    The rest is for backends that have a queue. `processes`: on each node; `seconds`: how long it
    may take; `lead_seconds`: how long before that it is asked to save; `links`: jobs that follow
    one another until the run is done; `after`: the id of a job that must have succeeded before, or,
    with `after_any`, ended.
    `cells`: the run folders of a grid, in the folder `run`; each has its own for `run` in argv.
    """

    run: Path
    argv: tuple[str, ...]
    environment: dict[str, str]
    name: str = "dtl"
    folder: Path = field(default_factory=Path.cwd)
    nodes: int = 1
    processes: int = 1
    seconds: float | None = None
    lead_seconds: float = 0.0
    links: int = 1
    after: str | None = None
    after_any: bool = False
    cells: tuple[Path, ...] = ()


@dataclass(frozen=True)
class JobState:
    """Where a job is. `reason`: why it is there, in the queue's own words."""

    phase: Literal["queued", "running", "ended"]
    reason: str = ""


class Backend(ABC):
    """A place that runs jobs. A plugin file defines `Options` and a final `Plugin(Backend)`."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def render(self, job: Job) -> str:
        """What would be submitted, as text; changes nothing."""

    @abstractmethod
    def check(self, job: Job) -> None:
        """Raises DtlError where the job would be refused; starts nothing."""

    @abstractmethod
    def submit(self, job: Job) -> tuple[str, ...]:
        """Start the job; its ids: one for each link, or for each cell. Raises DtlError."""

    @abstractmethod
    def states(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        """Where these jobs are. Raises RunFailed where nobody can tell."""

    @abstractmethod
    def cancel(self, job_id: str) -> None:
        """Ask a job to save and end; one that still waits just leaves the queue."""

    @abstractmethod
    def logs(self, job: Job) -> list[Path]:
        """The files it writes its output to: one, or one for each cell."""
