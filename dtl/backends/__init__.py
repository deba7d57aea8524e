"""Where it runs. One file in this folder is one backend; the file's name is its name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

JobState = Literal["running", "ended"]


@dataclass(frozen=True)
class Job:
    """A command for one run folder. `environment`: what it has beside ours."""

    run: Path
    argv: tuple[str, ...]
    environment: dict[str, str]


class Backend(ABC):
    """A place that runs jobs. A plugin file defines `Options` and a final `Plugin(Backend)`."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def render(self, job: Job) -> str:
        """What would be submitted, as text; changes nothing."""

    @abstractmethod
    def submit(self, job: Job) -> str:
        """Start the job; its id."""

    @abstractmethod
    def state(self, job_id: str) -> JobState:
        """Whether a job still runs."""

    @abstractmethod
    def cancel(self, job_id: str) -> None:
        """Ask a job to save and end."""

    @abstractmethod
    def logs(self, job: Job) -> list[Path]:
        """The files it writes its output to."""
