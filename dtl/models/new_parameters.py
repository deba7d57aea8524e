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
    """Draw the new parameters from (seed, name), so that no layout changes them.

    Matrices: normal, with the model's own initializer_range; vectors: ones for the weight of a
    norm, else zeros. `fill(parameter, value)` writes a whole tensor, also into a partitioned one.
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
    """Write what files of their own bring into a model that may be partitioned."""
    for name, parameter in loaded.model.named_parameters():
        if name in loaded.language_weights:
            write_parameter(parameter, loaded.language_weights[name])
