"""Estimate the memory of every part of a run: on a device, and on its node."""

from __future__ import annotations

from dataclasses import dataclass

from dtl.core.errors import DtlError
from dtl.core.units import format_bytes
from dtl.plan.memory import BYTES_PER_NUMBER, FP32_BYTES, USABLE_MEMORY
from dtl.plan.records import DecisionLog, Hardware, Layout, MemoryEstimate, ParameterCounts

COPIES_OF_EXPORT = 2  # in the dtype of the export, next to the gathered weights: one is read back


@dataclass(frozen=True)
class DeviceWork:
    """The bytes that a device needs besides the model state: in a training step, and in a batch of
    an evaluation, 0 where nothing is evaluated."""

    training: int
    evaluation: int


def estimate_memory(
    counts: ParameterCounts,
    layout: Layout,
    work: DeviceWork,
    *,
    model_state: int,
    exports_full_model: bool,
    hardware: Hardware,
) -> MemoryEstimate:
    """Return the estimate of a run. `model_state`: bytes on one device."""
    device_limit = usable_bytes(hardware)
    export = estimate_export_bytes(counts, zero_stage=layout.zero_stage)
    device = {"training": model_state + work.training}
    if work.evaluation:
        device["evaluation"] = model_state + work.evaluation
    device["export"] = model_state + export
    if layout.device == "cpu":
        device["export"] += estimate_export_copies(
            counts, dtype=layout.dtype, exports_full_model=exports_full_model
        )
        return MemoryEstimate(device, device_limit, {}, None)
    host = estimate_host_bytes(counts, layout, exports_full_model=exports_full_model)
    return MemoryEstimate(device, device_limit, host, hardware.host_memory_bytes)


def usable_bytes(hardware: Hardware) -> int:
    """Return the bytes of a device that are planned for."""
    return int(hardware.memory_bytes * USABLE_MEMORY)


def estimate_export_bytes(counts: ParameterCounts, *, zero_stage: int) -> int:
    """Return the bytes of a device that gathering the weights takes: under ZeRO the largest
    parameter in fp32. Tensors are gathered one by one, and moved to main memory."""
    return FP32_BYTES * counts.largest if zero_stage > 0 else 0


def estimate_export_copies(counts: ParameterCounts, *, dtype: str, exports_full_model: bool) -> int:
    """Return the bytes of main memory in which rank 0 exports: the gathered weights, a copy in the
    dtype of the export, and the copy that is read back."""
    width = BYTES_PER_NUMBER[dtype]
    if not exports_full_model:
        return counts.trainable * FP32_BYTES * (1 + COPIES_OF_EXPORT)
    gathered = counts.trainable * FP32_BYTES + counts.frozen * width
    return gathered + COPIES_OF_EXPORT * counts.total * width


def estimate_offload_bytes(counts: ParameterCounts, *, nodes: int) -> int:
    """Return the bytes of a node's main memory that an offloaded optimizer takes: fp32 master
    weights, the optimizer's moments and fp32 gradients, sharded over all nodes."""
    return -(-(counts.optimizer_state_bytes + 2 * FP32_BYTES * counts.trainable) // nodes)


def estimate_host_bytes(
    counts: ParameterCounts, layout: Layout, *, exports_full_model: bool
) -> dict[str, int]:
    """Return the most bytes of main memory on one node with GPUs.

    Every process reads the weights into it; at ZeRO 3 they share one copy of the files. An
    offloaded optimizer stays in it, and rank 0 exports from it.
    """
    width, quantized = BYTES_PER_NUMBER[layout.dtype], counts.quantized
    weights = (
        (counts.frozen - quantized.weights) * width
        + quantized.level_bytes
        + quantized.scale_bytes
        + counts.trainable * FP32_BYTES
    )
    offloads = layout.offload == "optimizer"
    optimizer = estimate_offload_bytes(counts, nodes=layout.nodes) if offloads else 0
    copies_of_weights = layout.processes_per_node if layout.zero_stage < 3 else 1
    copies = estimate_export_copies(
        counts, dtype=layout.dtype, exports_full_model=exports_full_model
    )
    return {
        "loading": copies_of_weights * weights,
        "training": optimizer,
        "export": optimizer + copies,
    }


def check_model_state_fits(state_bytes: int, *, processes: int, hardware: Hardware) -> None:
    """Raise DtlError if weights, gradients and optimizer alone are larger than the memory.

    `state_bytes`: of one rank. `processes`: of a node; on a CPU they share its memory.
    """
    sharing = processes if hardware.device == "cpu" else 1
    if state_bytes * sharing <= hardware.memory_bytes:
        return
    each = f"{sharing} processes, each with " if sharing > 1 else ""
    raise DtlError.of(
        "model.path",
        f"the model state of {each}{format_bytes(state_bytes)} is larger than the "
        f"{format_bytes(hardware.memory_bytes)} of {hardware.name}",
        "take a smaller model, strategy lora, fewer processes on this machine, or a higher "
        "layout.zero_stage on more machines",
    )


def log_memory(estimate: MemoryEstimate, log: DecisionLog) -> None:
    """Add the estimate to the log, with a warning where it exceeds what there is."""
    _log_parts("memory per device", estimate.device, estimate.device_limit, "are planned for", log)
    if estimate.host:
        _log_parts("main memory", estimate.host, estimate.host_limit, "per node", log)


def _log_parts(
    key: str, parts: dict[str, int], limit: int | None, meaning: str, log: DecisionLog
) -> None:
    most = max(parts.values())
    reason = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items())
    if limit is not None:
        reason += f"; {format_bytes(limit)} {meaning}"
        if most > limit:
            reason = f"warning: more than there is: {reason}"
    log.add(key, format_bytes(most), reason)
