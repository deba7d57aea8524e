"""The interface of backends: places that run jobs.

One file in this folder is one backend; the file's name is its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from dtl.config.schema.base import ConfigFault, Record, check_duration, raise_config_faults

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
    `run_folder`; each replaces `run_folder` in `argv`. `writes_steps`: the command writes its
    first step into `launches`, so that starts without one are counted.
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
    writes_steps: bool = True


@dataclass(frozen=True)
class JobState:
    """The state of a job. `reason`: why, in the queue's own words."""

    state: Literal["queued", "running", "ended"]
    reason: str = ""


class SiteOptions(Record):
    """What `dtl submit` needs to know of any cluster. Base of the options that a site file has."""

    backend: str = Field(
        default="slurm", description="backend that submits the jobs; it has the other fields"
    )
    partition: str | None = Field(
        default=None, description="partition; default: that of the cluster"
    )
    account: str | None = Field(
        default=None, description="account that is charged; default: that of the cluster"
    )
    gpus_per_node: int = Field(default=0, ge=0, description="GPUs per node; 0: a CPU cluster")
    gpu_memory: float | None = Field(
        default=None,
        gt=0,
        description="GiB of memory of one GPU, required where there are GPUs: the plan shards the "
        "model and chooses the batches by it",
    )
    bf16: bool = Field(default=True, description="whether the GPUs support bf16")
    exclusive: bool = Field(default=False, description="whether jobs get nodes of their own")
    max_time: Annotated[str | None, AfterValidator(check_duration)] = Field(
        default=None, description="longest time limit of the partition, as 24:00:00 or 2-00:00:00"
    )
    lead_seconds: int = Field(
        default=300,
        ge=0,
        description="seconds before the time limit at which the run saves and stops, at least",
    )

    @property
    def host_memory_bytes(self) -> int | None:
        """Main memory of a node that a job gets; None: unknown."""
        return None

    @model_validator(mode="after")
    def _check_gpu_memory(self) -> Self:
        if self.gpus_per_node and self.gpu_memory is None:
            raise_config_faults(
                [
                    ConfigFault(
                        "gpu_memory",
                        problem="the memory of the GPUs is missing, and the plan depends on it",
                        fix="set the GiB of one GPU, such as 80",
                    )
                ]
            )
        return self


class Backend(ABC):
    """A place that runs jobs. A plugin file defines `Options` and a final `Plugin(Backend)`."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def render(self, job: Job) -> str:
        """Return what would be submitted, as text; change nothing."""

    @abstractmethod
    def check(self, job: Job) -> tuple[str, ...]:
        """Return warnings, such as why the job would wait; start nothing. Raises DtlError where it
        would be rejected."""

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
