"""BatchNorm whose statistics are fp32 in a model in half precision."""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def use_fp32_statistics(model: nn.Module) -> None:
    """Have the BatchNorm layers of a model in bf16 or fp16 compute with fp32 scales and statistics.

    torch refuses to mix fp32 statistics with scales in half precision; and statistics in half
    precision stand still, because the update of a step is smaller than their rounding.
    """
    from torch.nn.modules.batchnorm import _BatchNorm

    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.forward = MethodType(_forward, module)  # type: ignore[method-assign]


def _forward(module: Any, x: Tensor) -> Tensor:
    """Normalize x (B, C, ...) as torch does; the result has its dtype."""
    from torch.nn.functional import batch_norm

    module._check_input_dim(x)
    has_statistics = module.running_mean is not None
    momentum = 0.0 if module.momentum is None else module.momentum
    if module.training and has_statistics:
        module.num_batches_tracked.add_(1)
        if module.momentum is None:  # a cumulative average
            momentum = 1.0 / float(module.num_batches_tracked)
    weight, bias = (None if each is None else each.float() for each in (module.weight, module.bias))
    for name in ("running_mean", "running_var") if has_statistics else ():
        statistic = getattr(module, name)
        statistic.data = statistic.data.float()
    return batch_norm(
        x,
        module.running_mean,
        module.running_var,
        weight,
        bias,
        training=module.training or not has_statistics,
        momentum=momentum,
        eps=module.eps,
    )
