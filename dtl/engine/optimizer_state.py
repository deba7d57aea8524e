"""Names of the tensors that optimizers keep for each parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from dtl.models.peft.adalora import IMPORTANCE, UNCERTAINTY

if TYPE_CHECKING:
    from torch import Tensor

# AdamW; bitsandbytes with the scales of its blocks; Adafactor; Muon.
MOMENTS = (
    *("exp_avg", "exp_avg_sq", "state1", "state2", "absmax1", "absmax2"),
    *("exp_avg_sq_row", "exp_avg_sq_col", "momentum_buffer"),
)
WEIGHT_AVERAGE = "average"  # the exponential moving average of the weights
OPTIMIZER_STATE_NAMES = (*MOMENTS, WEIGHT_AVERAGE, IMPORTANCE, UNCERTAINTY)
INTEGER_STEP_MODULES = ("bitsandbytes", "transformers")  # torch's optimizers count in tensors


def has_had_gradient(state: Mapping[str, Tensor]) -> bool:
    """Return whether a moment of a parameter's state is not zero: a step has had its gradient."""
    moments = [state[name] for name in MOMENTS if name in state]
    # 8-bit codes of zeros are not 0; the scales of the blocks, which are floats, are.
    return any(bool(each.any()) for each in moments if each.is_floating_point())
