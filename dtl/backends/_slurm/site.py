"""Site files: what a job script must contain on a cluster."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from dtl.config.fault_messages import describe_faults
from dtl.config.schema.base import ConfigFault, Record, raise_config_faults
from dtl.config.yaml_document import read_yaml
from dtl.core.errors import DtlError, RunFailed, near
from dtl.core.package_files import find_package_folder
from dtl.core.units import parse_seconds


class Container(Record):
    """The image that the ranks run in; the batch shell does not."""

    kind: Literal["apptainer", "pyxis", "enroot"] = Field(description="what starts it")
    image: str = Field(min_length=1, description="file or address, as its starter takes it")
    mounts: tuple[str, ...] = Field(
        default=(),
        description="folders seen inside, as /path or /path:/inside; the run folder and the one of "
        "the command are there anyway",
    )
    options: tuple[str, ...] = Field(
        default=(),
        description="further flags of its starter; where there are GPUs, Apptainer has --nv "
        "beside them, unless --rocm is among them",
    )


class Site(Record):
    """A site: what a job script has to say on this cluster. Read from slurm/clusters/SITE.yaml."""

    description: str = Field(min_length=1, description="the cluster, in one line")
    documentation: str = Field(default="", description="address of the site's guide for users")
    sources: dict[str, str] = Field(
        default_factory=dict, description="a field's name: the address it was read at"
    )
    partition: str | None = Field(default=None, description="queue; left out: Slurm's default")
    account: str | None = Field(default=None, description="project that pays; left out: Slurm's")
    account_needed: bool = Field(
        default=False, description="whether a job without an account is refused"
    )
    qos: str | None = Field(default=None, description="quality of service")
    constraint: str | None = Field(default=None, description="features that nodes must have")
    gpus_per_node: int = Field(default=0, ge=0, description="GPUs of a node; 0: CPUs are used")
    gpu_request: Literal["gpus-per-node", "gres", "gpus-per-task", "none"] = Field(
        default="gpus-per-node", description="the flag by which GPUs are asked for"
    )
    gres: str = Field(default="gpu", description="name of the GPUs, perhaps typed, as gpu:a100")
    gpu_memory: float = Field(
        default=16.0, gt=0, description="GiB of one GPU; the plan's micro-batch comes of it"
    )
    bf16: bool = Field(default=True, description="whether the GPUs compute in bf16")
    cpus_per_task: int = Field(default=1, ge=1, description="CPU cores of a rank")
    memory: str | None = Field(default=None, description="main memory of a node, for --mem")
    exclusive: bool = Field(default=False, description="whether nodes are taken whole")
    max_time: str | None = Field(
        default=None, description="longest time limit of the partition, as 24:00:00 or 2-00:00:00"
    )
    launcher: Literal["srun", "torchrun"] = Field(
        default="srun", description="one srun task a rank, or one torchrun a node"
    )
    modules: tuple[str, ...] = Field(default=(), description="environment modules to load")
    purge_modules: bool = Field(default=False, description="unload all modules before")
    setup: tuple[str, ...] = Field(
        default=(), description="shell lines after the modules, each a whole command"
    )
    environment: dict[str, str] = Field(
        default_factory=dict, description="variables; $NAME in a value is that variable's value"
    )
    python: str | None = Field(
        default=None,
        description="interpreter of the job; left out: that of the desk, python3 in a container",
    )
    interface: str | None = Field(
        default=None, description="network between nodes, for NCCL and gloo, as hsn0 or ib0"
    )
    master_suffix: str = Field(
        default="", description="added to the first node's name where ranks meet, as i"
    )
    container: Container | None = Field(default=None, description="what the ranks run in")
    sbatch: tuple[str, ...] = Field(default=(), description="further flags of sbatch")
    srun: tuple[str, ...] = Field(default=(), description="further flags of srun")
    requeue: bool = Field(
        default=True, description="whether users may put a running job into the queue again"
    )
    restarts: int = Field(
        default=50, ge=0, description="times that one submission starts again, at most"
    )
    crashes: int = Field(default=3, ge=0, description="crashes after which it starts again")
    node_local: str | None = Field(
        default=None,
        description="folder on each node's own disk, as $TMPDIR, for compilers' caches",
    )
    offline: bool = Field(default=False, description="whether nodes cannot reach the internet")
    bandwidth_floor: float | None = Field(
        default=None, gt=0, description="GB/s that an all-reduce over the nodes has to reach"
    )
    lead_seconds: int = Field(
        default=300, ge=0, description="seconds before the time limit at which it saves, at least"
    )

    @model_validator(mode="after")
    def _can_be_written(self) -> Self:
        raise_config_faults([*self._name_faults(), *self._line_faults(), *self._time_faults()])
        return self

    def _name_faults(self) -> Iterator[ConfigFault]:
        for name in self.environment:
            if not re.fullmatch(r"[A-Za-z_]\w*", name):
                yield ConfigFault(
                    "environment",
                    problem=f"'{name}' is not a variable's name",
                    fix="use letters, digits and _",
                )

    def _line_faults(self) -> Iterator[ConfigFault]:
        for field in ("sbatch", "srun", "setup"):
            if any("\n" in line for line in getattr(self, field)):
                yield ConfigFault(
                    field, problem="an entry has several lines", fix="write one entry a line"
                )

    def _time_faults(self) -> Iterator[ConfigFault]:
        try:
            if self.max_time is not None:
                parse_seconds(self.max_time)
        except ValueError as fault:
            yield ConfigFault("max_time", problem=str(fault), fix="write it as 24:00:00")


def site_names() -> tuple[str, ...]:
    """The sites that dtl ships."""
    return tuple(
        sorted(file.stem for file in (find_package_folder("slurm") / "clusters").glob("*.yaml"))
    )


def read_site(site: str) -> Site:
    """A shipped site by its name, or a file. Raises DtlError with every fault found."""
    path = Path(site)
    if path.suffix not in (".yaml", ".yml"):
        if site not in site_names():
            fix = near(site, site_names()) or f"choose one of: {', '.join(site_names())}"
            raise DtlError.of("--cluster", f"no site is named '{site}'", f"{fix}; or name a file")
        path = find_package_folder("slurm") / "clusters" / f"{site}.yaml"
    if not path.is_file():
        raise DtlError.of("--cluster", f"there is no file {path}", "name a site, or its YAML file")
    document = read_yaml(path, record=Site)
    try:
        options = Site.model_validate(document.values)
    except ValidationError as error:
        raise DtlError(*document.faults, *describe_faults(error, document, str(path))) from None
    if document.faults:
        raise DtlError(*document.faults)
    return options
