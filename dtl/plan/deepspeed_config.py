"""DeepSpeed's config for a layout, every number written out: nothing is left to "auto"."""

from __future__ import annotations

from typing import Any

from dtl.plan.records import Layout

BUCKET = 50_000_000  # numbers exchanged at once
PERSISTENT = 10_000  # ZeRO-3 leaves tensors smaller than this whole


def deepspeed_config(layout: Layout, *, gradient_clip: float | None) -> dict[str, Any] | None:
    """None for stage 0: plain data parallelism needs no DeepSpeed."""
    if layout.zero == 0:
        return None
    return {
        "train_micro_batch_size_per_gpu": layout.micro_batch,
        "gradient_accumulation_steps": layout.accumulation,
        "train_batch_size": layout.micro_batch * layout.accumulation * layout.ranks,
        # Left out, DeepSpeed would clip at 1.0; 0.0 means no clipping.
        "gradient_clipping": gradient_clip or 0.0,
        "bf16": {"enabled": layout.dtype == "bf16"},
        "fp16": {"enabled": layout.dtype == "fp16", "loss_scale": 0, "initial_scale_power": 16},
        "zero_optimization": _zero(layout),
        "zero_allow_untested_optimizer": True,
        # On a CPU the optimizer already lives where it would be offloaded to.
        "zero_force_ds_cpu_optimizer": layout.offload == "optimizer" and layout.device == "cuda",
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }


def _zero(layout: Layout) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "stage": layout.zero,
        "overlap_comm": layout.device == "cuda",
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": BUCKET,
        "allgather_bucket_size": BUCKET,
    }
    if layout.zero == 3:
        settings |= {
            "stage3_prefetch_bucket_size": BUCKET,
            "stage3_param_persistence_threshold": PERSISTENT,
            "stage3_max_live_parameters": 1_000_000_000,
            "stage3_max_reuse_distance": 1_000_000_000,
            "stage3_gather_16bit_weights_on_model_save": False,
        }
    if layout.offload == "optimizer":
        settings["offload_optimizer"] = {"device": "cpu", "pin_memory": layout.device == "cuda"}
    return settings
