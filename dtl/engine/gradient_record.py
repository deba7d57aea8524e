"""Which trainable parameters have had a gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer


class GradientRecord:
    """The parameters that have had no gradient on any rank since the optimizer was built.

    Such a parameter does not change. For the optimizer a gradient that is missing is zero, so that
    the numbers of steps are those of the run at every ZeRO stage. `waiting`: those parameters, in
    the same order on every rank.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.waiting: dict[nn.Parameter, None] = dict.fromkeys(parameters)
        self._seen_here: set[nn.Parameter] = set()
        self._is_watching = False

    def watch(self) -> None:
        """Note each waiting parameter when a backward pass gives it a gradient on this rank."""
        self._is_watching = True
        for parameter in self.waiting:
            self._watch(parameter)

    def _watch(self, parameter: nn.Parameter) -> None:
        def note(parameter: nn.Parameter) -> None:
            self.note(parameter)
            handle.remove()  # a parameter that has had a gradient costs nothing more

        handle = parameter.register_post_accumulate_grad_hook(note)

    def note(self, parameter: nn.Parameter) -> None:
        """Record that the parameter has a gradient on this rank."""
        self._seen_here.add(parameter)

    def local_flags(self) -> list[float]:
        """Return 1 for each waiting parameter that has had a gradient on this rank, else 0."""
        return [float(parameter in self._seen_here) for parameter in self.waiting]

    def update(self, ranks: Iterable[float]) -> None:
        """Remove the parameters that have had a gradient. `ranks`: the sums of the flags of all."""
        for parameter, count in zip(list(self.waiting), ranks, strict=True):
            if count:
                del self.waiting[parameter]
        self._seen_here.clear()

    def set(self, parameter: nn.Parameter, *, had_gradient: bool) -> None:
        """Record what a checkpoint knows of the parameter."""
        if had_gradient:
            self.waiting.pop(parameter, None)
        elif parameter not in self.waiting:
            self.waiting[parameter] = None
            if self._is_watching:
                self._watch(parameter)


def keep_unchanged(optimizer: Optimizer, find_weights: Callable[[], list[Tensor]]) -> None:
    """Have each step of the optimizer leave these weights as they are: without a gradient weight
    decay would change them. `find_weights()` returns views of them before a step."""
    saved: list[tuple[Tensor, Tensor]] = []

    def save(*_: Any) -> None:
        saved[:] = [(weight, weight.clone()) for weight in find_weights()]

    def restore(*_: Any) -> None:
        for weight, value in saved:
            weight.copy_(value)

    optimizer.register_step_pre_hook(save)
    optimizer.register_step_post_hook(restore)
