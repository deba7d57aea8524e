"""What a base gives its head: where the two meet, what passes, and how to give it again."""

# B batch, T positions

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dtl.models.anatomy import head_module_names

if TYPE_CHECKING:
    from torch import Tensor, nn

NamedTensors = dict[str, "Tensor"]
Positions = Literal["whole", "all", "first", "last"]  # of an example's (T, ...); whole: no T
SINGLE_POSITIONS: tuple[Positions, ...] = ("first", "last")


def find_base_name(model: nn.Module) -> str | None:
    """The one module beside the head that holds weights; None where there are several."""
    heads = head_module_names(model)
    found = [
        name
        for name, child in model.named_children()
        if name not in heads and any(True for _ in child.parameters())
    ]
    return found[0] if len(found) == 1 else None


def find_inseparable_reason(model: nn.Module) -> str | None:
    """Why the base of a model whose strategy is applied does not stand still as a whole, or cannot
    be told from the head; None: it does, and can."""
    base = find_base_name(model)
    if base is None:
        return f"{type(model).__name__} keeps its base in several modules"
    learning = [
        name
        for name, value in model.named_parameters()
        if value.requires_grad and name.startswith(f"{base}.")
    ]
    if learning:
        return f"{learning[0]} is inside of the base, and learns"
    return None


@dataclass(frozen=True)
class OutputLayout:
    """How a base's output is built: its class, its tensors and tuples of so many tensors, and the
    shape of each tensor for one example, with one position where there are any."""

    output_class: type
    tensors: tuple[str, ...]
    tuples: tuple[tuple[str, int], ...]
    shapes: dict[str, tuple[int, ...]]

    def build_output(self, leaves: NamedTensors) -> Any:
        """An output with these tensors, and NaN wherever nothing is given: who reads that, sees."""
        import torch

        first = next(iter(leaves.values()))

        def of(name: str) -> Tensor:
            if name in leaves:
                return leaves[name]
            nothing = torch.full((1,), torch.nan, dtype=first.dtype, device=first.device)
            return nothing.expand(len(first), *self.shapes[name])

        single = {name: of(name) for name in self.tensors}
        several = {
            name: tuple(of(f"{name}.{n}") for n in range(count)) for name, count in self.tuples
        }
        return self.output_class(**single, **several)


def describe_output(output: Any) -> OutputLayout | None:
    """None for what is no output of transformers, with a name for each of its tensors."""
    from transformers.utils import ModelOutput

    if not isinstance(output, ModelOutput):
        return None
    return OutputLayout(
        type(output),
        tuple(name for name, value in output.items() if _is_feature(value)),
        tuple((name, len(value)) for name, value in output.items() if _are_features(value)),
        {
            name: tuple(tensor.shape[1:]) if tensor.ndim == 2 else (1, *tensor.shape[2:])
            for name, tensor in flatten_output(output).items()
        },
    )


def flatten_output(output: Any) -> NamedTensors:
    """The tensors of an output by name; those of a tuple are numbered."""
    found = {name: value for name, value in output.items() if _is_feature(value)}
    for name, value in output.items():
        if _are_features(value):
            found |= {f"{name}.{number}": tensor for number, tensor in enumerate(value)}
    return found


def _is_feature(value: Any) -> bool:
    """Not keys and values of attention, or codes of a quantizer."""
    import torch

    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim > 1


def _are_features(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and all(map(_is_feature, value))


@contextmanager
def record_outputs(base: nn.Module) -> Iterator[list[Any]]:
    """The outputs of a base while it is at work."""
    seen: list[Any] = []
    handle = base.register_forward_hook(lambda module, given, output: seen.append(output))
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def replace_output(base: nn.Module, output: Any) -> Iterator[None]:
    """A base that gives this output whatever it is asked, without any work."""
    before = base.__dict__.get("forward")
    base.forward = lambda *given, **named: output
    try:
        yield
    finally:
        if before is None:
            del base.forward
        else:
            base.forward = before


def last_positions(mask_BT: Tensor) -> Tensor:
    """The number of each example's last real position (B,); padding is on the right."""
    return mask_BT.sum(1) - 1


def find_read_tensors(
    tensors: NamedTensors,
    layout: OutputLayout,
    head: Callable[[Any], Tensor],
    *,
    mask_BT: Tensor | None,
) -> dict[str, Positions]:
    """The tensors, each with the positions of it, on which the head's answer depends.

    `head` gives the answer for an output of the base. One tensor after another is replaced by NaN,
    wholly or but for one position: an answer that stays the same has not read it.
    """
    expected = head(layout.build_output(tensors))
    read: dict[str, Positions] = {}
    for name, tensor in tensors.items():
        others = {other: value for other, value in tensors.items() if other != name}
        if others and _gives_same_scores(expected, head, layout, others):
            continue
        read[name] = "all" if tensor.ndim > 2 else "whole"
        for tried in SINGLE_POSITIONS if tensor.ndim == 3 and tensor.shape[1] > 1 else ():
            places_B = position_indices(tried, tensor, mask_BT)
            if places_B is None:
                continue
            if _gives_same_scores(
                expected, head, layout, {**tensors, name: _keep_one_position(tensor, places_B)}
            ):
                read[name] = tried
                break
    return read


def position_indices(positions: str, tensor_BT: Tensor, mask_BT: Tensor | None) -> Tensor | None:
    """The first or the last real position of each example (B,); None where no mask tells."""
    import torch

    size, length = tensor_BT.shape[:2]
    if positions == "first":
        return torch.zeros(size, dtype=torch.long, device=tensor_BT.device)
    if mask_BT is None or mask_BT.shape[1] != length:
        return None
    return last_positions(mask_BT)


def _keep_one_position(tensor_BT: Tensor, places_B: Tensor) -> Tensor:
    import torch

    rows_B = torch.arange(len(tensor_BT), device=tensor_BT.device)
    poisoned = torch.full_like(tensor_BT, torch.nan)
    poisoned[rows_B, places_B] = tensor_BT[rows_B, places_B]
    return poisoned


def _gives_same_scores(
    expected: Tensor, head: Callable[[Any], Tensor], form: OutputLayout, leaves: NamedTensors
) -> bool:
    """A head that cannot work with what is left has read what is missing."""
    import torch

    try:
        return torch.equal(expected, head(form.build_output(leaves)))
    except (RuntimeError, ValueError, IndexError):
        return False
