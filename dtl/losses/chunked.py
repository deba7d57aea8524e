"""Cross-entropy of tokens from hidden states, in chunks, so that not all logits are in memory."""

# K learned positions, N those of a chunk, W width, V vocabulary

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    Logits = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ChunkedHead:
    """How hidden states become logits.

    `compute_logits`: (N, W) to (N, V). `max_positions`: of which logits are in memory together.
    `parameters`: those that are trained. `can_differentiate_early`: whether gradients may be
    computed in the forward pass.
    """

    compute_logits: Logits
    max_positions: int
    parameters: tuple[Tensor, ...]
    can_differentiate_early: bool


def chunked_losses(states_KW: Tensor, targets_K: Tensor, head: ChunkedHead) -> Tensor:
    """Return the loss of each token (K,), fp32.

    If the head is not trained, the gradient of the states is computed with the losses, and the
    backward pass scales it. Else the logits of a chunk are computed again in the backward pass.
    """
    size = head.max_positions
    if len(states_KW) <= size:
        return _losses(states_KW, targets_K, head.compute_logits)
    if head.can_differentiate_early and not head.parameters and torch.is_grad_enabled():
        losses_K: Tensor = _EarlyLosses.apply(states_KW, targets_K, head)
        return losses_K
    chunks = zip(states_KW.split(size), targets_K.split(size), strict=True)
    compute: Callable[..., Tensor] = _losses
    if torch.is_grad_enabled():
        compute = partial(checkpoint, _losses, use_reentrant=False)
    return torch.cat([compute(*chunk, head.compute_logits) for chunk in chunks])


def chunked_loss_sum(states_KW: Tensor, targets_K: Tensor, head: ChunkedHead) -> Tensor:
    """Return the sum of the losses of all tokens, (), fp32.

    Where it can be, the gradients of the states and of the head are computed with the losses.
    """
    is_early = head.can_differentiate_early and head.parameters and torch.is_grad_enabled()
    if not is_early or len(states_KW) <= head.max_positions:
        return chunked_losses(states_KW, targets_K, head).sum()
    loss: Tensor = _EarlySum.apply(states_KW, targets_K, head, *head.parameters)
    return loss


@torch.no_grad()
def chunked_predictions(
    states_KW: Tensor, targets_K: Tensor, head: ChunkedHead
) -> tuple[Tensor, Tensor]:
    """Return the loss (K,), fp32, and the most likely token (K,), int64, of each position."""
    size = head.max_positions
    losses = [torch.empty(0, device=states_KW.device)]
    predicted = [targets_K[:0]]
    for states_NW, targets_N in zip(states_KW.split(size), targets_K.split(size), strict=True):
        logits_NV = head.compute_logits(states_NW)
        losses.append(cross_entropy(logits_NV.float(), targets_N, reduction="none"))
        predicted.append(logits_NV.argmax(-1))
    return torch.cat(losses), torch.cat(predicted)


def _losses(states_NW: Tensor, targets_N: Tensor, compute_logits: Logits) -> Tensor:
    """Return the loss of each position (N,), fp32."""
    return cross_entropy(compute_logits(states_NW).float(), targets_N, reduction="none")


@dataclass(frozen=True)
class _EarlyGradients:
    """Losses (K,), fp32, and the gradients of their sum: of the states (K, W) in their dtype, and
    of the head's parameters, fp32."""

    losses_K: Tensor
    states_KW: Tensor | None
    parameters: tuple[Tensor, ...]


def _differentiate(states_KW: Tensor, targets_K: Tensor, head: ChunkedHead) -> _EarlyGradients:
    """Compute losses and gradients chunk by chunk."""
    size = head.max_positions
    states_need_it = states_KW.requires_grad
    losses_K = torch.empty(len(states_KW), device=states_KW.device)
    gradient_KW = torch.empty_like(states_KW) if states_need_it else None
    totals = [torch.zeros_like(each, dtype=torch.float32) for each in head.parameters]
    for start in range(0, len(states_KW), size):
        rows = slice(start, start + size)
        states_NW = states_KW[rows].detach().requires_grad_(states_need_it)
        with torch.enable_grad():
            losses_N = _losses(states_NW, targets_K[rows], head.compute_logits)
            loss = losses_N.sum()
        losses_K[rows] = losses_N.detach()
        wanted = ([states_NW] if states_need_it else []) + list(head.parameters)
        gradients = list(torch.autograd.grad(loss, wanted) if wanted else ())
        if gradient_KW is not None:
            gradient_KW[rows] = gradients.pop(0)
        for total, gradient in zip(totals, gradients, strict=True):
            total += gradient
    return _EarlyGradients(losses_K, gradient_KW, tuple(totals))


class _EarlyLosses(torch.autograd.Function):
    """The loss of each position, with the gradient of the states."""

    @staticmethod
    def forward(ctx: Any, states_KW: Tensor, targets_K: Tensor, head: ChunkedHead) -> Tensor:
        found = _differentiate(states_KW, targets_K, head)
        ctx.save_for_backward(found.states_KW)
        return found.losses_K

    @staticmethod
    def backward(ctx: Any, scales_K: Tensor) -> Any:
        (gradient_KW,) = ctx.saved_tensors
        return (gradient_KW * scales_K[:, None]).to(gradient_KW.dtype), None, None


class _EarlySum(torch.autograd.Function):
    """The sum of the losses, with the gradients of the states and of the head's parameters."""

    @staticmethod
    def forward(
        ctx: Any, states_KW: Tensor, targets_K: Tensor, head: ChunkedHead, *parameters: Tensor
    ) -> Tensor:
        found = _differentiate(states_KW, targets_K, head)
        ctx.has_states = found.states_KW is not None
        ctx.save_for_backward(*([found.states_KW] if ctx.has_states else []), *found.parameters)
        ctx.dtypes = [each.dtype for each in parameters]
        return found.losses_K.sum()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:
        saved = list(ctx.saved_tensors)
        states_KW = saved.pop(0) if ctx.has_states else None
        if states_KW is not None:
            states_KW = (states_KW * scale).to(states_KW.dtype)
        gradients = [
            (each * scale).to(dtype) for each, dtype in zip(saved, ctx.dtypes, strict=True)
        ]
        return states_KW, None, None, *gradients
