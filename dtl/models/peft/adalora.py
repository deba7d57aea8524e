"""AdaLoRA's budget of ranks, which falls while a run learns where they are worth most."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dtl.models.peft.base import ADAPTER_NAME
from dtl.models.peft.save_load import find_active_ranks

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

IMPORTANCE, UNCERTAINTY = "importance", "uncertainty"  # beside the moments, until the last cut


class RankBudget:
    """PEFT's allocation of ranks (arXiv:2303.10512), tied to an optimizer whose weights and
    gradients are whole. What it remembers stands beside the moments in the optimizer's state, and
    so is saved as they are.

    `warmup`, `settling`: steps of `steps` with all ranks, and with those that stay; `done`: steps
    that have been taken.
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
        self.model, self.config, self.completed_steps = (
            adapted.base_model,
            adapted.peft_config[ADAPTER_NAME],
            completed_steps,
        )
        self.config.total_step, self.config.tinit, self.config.tfinal = (
            total_steps,
            warmup_steps,
            final_steps,
        )
        self.trainable = {
            name: parameter
            for name, parameter in self.model.model.named_parameters()
            if ".lora_" in name and parameter.requires_grad
        }

    def register_hooks(self, optimizer: Optimizer) -> None:
        """Have every step of an optimizer seen, before and after."""
        optimizer.register_step_pre_hook(self.add_orthogonality_gradient)
        optimizer.register_step_post_hook(self.allocate_ranks)

    def add_orthogonality_gradient(self, optimizer: Optimizer, *_: Any) -> None:
        """Add the gradient of the penalty that holds the rows of A and the columns of B at right
        angles, once a step. The gradient of the loss alone is what was clipped."""
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
        """Learn from the step what each rank is worth, and let go of the least where it is time."""
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
            for key, found in (
                (IMPORTANCE, allocator.exp_avg_ipt),
                (UNCERTAINTY, allocator.exp_avg_unc),
            ):
                state.pop(key, None)
                if name in found:
                    state[key] = found[name]

    @property
    def _last_allocation_step(self) -> int:
        last: int = self.config.total_step - self.config.tfinal
        return last


def _orthogonality_penalty(name: str, factor: Tensor) -> Any:
    import torch

    if ".lora_E." in name:
        return 0.0
    products = factor @ factor.T if ".lora_A." in name else factor.T @ factor
    return torch.linalg.norm(products - torch.eye(len(products), device=factor.device))


def _is_priming_step(optimizer: Optimizer) -> bool:
    """Whether a step changes nothing, as one that only makes the optimizer's states."""
    return all(group["lr"] == 0 for group in optimizer.param_groups)
