"""Site files: what a job script must contain on a cluster."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field, model_validator

from dtl.backends.base import SiteOptions
from dtl.config.schema.base import (
    ConfigFault,
    Record,
    control_character_faults,
    raise_config_faults,
)


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


class Site(SiteOptions):
    """What a job script must contain on a cluster. Read from slurm/clusters/SITE.yaml."""

    description: str = Field(min_length=1, description="the cluster, in one line")
    documentation: str = Field(default="", description="address of the user guide of the cluster")
    sources: dict[str, str] = Field(
        default_factory=dict, description="name of a field: the address of the page it comes from"
    )
    account_needed: bool = Field(
        default=False, description="whether a job without an account is rejected"
    )
    qos: str | None = Field(default=None, description="quality of service")
    constraint: str | None = Field(default=None, description="features that nodes must have")
    gpu_request: Literal["gpus-per-node", "gres", "gpus-per-task", "none"] = Field(
        default="gpus-per-node", description="sbatch flag that requests the GPUs"
    )
    gres: str = Field(
        default="gpu",
        description="generic resource of the GPUs, with its type if needed, as gpu:a100",
    )
    cpus_per_task: int = Field(default=1, ge=1, description="CPU cores per rank")
    memory: str | None = Field(default=None, description="main memory per node, for --mem")
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

    @property
    def host_memory_bytes(self) -> int | None:
        match = re.fullmatch(r"(\d+)([KMGT]?)B?", (self.memory or "").upper())
        if match is None or match[1] == "0":  # 0 is all memory of the node
            return None
        return int(match[1]) * 2 ** {"K": 10, "": 20, "M": 20, "G": 30, "T": 40}[match[2]]

    @model_validator(mode="after")
    def _check_values(self) -> Self:
        values = control_character_faults(self.model_dump())
        raise_config_faults([*self._variable_faults(), *values])
        return self

    def _variable_faults(self) -> Iterator[ConfigFault]:
        for name in self.environment:
            if not re.fullmatch(r"[A-Za-z_]\w*", name):
                yield ConfigFault(
                    "environment",
                    problem=f"'{name}' is not a valid variable name",
                    fix="use A-Z, a-z, 0-9 and _",
                )
