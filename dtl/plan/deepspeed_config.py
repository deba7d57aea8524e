"""Build DeepSpeed's config for a layout: every number is written out, none is "auto"."""

from __future__ import annotations

from typing import Any

from dtl.plan.records import Layout

BUCKET_SIZE = 50_000_000  # numbers in one collective
# As torch.amp.GradScaler, so that fp16 skips the same steps at every stage: an overflow halves the
# scale at once. The engine itself doubles it (the window is never reached).
LOSS_SCALING = {
    "loss_scale": 0,
    "initial_scale_power": 16,
    "loss_scale_window": 2**31,
    "hysteresis": 1,
    "min_loss_scale": 1,
}
PERSISTENCE_THRESHOLD = 10_000  # ZeRO-3 does not shard tensors with fewer numbers


def build_deepspeed_config(layout: Layout, *, gradient_clip: float | None) -> dict[str, Any] | None:
    """Return DeepSpeed's config, or None for stage 0: plain data parallelism needs no DeepSpeed."""
    if layout.zero_stage == 0:
        return None
    return {
        "train_micro_batch_size_per_gpu": layout.micro_batch,
        "gradient_accumulation_steps": layout.accumulation_steps,
        "train_batch_size": layout.micro_batch * layout.accumulation_steps * layout.world_size,
        # Without this key DeepSpeed would clip at 1.0; 0.0 means no clipping.
        "gradient_clipping": gradient_clip or 0.0,
        "bf16": {"enabled": layout.dtype == "bf16"},
        "fp16": {"enabled": layout.dtype == "fp16", **LOSS_SCALING},
        # Without these keys gradients are added and reduced in the dtype of the weights.
        "data_types": {"grad_accum_dtype": layout.grad_accum_dtype},
        "communication_data_type": layout.grad_accum_dtype,
        "zero_optimization": _zero_optimization(layout),
        "zero_allow_untested_optimizer": True,
        # On a CPU the optimizer is in main memory already.
        "zero_force_ds_cpu_optimizer": layout.offload == "optimizer" and layout.device == "cuda",
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }


def _zero_optimization(layout: Layout) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "stage": layout.zero_stage,
        "overlap_comm": layout.device == "cuda",
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": BUCKET_SIZE,
        "allgather_bucket_size": BUCKET_SIZE,
    }
    if layout.zero_stage == 3:
        settings |= {
            "stage3_prefetch_bucket_size": BUCKET_SIZE,
            "stage3_param_persistence_threshold": PERSISTENCE_THRESHOLD,
            "stage3_max_live_parameters": 1_000_000_000,
            "stage3_max_reuse_distance": 1_000_000_000,
            "stage3_gather_16bit_weights_on_model_save": False,
        }
    if layout.offload == "optimizer":
        settings["offload_optimizer"] = {"device": "cpu", "pin_memory": layout.device == "cuda"}
    return settings
