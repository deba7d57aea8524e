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


MAX_EVA_BATCHES = 100


def init_eva(
    adapted: Any,
    *,
    batches: Iterable[dict[str, Tensor]],
    forward: Callable[[nn.Module, dict[str, Tensor]], Any],
) -> None:
    """Set LoRA's A to the principal components of its layer's inputs, until these converge; B is
    zero.

    `batches`: training batches without end. `forward(model, batch)` runs the model on one. Raises
    DtlError if the components do not converge within `MAX_EVA_BATCHES` batches, or if a layer has
    none.
    """
    import torch
    from peft import EvaConfig
    from peft.tuners.lora.eva import get_eva_state_dict

    config = copy.deepcopy(adapted.peft_config[ADAPTER_NAME])
    config.eva_config = EvaConfig(rho=1.0)  # the same rank in each layer, as planned
    with torch.no_grad():
        components = get_eva_state_dict(
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
            if hasattr(module, "lora_A") and name not in components:
                raise DtlError.of(
                    "strategy.init",
                    f"eva does not support {name}, a {type(module.get_base_layer()).__name__}",
                    "list linear layers in strategy.target_modules, or use another init",
                )
            if name in components:
                module.lora_A[ADAPTER_NAME].weight.copy_(components[name])


@dataclass(frozen=True)
class _LimitedBatches:
    """The first batches of an iterator: PEFT reads the first one twice, and reads until the
    components converge; after `MAX_EVA_BATCHES` this raises DtlError."""

    source: Iterator[dict[str, Tensor]]
    read: list[dict[str, Tensor]] = field(default_factory=list)

    def __len__(self) -> int:
        return MAX_EVA_BATCHES

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for index in range(MAX_EVA_BATCHES):
            if index == len(self.read):
                self.read.append(next(self.source))
            yield self.read[index]
        raise DtlError.of(
            "strategy.init",
            f"eva did not converge within {MAX_EVA_BATCHES} batches of training examples",
            "take a lower strategy.rank, more examples, or init kaiming",
        )


def _select_layer_inputs(inputs: Any, mask: Tensor | None, _: str) -> Tensor:
    """Return the inputs of a layer (N positions, D), fp32, without those at padding."""
    values: Tensor = inputs[0] if isinstance(inputs, tuple) else inputs
    if mask is not None and values.ndim == 3 and values.shape[:2] == mask.shape:
        return values[mask.to(values.device).bool()].float()
    return values.flatten(0, -2).float()
