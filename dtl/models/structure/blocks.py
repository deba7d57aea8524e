"""Find the blocks of a transformers model, in forward order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dtl.core.errors import DtlError
from dtl.models.full_shape import num_dimensions
from dtl.models.structure.forward_order import children_in_forward_order

if TYPE_CHECKING:
    from torch import nn


MAX_STAGE_MATRICES = 2  # a stage has at most so many besides its blocks, to change the width
LAYER_COUNT_KEYS = ("num_hidden_layers", "encoder_layers", "decoder_layers")


def find_blocks(model: nn.Module) -> dict[str, str]:
    """Return the names of the blocks in forward order, each with the name of its outermost list.

    Raises DtlError if they cannot be found.
    """
    blocks = dict(_iter_blocks(model, "", "", matrices=2)) or dict(
        _iter_blocks(model, "", "", matrices=1)
    )
    lists = dict.fromkeys(blocks.values())
    owners = Counter(name.rpartition(".")[0] for name in lists)
    config = getattr(model, "config", None)
    layer_counts = [getattr(config, name, None) for name in LAYER_COUNT_KEYS]
    fewest = min((count for count in layer_counts if isinstance(count, int)), default=0)
    problem = ""
    if not blocks:
        problem = "has no list of blocks"
    elif max(owners.values()) > 1:
        problem = f"has the parts of its blocks in several lists ({', '.join(lists)})"
    elif len(blocks) < fewest:
        problem = f"runs {fewest} layers with the weights of {len(blocks)}"
    if problem:
        raise DtlError.of(
            "model.path",
            f"{type(model).__name__} {problem}: its blocks cannot be separated",
            "take a strategy that does not select blocks, such as full or lora",
        )
    return blocks


def _iter_blocks(
    module: nn.Module, name: str, outermost: str, *, matrices: int
) -> Iterator[tuple[str, str]]:
    """Yield the name of each block with the name of its outermost list.

    A block is a member of a list of repeated classes and has at least `matrices` matrices: one that
    has only one is a convolution with its norm. A member that is little more than a list of blocks
    is a stage, and its blocks are yielded.
    """
    if not _is_list_of_blocks(module, matrices):
        for child in children_in_forward_order(module):
            if (part := module._modules.get(child)) is not None:
                yield from _iter_blocks(part, join_names(name, child), outermost, matrices=matrices)
        return
    for number, member in module.named_children():
        path, outermost = join_names(name, number), outermost or name
        inside = list(_iter_blocks(member, path, outermost, matrices=matrices))
        inner_matrices = sum(
            _count_matrices(member.get_submodule(_relative_path(path, block)))
            for block, _ in inside
        )
        if inside and _count_matrices(member) - inner_matrices <= MAX_STAGE_MATRICES:
            yield from inside
        else:
            yield path, outermost


def _is_list_of_blocks(module: nn.Module, matrices: int) -> bool:
    from torch import nn

    members = list(module.children())
    if not members or not isinstance(module, (nn.ModuleList, nn.Sequential)):
        return False
    has_repeats = len(members) == 1 or len({type(member) for member in members}) < len(members)
    return has_repeats and all(_count_matrices(member) >= matrices for member in members)


def _count_matrices(module: nn.Module) -> int:
    """Return the number of weights with two dimensions or more, without those of adapters."""
    base = getattr(module, "base_layer", None)
    if base is not None:
        return _count_matrices(base)
    own = sum(num_dimensions(parameter) > 1 for parameter in module.parameters(recurse=False))
    return own + sum(_count_matrices(child) for child in module.children())


def join_names(name: str, child: str) -> str:
    return f"{name}.{child}" if name else child


def _relative_path(name: str, path: str) -> str:
    return path[len(name) + 1 :]
