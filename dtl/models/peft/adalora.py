"""AdaLoRA's allocation of ranks to layers, as hooks of the optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dtl.models.peft.base import ADAPTER_NAME
from dtl.models.peft.save_load import find_active_ranks

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

IMPORTANCE, UNCERTAINTY = (
    "importance",
    "uncertainty",
)  # in the optimizer's state, until the last pruning


class RankBudget:
    """PEFT's rank allocation (arXiv:2303.10512) for an optimizer with full weights and gradients.

    Its state per parameter, two fp32 tensors of the parameter's shape, is in the optimizer's state,
    so that checkpoints hold it. `warmup_steps`: first steps, with all ranks. `final_steps`: last
    steps, without pruning. `completed_steps`: steps before this process.
    """

    def __init__(
        self,
        adapted: Any,
        *,
        total_steps: int,
        warmup_steps: int,
        final_steps: int,
        completed_steps: int,
    ) -> None:
        self.model = adapted.base_model
        self.config = adapted.peft_config[ADAPTER_NAME]
        self.config.total_step = total_steps
        self.config.tinit = warmup_steps
        self.config.tfinal = final_steps
        self.completed_steps = completed_steps
        self.trainable = {
            name: parameter
            for name, parameter in self.model.model.named_parameters()
            if ".lora_" in name and parameter.requires_grad
        }

    def register_hooks(self, optimizer: Optimizer) -> None:
        """Register the hooks that run before and after each optimizer step."""
        optimizer.register_step_pre_hook(self.add_orthogonality_gradient)
        optimizer.register_step_post_hook(self.allocate_ranks)

    def add_orthogonality_gradient(self, optimizer: Optimizer, *_: Any) -> None:
        """Add the gradient of the penalty on non-orthogonal rows of A and columns of B, once a
        step; only the gradient of the loss is clipped."""
        import torch

        if _is_priming_step(optimizer):
            return
        if self.completed_steps >= self._last_allocation_step and self.config.rank_pattern is None:
            self.config.rank_pattern = find_active_ranks(self.trainable)
        factors = [each for name, each in self.trainable.items() if ".lora_E." not in name]
        with torch.enable_grad():
            penalty = sum(
                _orthogonality_penalty(name, each) for name, each in self.trainable.items()
            )
            scaled = penalty * (self.config.orth_reg_weight / len(factors))
        gradients = torch.autograd.grad(scaled, factors)
        for parameter in self.trainable.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for factor, gradient in zip(factors, gradients, strict=True):
            assert factor.grad is not None
            factor.grad.add_(gradient)

    def allocate_ranks(self, optimizer: Optimizer, *_: Any) -> None:
        """Update the importance of each rank after a step, and prune ranks when it is time."""
        if _is_priming_step(optimizer):
            return
        self.completed_steps += 1
        allocator = self.model.rankallocator
        states = {name: optimizer.state[each] for name, each in self.trainable.items()}
        known = {name: state for name, state in states.items() if IMPORTANCE in state}
        allocator.ipt = dict.fromkeys(known)
        allocator.exp_avg_ipt = {name: state[IMPORTANCE] for name, state in known.items()}
        allocator.exp_avg_unc = {name: state[UNCERTAINTY] for name, state in known.items()}
        self.model.update_and_allocate(self.completed_steps)
        for name, state in states.items():
            for key, averages in (
                (IMPORTANCE, allocator.exp_avg_ipt),
                (UNCERTAINTY, allocator.exp_avg_unc),
            ):
                state.pop(key, None)
                if name in averages:
                    state[key] = averages[name]

    @property
    def _last_allocation_step(self) -> int:
        last: int = self.config.total_step - self.config.tfinal
        return last


def _orthogonality_penalty(name: str, factor: Tensor) -> Any:
    """Return the norm of A A^T - I or B^T B - I, with A (rank, in) and B (out, rank)."""
    import torch

    if ".lora_E." in name:
        return 0.0
    products = factor @ factor.T if ".lora_A." in name else factor.T @ factor
    return torch.linalg.norm(products - torch.eye(len(products), device=factor.device))


def _is_priming_step(optimizer: Optimizer) -> bool:
    """Return whether the step changes nothing: it only creates the optimizer's state."""
    return all(group["lr"] == 0 for group in optimizer.param_groups)
