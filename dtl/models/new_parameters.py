"""Write parameters that the weight files of a model do not contain."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dtl.models.full_shape import full_shape
from dtl.models.load import LoadedModel

if TYPE_CHECKING:
    from torch import nn


def init_new_parameters(
    network: nn.Module,
    new_parameters: frozenset[str],
    *,
    seed: int,
    write_parameter: Callable[..., None],
) -> None:
    """Draw the new parameters from (seed, name), so that they do not depend on the layout.

    Matrices are normal with the model's `initializer_range`; vectors are ones for the weight of a
    norm, else zeros. `write_parameter(parameter, value)` writes a full fp32 tensor, also into a
    partitioned parameter.
    """
    import hashlib

    import torch

    spread = getattr(network.config, "initializer_range", None) or 0.02
    for name, parameter in network.named_parameters():
        if name not in new_parameters:
            continue
        shape = full_shape(parameter)
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        if len(shape) > 1:
            value = torch.randn(tuple(shape), generator=generator) * spread
        else:
            value = (
                torch.ones(tuple(shape)) if name.endswith("weight") else torch.zeros(tuple(shape))
            )
        write_parameter(parameter, value)


def write_language_weights(loaded: LoadedModel, *, write_parameter: Callable[..., None]) -> None:
    """Write the weights of a language into a model, which may be partitioned."""
    for name, parameter in loaded.model.named_parameters():
        if name in loaded.language_weights:
            write_parameter(parameter, loaded.language_weights[name])
