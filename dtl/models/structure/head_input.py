"""The output of a base that its head reads: which tensors they are, and how to replay them."""

# B batch, T positions

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dtl.models.structure.head import head_module_names

if TYPE_CHECKING:
    from torch import Tensor, nn

NamedTensors = dict[str, "Tensor"]
# The positions T of an example that the head reads; "pooled": the tensor has no dimension T.
Positions = Literal["pooled", "all", "first", "last"]
SINGLE_POSITIONS: tuple[Positions, ...] = ("first", "last")


def find_base_name(model: nn.Module) -> str | None:
    """Return the name of the only module with weights besides the head; None if several."""
    heads = head_module_names(model)
    names = [
        name
        for name, child in model.named_children()
        if name not in heads and any(True for _ in child.parameters())
    ]
    return names[0] if len(names) == 1 else None


def find_inseparable_reason(model: nn.Module) -> str | None:
    """Return why the base of a model, with its strategy applied, is not frozen or not separable
    from the head; None if it is both."""
    base = find_base_name(model)
    if base is None:
        return f"{type(model).__name__} has its base in several modules"
    trainable = [
        name
        for name, value in model.named_parameters()
        if value.requires_grad and name.startswith(f"{base}.")
    ]
    if trainable:
        return f"{trainable[0]} is inside the base and is trained"
    return None


@dataclass(frozen=True)
class OutputLayout:
    """How a base's output is built: its class, the names of its tensors, the names and lengths of
    its tuples of tensors, and the shape of each tensor for one example, (...) or (1, ...)."""

    output_class: type
    tensors: tuple[str, ...]
    tuples: tuple[tuple[str, int], ...]
    shapes: dict[str, tuple[int, ...]]

    def build_output(self, tensors: NamedTensors) -> Any:
        """Return an output with these tensors, and NaN for all others to reveal their use."""
        import torch

        first = next(iter(tensors.values()))

        def get(name: str) -> Tensor:
            if name in tensors:
                return tensors[name]
            missing = torch.full((1,), torch.nan, dtype=first.dtype, device=first.device)
            return missing.expand(len(first), *self.shapes[name])

        single = {name: get(name) for name in self.tensors}
        several = {
            name: tuple(get(f"{name}.{n}") for n in range(count)) for name, count in self.tuples
        }
        return self.output_class(**single, **several)


def describe_output(output: Any) -> OutputLayout | None:
    """Return the layout of an output; None if it is not a `ModelOutput` with named tensors."""
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
    """Return the tensors of an output by name; those of a tuple are `name.0`, `name.1` ..."""
    tensors = {name: value for name, value in output.items() if _is_feature(value)}
    for name, value in output.items():
        if _are_features(value):
            tensors |= {f"{name}.{number}": tensor for number, tensor in enumerate(value)}
    return tensors


def _is_feature(value: Any) -> bool:
    """Return whether a value is a float tensor with a batch: no key-value cache, no codes."""
    import torch

    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim > 1


def _are_features(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and all(map(_is_feature, value))


@contextmanager
def record_outputs(base: nn.Module) -> Iterator[list[Any]]:
    """Collect the outputs of a base in a list."""
    outputs: list[Any] = []
    handle = base.register_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()


@contextmanager
def replace_output(base: nn.Module, output: Any) -> Iterator[None]:
    """Make a base return this output for any input, without computing."""
    original = base.__dict__.get("forward")
    base.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        if original is None:
            del base.forward
        else:
            base.forward = original


def last_positions(mask_BT: Tensor) -> Tensor:
    """Return the index of each example's last real position (B,); padding is on the right."""
    return mask_BT.sum(1) - 1


def find_read_tensors(
    tensors: NamedTensors,
    layout: OutputLayout,
    head: Callable[[Any], Tensor],
    *,
    mask_BT: Tensor | None,
) -> dict[str, Positions]:
    """Return the tensors that the head reads, with the positions that it reads of each.

    `head` returns the scores for an output of the base. One tensor after another is replaced by
    NaN, in full or except for one position: if the scores do not change, the head does not read it.
    """
    expected = head(layout.build_output(tensors))
    read: dict[str, Positions] = {}
    for name, tensor in tensors.items():
        others = {other: value for other, value in tensors.items() if other != name}
        if others and _gives_same_scores(expected, head, layout, others):
            continue
        read[name] = "all" if tensor.ndim > 2 else "pooled"
        for positions in SINGLE_POSITIONS if tensor.ndim == 3 and tensor.shape[1] > 1 else ():
            indices_B = position_indices(positions, tensor, mask_BT)
            if indices_B is None:
                continue
            if _gives_same_scores(
                expected, head, layout, {**tensors, name: _keep_one_position(tensor, indices_B)}
            ):
                read[name] = positions
                break
    return read


def position_indices(positions: str, tensor_BT: Tensor, mask_BT: Tensor | None) -> Tensor | None:
    """Return the index of the first or last real position of each example (B,), int64; None if the
    mask does not have this length."""
    import torch

    size, length = tensor_BT.shape[:2]
    if positions == "first":
        return torch.zeros(size, dtype=torch.long, device=tensor_BT.device)
    if mask_BT is None or mask_BT.shape[1] != length:
        return None
    return last_positions(mask_BT)


def _keep_one_position(tensor_BT: Tensor, indices_B: Tensor) -> Tensor:
    """Return a copy (B, T, ...) that is NaN except at one position of each example."""
    import torch

    rows_B = torch.arange(len(tensor_BT), device=tensor_BT.device)
    masked_BT = torch.full_like(tensor_BT, torch.nan)
    masked_BT[rows_B, indices_B] = tensor_BT[rows_B, indices_B]
    return masked_BT


def _gives_same_scores(
    expected: Tensor, head: Callable[[Any], Tensor], layout: OutputLayout, tensors: NamedTensors
) -> bool:
    """Return whether the head's scores stay the same; a head that fails reads what is missing."""
    import torch

    try:
        return torch.equal(expected, head(layout.build_output(tensors)))
    except (RuntimeError, ValueError, IndexError):
        return False
