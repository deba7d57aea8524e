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
    """Gather the weights that transformers 5.23 reads when it initializes the missing weights of a
    loaded model: Whisper's positions, and those of a kernel with weight norm (wav2vec2)."""
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
    from transformers import PreTrainedModel

    initialize_weights = PreTrainedModel._initialize_weights

    def initialize_gathered(model: Any, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        unavailable = [
            value
            for value in _parameters_read_by_init(module)
            if getattr(value, "ds_status", None) == ZeroParamStatus.NOT_AVAILABLE
        ]
        with GatheredParameters(unavailable, enabled=bool(unavailable)):
            initialize_weights(model, module, *args, **kwargs)

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


def _parameters_read_by_init(module: nn.Module) -> list[nn.Parameter]:
    """Return the weights whose values the initialization of this module reads."""
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    if isinstance(module, WhisperEncoder):
        return [module.embed_positions.weight]
    return [
        parameter
        for each in (module, *module.children())
        if nn.utils.parametrize.is_parametrized(each)
        for parameter in each.parametrizations.parameters()  # type: ignore[union-attr]
    ]
