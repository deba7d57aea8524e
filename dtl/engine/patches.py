"""Patches of transformers for models that are loaded under ZeRO stage 3."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from dtl.models.structure.module_kinds import BATCH_NORM_STATISTICS


@contextmanager
def tie_gathered_weights() -> Iterator[None]:
    """Gather weights before transformers ties them.

    transformers 5 ties input and output embeddings where their values are equal. Under ZeRO-3 it
    compares empty placeholders, so that T5 1.1, whose output embedding is separate, would be tied.
    """
    from deepspeed.runtime.zero import GatheredParameters
    from transformers import PreTrainedModel

    tie_weights = PreTrainedModel.tie_weights

    def tie_gathered(model: Any, missing_keys: Any = None, **kwargs: Any) -> None:
        pairs = getattr(model, "all_tied_weights_keys", None) or {}
        names = {name for pair in pairs.items() for name in pair}
        tied = [value for name, value in model.named_parameters() if name in names]
        with GatheredParameters(tied):
            tie_weights(model, missing_keys, **kwargs)

    PreTrainedModel.tie_weights = tie_gathered
    try:
        yield
    finally:
        PreTrainedModel.tie_weights = tie_weights


@contextmanager
def init_with_gathered_weights() -> Iterator[None]:
    """Gather each weight that transformers reads when it initializes the modules of a loaded model,
    when it reads it: many families look at a weight's shape (sinusoidal positions) or values.

    Every rank initializes the same modules in the same order. What is loaded does not change: its
    weights are marked as initialized. What is new is drawn again later.
    """
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
    from transformers import PreTrainedModel

    initialize_weights, get_attribute = PreTrainedModel._initialize_weights, nn.Module.__getattr__
    gathered: list[Any] = []

    def get_gathered(module: nn.Module, name: str) -> Any:
        value: Any = get_attribute(module, name)
        if getattr(value, "ds_status", None) == ZeroParamStatus.NOT_AVAILABLE:
            value.all_gather()
            gathered.append(value)
        return value

    def initialize_gathered(model: Any, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        if nn.Module.__getattr__ is get_gathered:  # inside of another
            initialize_weights(model, module, *args, **kwargs)
            return
        nn.Module.__getattr__ = get_gathered  # type: ignore[method-assign]
        try:
            initialize_weights(model, module, *args, **kwargs)
        finally:
            nn.Module.__getattr__ = get_attribute  # type: ignore[method-assign]
            for value in gathered:
                value.partition()
            gathered.clear()

    PreTrainedModel._initialize_weights = initialize_gathered
    try:
        yield
    finally:
        PreTrainedModel._initialize_weights = initialize_weights


@contextmanager
def keep_batch_norm_statistics() -> Iterator[None]:
    """Have DeepSpeed create the statistics of BatchNorm in fp32, whatever the dtype of weights."""
    norm: Any = nn.modules.batchnorm._NormBase
    norm._keep_in_fp32_modules_strict = BATCH_NORM_STATISTICS
    try:
        yield
    finally:
        del norm._keep_in_fp32_modules_strict
