"""Trace a pass of a model without weights: the bytes that are in use at once, and the operations.

The pass runs on fake tensors: every operation gives shapes and dtypes, and no values. What depends
on the values of the inputs alone, such as which positions are learned, is computed from them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

if TYPE_CHECKING:
    from torch import Tensor, nn

# Operations whose kernels copy inputs and results into a layout of their own meanwhile.
COPYING = (torch.ops.aten.convolution, torch.ops.aten.convolution_backward)
LARGEST_VALUES = 2**24  # numbers of a tensor that is computed


@dataclass(frozen=True)
class Trace:
    """What a pass takes. `peak_bytes`: the most in use at once, without what was there before it.
    `flops`: of its matrix products, convolutions and attention."""

    peak_bytes: int
    flops: int


def trace(model: nn.Module, run: Callable[[], None]) -> Trace:
    """Return what `run` takes, which runs a model of the meta device with inputs on the CPU.

    Raises what the model's code raises where it asks for the value of a fake tensor.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with ExitStack() as stack:
        stack.enter_context(_branches_of_a_real_run())
        stack.enter_context(_fake_values(model, mode))
        stack.enter_context(mode)
        live = LiveBytes(model)
        stack.enter_context(live)
        run()
    return Trace(live.peak, live.flops)


class LiveBytes(TorchDispatchMode):
    """Count the bytes of all storages that exist, those of a model apart.

    `peak`: the most at once. `flops`: of the operations.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = self.flops = 0
        self._known: set[int] = set()
        for tensor in (*model.parameters(), *model.buffers()):
            self._known.add(tensor.untyped_storage()._cdata)
            if tensor.grad is not None:
                self._known.add(tensor.grad.untyped_storage()._cdata)

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        result = _dispatch(operation, tensors, args, kwargs)
        self.flops += _count_flops(operation, args, kwargs, result)
        made = [each for each in tree_leaves(result) if isinstance(each, torch.Tensor)]
        for tensor in made:
            self._add(tensor)
        if operation._overloadpacket in COPYING:
            copies = sum(each.numel() * each.element_size() for each in (*tensors, *made))
            self.peak = max(self.peak, self.now + copies)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _dispatch(operation: Any, tensors: list[Tensor], args: Any, kwargs: Any) -> Any:
    """Run an operation: really where it has no fake tensor and its result is no large or
    floating-point one, else on fake ones."""
    aten = torch.ops.aten
    if not any(isinstance(each, FakeTensor) for each in tensors):
        return _run_without_fakes(operation, tensors, args, kwargs)
    if operation is aten._local_scalar_dense.default and tensors[0].dtype is torch.bool:
        return True  # asked of masks: whether nothing is padded, and whether nothing is packed
    if operation._overloadpacket in (aten.index, aten.index_put, aten.index_put_):
        args = (args[0], _to_positions(args[1]), *args[2:])
    if operation is aten._ctc_loss.Tensor:
        return _ctc_loss(*args[:4])
    if operation is aten._grouped_mm.default and tensors[0].dtype is torch.float32:
        # Its rule for shapes accepts bf16 only; a CPU computes it in fp32 as well.
        as_bf16 = (each.to(torch.bfloat16) if _is_fp32(each) else each for each in args)
        return operation(*as_bf16, **kwargs).to(torch.float32)
    return operation(*args, **kwargs)


def _to_positions(indices: list[Tensor | None]) -> list[Tensor | None]:
    """Return indices with the positions that masks select, where the masks have values."""
    positions: list[Tensor | None] = []
    for index in indices:
        if index is None or index.dtype is not torch.bool or isinstance(index, FakeTensor):
            positions.append(index)
            continue
        with unset_fake_temporarily():
            positions += index.nonzero().unbind(1)
    return positions


def _ctc_loss(
    log_probs_FBV: Tensor, targets_BL: Tensor, frames_B: Tensor, lengths_B: Tensor
) -> tuple[Tensor, Tensor]:
    """Return losses and log alphas: of each frame and each label, with blanks around it."""
    frames, examples, _ = log_probs_FBV.shape
    with unset_fake_temporarily():
        states = 2 * int(lengths_B.max()) + 1
    return log_probs_FBV.new_empty(examples), log_probs_FBV.new_empty(examples, frames, states)


def _run_without_fakes(operation: Any, tensors: list[Tensor], args: Any, kwargs: Any) -> Any:
    """Run an operation on values, such as those of token ids and masks; also one that makes
    integers from nothing, such as positions. Large results become fake."""
    try:
        fake = operation(*args, **kwargs)
    except (DynamicOutputShapeException, DataDependentOutputException):
        fake = None
    made = [each for each in tree_leaves(fake) if isinstance(each, torch.Tensor)]
    is_large = any(each.numel() > LARGEST_VALUES for each in made)
    is_made = not tensors and any(
        each.is_floating_point() and each.numel() > 1
        for each in made  # one number may be a random draw
    )
    if is_large or is_made:
        return fake
    with unset_fake_temporarily():
        return operation(*args, **kwargs)


def _count_flops(operation: Any, args: Any, kwargs: Any, result: Any) -> int:
    packet, aten = operation._overloadpacket, torch.ops.aten
    if packet is aten._scaled_dot_product_flash_attention_for_cpu:
        return int(sdpa_flop_count(*(each.shape for each in args[:3])))
    if packet is aten._scaled_dot_product_flash_attention_for_cpu_backward:
        return int(sdpa_backward_flop_count(*(each.shape for each in args[:4])))
    count = flop_registry.get(packet)
    return 0 if count is None else int(count(*args, **kwargs, out_val=result))


def _is_fp32(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype is torch.float32


@contextmanager
def _branches_of_a_real_run() -> Iterator[None]:
    """Have transformers take the branches of a real run, and not those of an export."""
    from transformers.utils import import_utils

    original = import_utils.is_fake_tensor
    import_utils.is_fake_tensor = lambda _: False
    try:
        yield
    finally:
        import_utils.is_fake_tensor = original


@contextmanager
def _fake_values(model: nn.Module, mode: FakeTensorMode) -> Iterator[None]:
    """Replace parameters and buffers on the meta device by fake ones on the CPU."""
    replaced: list[tuple[dict[str, Any], str, Any]] = []
    fakes: dict[int, Any] = {}
    for module in model.modules():
        for values in (module._parameters, module._buffers):
            for name, value in values.items():
                if value is None:
                    continue
                if id(value) not in fakes:
                    fakes[id(value)] = _to_fake(value, mode)
                replaced.append((values, name, value))
                values[name] = fakes[id(value)]
    try:
        yield
    finally:
        for values, name, value in replaced:
            values[name] = value


def _to_fake(value: Tensor, mode: FakeTensorMode) -> Tensor:
    """Return a fake tensor, or a parameter, of the same shape, dtype and need of a gradient."""
    with mode:
        fake = torch.empty(value.shape, dtype=value.dtype, device="cpu")
        if not isinstance(value, torch.nn.Parameter):
            return fake
        parameter = torch.nn.Parameter(fake, requires_grad=value.requires_grad)
        if value.grad is not None:
            parameter.grad = torch.empty_like(parameter, dtype=value.grad.dtype)
        return parameter
