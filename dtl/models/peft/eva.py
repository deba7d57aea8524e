"""EVA: initialize LoRA from the principal components of layer inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dtl.core.errors import DtlError
from dtl.models.peft.base import ADAPTER_NAME

if TYPE_CHECKING:
    from torch import Tensor, nn


MAX_EVA_BATCHES = 100  # that EVA looks at


def init_eva(
    adapted: Any,
    *,
    batches: Iterable[dict[str, Tensor]],
    forward: Callable[[nn.Module, dict[str, Tensor]], Any],
) -> None:
    """Point LoRA's A along the directions in which its layer's inputs vary most (EVA), until these
    stay; B is zero. Raises DtlError where they do not within so many batches, or A stays as it is.
    """
    import torch
    from peft import EvaConfig
    from peft.tuners.lora.eva import get_eva_state_dict

    config = copy.deepcopy(adapted.peft_config[ADAPTER_NAME])
    config.eva_config = EvaConfig(rho=1.0)  # the same rank everywhere, as it was planned
    with torch.no_grad():
        found = get_eva_state_dict(
            adapted,
            _LimitedBatches(iter(batches)),
            config,
            forward_fn=forward,
            prepare_model_inputs_fn=lambda batch, _: batch.get("attention_mask"),
            prepare_layer_inputs_fn=_select_layer_inputs,
            gather_distributed_inputs=False,  # each rank has seen them all
            show_progress_bar=False,
        )
        for name, module in adapted.named_modules():
            if hasattr(module, "lora_A") and name not in found:
                raise DtlError.of(
                    "strategy.init",
                    f"eva knows nothing of {name}, a {type(module.get_base_layer()).__name__}",
                    "name linear layers in strategy.target, or take another init",
                )
            if name in found:
                module.lora_A[ADAPTER_NAME].weight.copy_(found[name])


@dataclass(frozen=True)
class _LimitedBatches:
    """PEFT reads the first batch twice, and goes on until the directions stay; here it ends."""

    source: Iterator[dict[str, Tensor]]
    read: list[dict[str, Tensor]] = field(default_factory=list)

    def __len__(self) -> int:
        return MAX_EVA_BATCHES

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for place in range(MAX_EVA_BATCHES):
            if place == len(self.read):
                self.read.append(next(self.source))
            yield self.read[place]
        raise DtlError.of(
            "strategy.init",
            f"eva has found no steady directions in {MAX_EVA_BATCHES} batches of training examples",
            "take a lower strategy.rank, more examples, or init kaiming",
        )


def _select_layer_inputs(given: Any, mask: Tensor | None, _: str) -> Tensor:
    """What a layer reads (N, D), in fp32, without padding."""
    read: Tensor = given[0] if isinstance(given, tuple) else given
    if mask is not None and read.ndim == 3 and read.shape[:2] == mask.shape:
        return read[mask.to(read.device).bool()].float()
    return read.flatten(0, -2).float()
