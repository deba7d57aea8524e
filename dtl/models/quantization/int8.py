"""A linear layer of 8-bit weights that multiplies in the model's own dtype.

bitsandbytes itself rounds the inputs to 8 bits too, and on a GPU splits off columns by what else is
in the micro-batch (arXiv:2208.07339): then the loss would depend on the layout, evaluation on a CPU
would differ from training, and a merged model from the trained one.
"""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.nn import Linear8bitLt
from torch import Tensor
from torch.nn.functional import linear


class WeightOnly8bit(Linear8bitLt):  # type: ignore[misc]
    """The levels of bitsandbytes' layer, without its arithmetic."""

    compute_dtype: torch.dtype

    def forward(self, x: Tensor) -> Tensor:
        levels, scale = self.weight.data, row_scales(self)
        with torch.autocast(x.device.type, enabled=False):
            product: Tensor = _DequantizedLinear.apply(x.to(self.compute_dtype), levels, scale)
            if self.bias is not None:
                product = product + self.bias.to(product.dtype)
        return product.to(x.dtype)


class _DequantizedLinear(torch.autograd.Function):
    """x (..., in) times the weight of levels (out, in) and scales (out); only these are kept for
    the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(levels, scale)
        return linear(x, dequantize_int8(levels, scale, x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        levels, scale = ctx.saved_tensors
        return gradient @ dequantize_int8(levels, scale, gradient.dtype), None, None


def dequantize_int8(levels: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight: a row's largest number is its scale, and has the level 127."""
    return (levels.float() * (scale / 127).unsqueeze(1)).to(dtype)


def row_scales(layer: Linear8bitLt) -> Tensor:
    """Of each row; bitsandbytes moves it where it first computes with it."""
    scale: Tensor = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    return scale
