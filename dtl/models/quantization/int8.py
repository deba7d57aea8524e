"""A linear layer with 8-bit weights that multiplies in the model's dtype.

bitsandbytes itself also rounds the inputs to 8 bits, and on a GPU separates columns depending on
the other examples of the micro-batch (arXiv:2208.07339). Then the loss would depend on the layout,
evaluation on a CPU would differ from training, and a merged model from the trained one.
"""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.nn import Linear8bitLt
from torch import Tensor
from torch.nn.functional import linear


class WeightOnly8bit(Linear8bitLt):  # type: ignore[misc]
    """bitsandbytes' layer with its int8 levels, but a product in `compute_dtype`."""

    compute_dtype: torch.dtype

    def forward(self, x: Tensor) -> Tensor:
        levels, scale = self.weight.data, row_scales(self)
        with torch.autocast(x.device.type, enabled=False):
            product: Tensor = _DequantizedLinear.apply(x.to(self.compute_dtype), levels, scale)
            if self.bias is not None:
                product = product + self.bias.to(product.dtype)
        return product.to(x.dtype)


class _DequantizedLinear(torch.autograd.Function):
    """x (..., in) times the transposed weight, from int8 levels (out, in) and fp32 scales (out).

    Only levels and scales are saved for the backward pass. The result is (..., out), in x's dtype.
    """

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
    """Return the weight (out, in): the largest absolute value of a row is its scale, level 127."""
    return (levels.float() * (scale / 127).unsqueeze(1)).to(dtype)


def row_scales(layer: Linear8bitLt) -> Tensor:
    """Return the fp32 scales (out) of a layer; bitsandbytes moves them at the first forward."""
    scale: Tensor = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    return scale
