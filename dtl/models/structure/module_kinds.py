"""Modules and parameters of one kind: norms, convolutions, adapted layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dtl.models.full_shape import num_dimensions

if TYPE_CHECKING:
    from torch import nn


BATCH_NORM_STATISTICS = ("running_mean", "running_var")


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """Return the modules with running statistics of their inputs."""
    import torch

    return [
        module
        for module in model.modules()
        if isinstance(getattr(module, BATCH_NORM_STATISTICS[0], None), torch.Tensor)
    ]


def adapted_layers(model: nn.Module) -> list[Any]:
    """Return the layers that have an adapter of PEFT."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def norm_parameters(model: nn.Module) -> frozenset[str]:
    """Return the names of the one-dimensional parameters of normalization layers of any class."""
    return frozenset(
        f"{path}.{name}" if path else name
        for path, module in norm_modules(model)
        for name, parameter in module.named_parameters(recurse=False)
        if num_dimensions(parameter) == 1
    )


def norm_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return names and modules of the normalization layers of any class."""
    return [
        (path, module)
        for path, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
    ]


def convolution_kernels(model: nn.Module) -> list[nn.Parameter]:
    """Return the kernels of convolutions: weights with three dimensions or more."""
    return [parameter for parameter in model.parameters() if num_dimensions(parameter) > 2]


def has_expert_lists(model: nn.Module) -> bool:
    """Return whether experts are modules of their own, of which a forward pass uses some. Most
    families have one tensor for all experts, which every pass uses."""
    from torch import nn

    return any(
        "experts" in f"{name.rpartition('.')[2]} {type(module).__name__}".lower()
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.ModuleDict)
    )
