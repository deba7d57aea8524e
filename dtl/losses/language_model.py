"""Losses of the tokens that a language model predicts, without the logits of all positions."""

# B batch, T tokens, S tokens with those that an adapter puts before, K learned positions, W width,
# V vocabulary

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dtl.losses.cross_entropy import IGNORE_INDEX, token_cross_entropy
from dtl.models.packing import PackedTexts, is_packing
from dtl.models.structure.token_head import (
    SHIFT_LABELS,
    TokenHead,
    find_token_head,
    replace_forward,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from dtl.losses.chunked import ChunkedHead

CHUNK_LOGITS = 2**26  # that are in memory at once: 256 MiB in fp32


@dataclass(frozen=True)
class TokenScores:
    """Of each token (B, T): its loss in nats, fp32, 0 where it is not learned; and whether it is
    the most likely one, bool."""

    losses_BT: Tensor
    is_correct_BT: Tensor


def positions_at_once(vocabulary: int) -> int:
    """Return the positions of which logits are in memory together."""
    return max(1, CHUNK_LOGITS // vocabulary)


def next_tokens(labels_BT: Tensor) -> Tensor:
    """Return the label that the logits of each position predict (B, T): that of the next one."""
    from torch.nn.functional import pad

    return pad(labels_BT[..., 1:], (0, 1), value=IGNORE_INDEX)


def sum_token_losses(model: nn.Module, inputs: dict[str, Any], targets_BT: Tensor) -> Tensor:
    """Return the sum of the losses of all tokens, (), fp32.

    `inputs`: of the model's forward. `targets_BT`: int64, aligned with the logits; IGNORE_INDEX
    where nothing is learned. Only the logits of learned positions are computed, in chunks; see
    `find_token_head` for the models of which all logits are computed.
    """
    from dtl.losses.chunked import chunked_loss_sum

    head = find_token_head(model, shifts_labels="labels" in inputs)
    if isinstance(head, str):
        return _losses_of_all_logits(model, inputs, targets_BT).sum()
    loss: Tensor = _run(model, inputs, targets_BT, head, chunked_loss_sum)
    return loss


def token_losses(model: nn.Module, inputs: dict[str, Any], targets_BT: Tensor) -> Tensor:
    """Return the loss of each token (B, T), fp32; 0 where nothing is learned.

    As `sum_token_losses`.
    """
    from dtl.losses.chunked import chunked_losses

    head = find_token_head(model, shifts_labels="labels" in inputs)
    if isinstance(head, str):
        return _losses_of_all_logits(model, inputs, targets_BT)
    return _scatter(_run(model, inputs, targets_BT, head, chunked_losses), targets_BT)


def score_tokens(model: nn.Module, inputs: dict[str, Any], targets_BT: Tensor) -> TokenScores:
    """Return loss and correctness of each token, without gradient. As `sum_token_losses`."""
    from dtl.losses.chunked import chunked_predictions

    head = find_token_head(model, shifts_labels="labels" in inputs)
    if isinstance(head, str):
        logits_BTV = model(**inputs).logits
        losses_BT = token_cross_entropy(logits_BTV, targets_BT)
        return TokenScores(losses_BT, logits_BTV.argmax(-1) == targets_BT)
    losses_K, predicted_K = _run(model, inputs, targets_BT, head, chunked_predictions)
    is_correct_K = predicted_K == targets_BT[targets_BT != IGNORE_INDEX]
    return TokenScores(_scatter(losses_K, targets_BT), _scatter(is_correct_K, targets_BT))


def _losses_of_all_logits(model: nn.Module, inputs: dict[str, Any], targets_BT: Tensor) -> Tensor:
    """Return the loss of each token (B, T)."""
    texts = _pack(inputs)
    if texts is None:
        return token_cross_entropy(model(**inputs).logits, targets_BT)
    logits_1NV = texts.run(model).logits
    return texts.unpack(token_cross_entropy(logits_1NV, texts.pack(targets_BT)))


def _pack(inputs: dict[str, Any]) -> PackedTexts | None:
    """Return the texts in one row, where they are packed; the inputs then have the mask."""
    if not is_packing():
        return None
    return PackedTexts.from_padded(inputs["input_ids"], inputs["attention_mask"])


def _run(
    model: nn.Module,
    inputs: dict[str, Any],
    targets_BT: Tensor,
    head: TokenHead,
    compute: Callable[[Tensor, Tensor, ChunkedHead], Any],
) -> Any:
    """Return what `compute` makes of the learned states, their targets and the head.

    It is called in the forward of the head, and that in the forward of the model, so that the hooks
    of DDP and ZeRO run as always.
    """
    layer, texts = head.layer, _pack(inputs)
    run_layer = layer.forward
    targets_BT = targets_BT if texts is None else texts.pack(targets_BT)

    def compute_logits(states_NW: Tensor) -> Tensor:
        return head.final_logits(run_layer(states_NW[None])[0])

    def layer_forward(states_KW: Tensor, targets_K: Tensor) -> Any:
        return compute(states_KW, targets_K, _describe(layer, compute_logits))

    def model_forward(*args: Any, **kwargs: Any) -> Any:
        states_BSW = head.hidden_states(*args, **_without_labels(head.model, kwargs))
        states_NW = states_BSW[:, -targets_BT.shape[1] :].flatten(0, 1)
        positions_K = (targets_BT != IGNORE_INDEX).flatten().nonzero().squeeze(1)
        if len(positions_K) < len(states_NW):
            states_NW = states_NW.index_select(0, positions_K)
        return layer(states_NW, targets_BT.flatten()[positions_K])

    with replace_forward(layer, layer_forward), replace_forward(head.model, model_forward):
        return model(**inputs) if texts is None else texts.run(model)


def _describe(layer: nn.Module, compute_logits: Callable[[Tensor], Tensor]) -> ChunkedHead:
    """Return how the layer is run: in chunks, unless ranks would gather its parts by chunk."""
    import torch

    from dtl.losses.chunked import ChunkedHead

    vocabulary = int(layer.out_features)  # type: ignore[arg-type]
    parameters = tuple(each for each in layer.parameters() if each.requires_grad)
    has_parts = any(True for _ in layer.children())
    is_sharded = any(hasattr(each, "ds_id") for each in layer.parameters())
    kind = next(layer.parameters()).device.type
    is_fp16 = any(each.dtype is torch.float16 for each in layer.parameters()) or (
        torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) is torch.float16
    )
    return ChunkedHead(
        compute_logits,
        # Ranks have different numbers of chunks, in each of which ZeRO-3 would gather the parts.
        max_positions=sys.maxsize if is_sharded and has_parts else positions_at_once(vocabulary),
        parameters=parameters,
        can_differentiate_early=not has_parts and not is_fp16,
    )


def _without_labels(model: nn.Module, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments without labels, of which the model would compute a loss of its own; an
    encoder-decoder shifts them into the input of its decoder."""
    labels_BT = kwargs.get("labels")
    others = {name: value for name, value in kwargs.items() if name != "labels"}
    if labels_BT is None or others.get("decoder_input_ids") is not None:
        return others
    return {**others, "decoder_input_ids": getattr(model, SHIFT_LABELS)(labels_BT)}


def _scatter(values_K: Tensor, targets_BT: Tensor) -> Tensor:
    """Return values (B, T) with 0 where nothing is learned."""
    import torch

    is_learned_BT = targets_BT != IGNORE_INDEX
    zeros_BT = torch.zeros(targets_BT.shape, dtype=values_K.dtype, device=values_K.device)
    return zeros_BT.masked_scatter(is_learned_BT, values_K)
