"""The modules that compute new rows of an embedding or of an output layer."""

# K new rows, D width, V vocabulary

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from torch import Tensor, nn


class TokenRows(nn.ParameterDict):
    """The new rows (K, D) by the adapter's name. Its forward is where an engine gathers them."""

    __call__ = nn.Module.__call__  # that of ParameterDict raises

    def forward(
        self, name: str, numbers_K: Tensor, inputs: Tensor, outputs: Tensor, scale: Any
    ) -> Tensor:
        """Return the outputs with those of the new rows.

        `inputs`: token ids (..., T) and `outputs` their embeddings (..., T, D); or, for an output
        layer, states (..., D) and logits (..., V). `scale`: factor on embeddings, or None.
        """
        rows_KD = self[name].to(outputs.dtype)
        if inputs.is_floating_point():
            logits = nn.functional.linear(inputs.to(rows_KD.dtype), rows_KD)
            return outputs.index_copy(-1, numbers_K, logits)
        position = torch.searchsorted(numbers_K, inputs).clamp(max=len(numbers_K) - 1)
        is_new = (numbers_K[position] == inputs)[..., None]
        embedded = rows_KD[position] if scale is None else rows_KD[position] * scale.to(rows_KD)
        return torch.where(is_new, embedded, outputs)


class TokenRowsLayer(TrainableTokensLayer):  # type: ignore[misc]
    """PEFT's layer, with the same parameters and results, which copies no weight."""

    def forward_adapters(
        self, x: Tensor, active_adapters: list[str], *args: Any, **kwargs: Any
    ) -> Tensor:
        if self.disable_adapters or not active_adapters or self.merged:
            unchanged: Tensor = super().forward_adapters(x, active_adapters, *args, **kwargs)
            return unchanged
        outputs: Tensor = self.base_layer(x, *args, **kwargs)
        for name in active_adapters:
            numbers = torch.tensor(self.token_indices[name], device=x.device)
            scale = self._get_embed_scale()
            outputs = self.trainable_tokens_delta(name, numbers, x, outputs, scale)
        return outputs
