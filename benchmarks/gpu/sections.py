"""All sections, in groups: each group runs in a process of its own, the most important first."""

from __future__ import annotations

from functools import partial

from benchmarks.gpu import commands, memory, numbers, speed
from benchmarks.gpu.runs import Section

GROUPS: dict[str, dict[str, Section]] = {
    "commands": {
        "first run (dtl train)": commands.first_run,
        "killed with SIGKILL": commands.killed_run,
    },
    "numbers": {
        "fp32 beside a CPU": partial(numbers.losses_on_cpu, dtype="fp32"),
        "bf16 beside a CPU": partial(numbers.losses_on_cpu, dtype="bf16"),
        "ZeRO 0 to 3": numbers.zero_stages,
        "sums of gradients in bf16": numbers.sums_of_gradients,
        "resume": numbers.resumed_run,
        "fp16 loss scaling": numbers.loss_scaler,
        "nf4": partial(numbers.quantized_base, kind="nf4"),
        "int8": partial(numbers.quantized_base, kind="int8"),
        "paged optimizer": numbers.paged_optimizer,
        "attention": numbers.attention,
        "object collectives": numbers.object_collectives,
        "planned and measured state": memory.planned_state,
    },
    "large": {
        "evaluation, long rows": memory.long_evaluation,
        "LoRA, 8 B": speed.large_lora,
        "full tuning, 8 B": speed.large_full,
        "Whisper large": speed.whisper,
    },
    "offload": {"optimizer offload": memory.offload},
}
