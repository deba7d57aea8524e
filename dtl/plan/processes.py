"""Choose the number of nodes and of processes on each."""

from __future__ import annotations

from dataclasses import dataclass

from dtl.config.schema import RunConfig
from dtl.core.errors import DtlError
from dtl.core.parallel_dims import ParallelDims
from dtl.plan.records import DecisionLog, ExternalLaunch
from dtl.plan.request import PlanRequest


@dataclass(frozen=True)
class ProcessCount:
    """The processes of a run."""

    nodes: int
    per_node: int

    @property
    def parallel_dims(self) -> ParallelDims:
        """The parallel dimensions of all processes."""
        return ParallelDims(self.nodes * self.per_node)

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.parallel_dims.world_size


def choose_processes(request: PlanRequest, log: DecisionLog) -> ProcessCount:
    """Return what the external launcher fixes, else what the config sets, else one process per GPU.

    Raises DtlError where the devices or the global batch do not suffice.
    """
    layout, hardware = request.config.layout, request.hardware
    examples = request.batching.examples_per_step
    if request.external is not None:
        count = _count_of_external_launch(request.external)
        log.add("processes", count.world_size, f"fixed by {request.external.launcher}")
        check_batch_size(request.config, examples, count.world_size)
        return count
    if layout.processes_per_node is not None:
        count = ProcessCount(layout.nodes, layout.processes_per_node)
        if hardware.device == "cuda" and count.nodes == 1:
            _check_gpus(count.per_node, hardware.device_count)
        check_batch_size(request.config, examples, count.world_size)
        log.add("processes", count.world_size, "layout.processes_per_node")
        return count
    available = hardware.device_count if hardware.device == "cuda" else 1
    count = ProcessCount(layout.nodes, max(1, min(available, examples // layout.nodes)))
    reason = f"one per GPU ({hardware.name})" if hardware.device == "cuda" else "no GPU was found"
    log.add("processes", count.world_size, reason)
    return count


def check_batch_size(config: RunConfig, examples: int, world_size: int) -> None:
    """Raise DtlError where some processes would have no example in most steps."""
    if world_size <= examples:
        return
    size = config.train.global_batch
    if size.unit == "examples":
        problem, fix = f"{size} cannot feed {world_size} processes", f"to {world_size} or more"
    else:
        problem = (
            f"{size} are {examples} examples on average, and cannot feed {world_size} processes"
        )
        fix = "higher, or use fewer processes"
    raise DtlError.of("train.global_batch", problem, f"set train.global_batch {fix}")


def _count_of_external_launch(external: ExternalLaunch) -> ProcessCount:
    nodes, remainder = divmod(external.world_size, external.local_world_size)
    if remainder:
        raise DtlError.of(
            external.launcher,
            f"{external.world_size} processes cannot be divided into nodes of "
            f"{external.local_world_size}",
            "start the same number on each node",
        )
    return ProcessCount(nodes, external.local_world_size)


def _check_gpus(processes: int, gpus: int) -> None:
    if processes > gpus:
        raise DtlError.of(
            "layout.processes_per_node",
            f"{processes} processes need a GPU each; this machine has {gpus}",
            f"set layout.processes_per_node to {gpus} or less",
        )
