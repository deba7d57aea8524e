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
from dtl.core.errors import DtlError, near
from dtl.core.package_files import find_package_folder
from dtl.core.units import parse_seconds


class Container(Record):
    """The container that the ranks run in; the batch shell runs outside it."""

    kind: Literal["apptainer", "pyxis", "enroot"] = Field(description="container runtime")
    image: str = Field(
        min_length=1, description="file or address of the image, as the runtime takes it"
    )
    mounts: tuple[str, ...] = Field(
        default=(),
        description="folders to mount, as /path or /path:/inside; the run folder and the working "
        "directory are always mounted",
    )
    options: tuple[str, ...] = Field(
        default=(),
        description="further flags of the runtime; with GPUs, Apptainer also gets --nv, unless "
        "--rocm is among them",
    )


class Site(Record):
    """What a job script must contain on a cluster. Read from slurm/clusters/SITE.yaml."""

    description: str = Field(min_length=1, description="the cluster, in one line")
    documentation: str = Field(default="", description="address of the user guide of the cluster")
    sources: dict[str, str] = Field(
        default_factory=dict, description="name of a field: the address of the page it comes from"
    )
    partition: str | None = Field(default=None, description="partition; default: that of Slurm")
    account: str | None = Field(
        default=None, description="account that is charged; default: that of Slurm"
    )
    account_needed: bool = Field(
        default=False, description="whether a job without an account is rejected"
    )
    qos: str | None = Field(default=None, description="quality of service")
    constraint: str | None = Field(default=None, description="features that nodes must have")
    gpus_per_node: int = Field(default=0, ge=0, description="GPUs per node; 0: a CPU cluster")
    gpu_request: Literal["gpus-per-node", "gres", "gpus-per-task", "none"] = Field(
        default="gpus-per-node", description="sbatch flag that requests the GPUs"
    )
    gres: str = Field(
        default="gpu",
        description="generic resource of the GPUs, with its type if needed, as gpu:a100",
    )
    gpu_memory: float = Field(
        default=16.0,
        gt=0,
        description="GiB of memory of one GPU; the plan chooses the micro-batch by it",
    )
    bf16: bool = Field(default=True, description="whether the GPUs support bf16")
    cpus_per_task: int = Field(default=1, ge=1, description="CPU cores per rank")
    memory: str | None = Field(default=None, description="main memory per node, for --mem")
    exclusive: bool = Field(default=False, description="whether jobs get nodes of their own")
    max_time: str | None = Field(
        default=None, description="longest time limit of the partition, as 24:00:00 or 2-00:00:00"
    )
    launcher: Literal["srun", "torchrun"] = Field(
        default="srun", description="one srun task per rank, or one torchrun per node"
    )
    modules: tuple[str, ...] = Field(default=(), description="environment modules to load")
    purge_modules: bool = Field(default=False, description="whether to unload all modules first")
    setup: tuple[str, ...] = Field(
        default=(), description="shell lines after the modules, each a complete command"
    )
    environment: dict[str, str] = Field(
        default_factory=dict, description="environment variables; $NAME in a value is expanded"
    )
    python: str | None = Field(
        default=None,
        description="interpreter of the job; default: the one that submits, python3 in a container",
    )
    interface: str | None = Field(
        default=None,
        description="network interface between nodes, for NCCL and gloo, as hsn0 or ib0",
    )
    master_suffix: str = Field(
        default="", description="suffix of the first node's name for the rendezvous, as i"
    )
    container: Container | None = Field(default=None, description="container that the ranks run in")
    sbatch: tuple[str, ...] = Field(default=(), description="further flags of sbatch")
    srun: tuple[str, ...] = Field(default=(), description="further flags of srun")
    requeue: bool = Field(default=True, description="whether users may requeue a running job")
    restarts: int = Field(default=50, ge=0, description="most restarts of one submission")
    crashes: int = Field(default=3, ge=0, description="most crashes after which it restarts")
    node_local: str | None = Field(
        default=None,
        description="folder on each node's own disk, as $TMPDIR, for the caches of compilers",
    )
    offline: bool = Field(default=False, description="whether nodes have no access to the internet")
    bandwidth_floor: float | None = Field(
        default=None, gt=0, description="lowest bandwidth of an all-reduce over the nodes, GB/s"
    )
    lead_seconds: int = Field(
        default=300,
        ge=0,
        description="seconds before the time limit at which the run saves and stops, at least",
    )

    @model_validator(mode="after")
    def _check_values(self) -> Self:
        raise_config_faults([*self._variable_faults(), *self._line_faults(), *self._time_faults()])
        return self

    def _variable_faults(self) -> Iterator[ConfigFault]:
        for name in self.environment:
            if not re.fullmatch(r"[A-Za-z_]\w*", name):
                yield ConfigFault(
                    "environment",
                    problem=f"'{name}' is not a valid variable name",
                    fix="use A-Z, a-z, 0-9 and _",
                )

    def _line_faults(self) -> Iterator[ConfigFault]:
        for field in ("sbatch", "srun", "setup"):
            if any("\n" in line for line in getattr(self, field)):
                yield ConfigFault(
                    field, problem="an entry has several lines", fix="write one entry per line"
                )

    def _time_faults(self) -> Iterator[ConfigFault]:
        try:
            if self.max_time is not None:
                parse_seconds(self.max_time)
        except ValueError as error:
            yield ConfigFault("max_time", problem=str(error), fix="write it as 24:00:00")


def list_sites() -> tuple[str, ...]:
    """Return the names of the sites that dtl ships."""
    return tuple(
        sorted(file.stem for file in (find_package_folder("slurm") / "clusters").glob("*.yaml"))
    )


def read_site(site: str) -> Site:
    """Read a shipped site by its name, or a file. Raises DtlError with all faults of the file."""
    path = Path(site)
    if path.suffix not in (".yaml", ".yml"):
        if site not in list_sites():
            fix = near(site, list_sites()) or f"choose one of: {', '.join(list_sites())}"
            raise DtlError.of("--cluster", f"no site is named '{site}'", f"{fix}, or use a file")
        path = find_package_folder("slurm") / "clusters" / f"{site}.yaml"
    if not path.is_file():
        raise DtlError.of("--cluster", f"there is no file {path}", "use a site or a YAML file")
    document = read_yaml(path, record=Site)
    try:
        options = Site.model_validate(document.values)
    except ValidationError as error:
        raise DtlError(*document.faults, *describe_faults(error, document, str(path))) from None
    if document.faults:
        raise DtlError(*document.faults)
    return options
