"""Names of the tensors that optimizers keep for each parameter."""

from __future__ import annotations

from dtl.models.peft.adalora import IMPORTANCE, UNCERTAINTY

# AdamW; bitsandbytes with the scales of its blocks; Adafactor; Muon.
MOMENTS = (
    *("exp_avg", "exp_avg_sq", "state1", "state2", "absmax1", "absmax2"),
    *("exp_avg_sq_row", "exp_avg_sq_col", "momentum_buffer"),
)
WEIGHT_AVERAGE = "average"  # the exponential moving average of the weights
OPTIMIZER_STATE_NAMES = (*MOMENTS, WEIGHT_AVERAGE, IMPORTANCE, UNCERTAINTY)
INTEGER_STEP_MODULES = ("bitsandbytes", "transformers")  # torch's optimizers count in tensors
