"""The structure of any transformers model: embeddings, ordered blocks, head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dtl.models.structure.blocks import find_blocks, join_names
from dtl.models.structure.forward_order import children_in_forward_order
from dtl.models.structure.head import head_module_names
from dtl.models.structure.wrappers import find_transformers_model

if TYPE_CHECKING:
    from torch import nn

    Part = nn.Module | nn.Parameter


@dataclass(frozen=True)
class ModelStructure:
    """Names of modules. `embeddings`: all modules before the blocks. `blocks`: in forward order,
    those of an encoder before those of a decoder. `head`: the modules after the base."""

    embeddings: tuple[str, ...]
    blocks: tuple[str, ...]
    head: tuple[str, ...]


def find_structure(model: nn.Module) -> ModelStructure:
    """Return the structure of a model, also of one that PEFT has wrapped or that is partitioned.

    It is derived from the modules and the source of `forward`. Raises DtlError if there are no
    blocks that run one after another.
    """
    outer, inner = find_transformers_model(model)
    blocks = find_blocks(inner)
    heads = head_module_names(inner)
    lowest = {key for key, depth in _depths_by_id(inner, blocks).items() if depth == 0}
    embeddings = [
        name for name in _iter_modules_within(inner, lowest) if name.partition(".")[0] not in heads
    ]
    parts = ([outer + name for name in names] for names in (embeddings, blocks, heads))
    return ModelStructure(*map(tuple, parts))


def parameter_depths(model: nn.Module) -> dict[str, int]:
    """Return the depth of each parameter: 0 in the embeddings, 1 to n in the blocks, n + 1 above.

    Modules between two stages have the depth of the block that follows; a norm after an encoder
    that of the encoder's last block. A decoder's embeddings and prompts have depth 0. A tied
    parameter has one name and its lowest depth. Raises DtlError as `find_structure` does.
    """
    _, inner = find_transformers_model(model)
    depths = _depths_by_id(inner, find_blocks(inner))
    return {name: depths.get(id(value), 0) for name, value in model.named_parameters()}


def _depths_by_id(model: nn.Module, blocks: dict[str, str]) -> dict[int, int]:
    """Return the depth of each parameter, by its id."""
    depths: dict[int, int] = {}
    for part, depth in _iter_parts_with_depth(model, blocks):
        for parameter in _list_parameters(part):
            depths[id(parameter)] = min(depth, depths.get(id(parameter), depth))
    return depths


def _iter_parts_with_depth(model: nn.Module, blocks: dict[str, str]) -> Iterator[tuple[Part, int]]:
    """Yield blocks and all parts outside of them, each with its depth."""
    names, passed = list(blocks), 0
    for path, part in _iter_parts(model, "", blocks):
        if path in blocks:
            passed += 1
            yield part, passed
        elif passed in (0, len(names)):
            yield part, passed and passed + 1
        else:
            before, after = blocks[names[passed - 1]], blocks[names[passed]]
            if before == after:
                yield part, passed + 1
            else:
                yield part, 0 if path.startswith(after.rpartition(".")[0] + ".") else passed


def _iter_parts(module: nn.Module, name: str, blocks: dict[str, str]) -> Iterator[tuple[str, Part]]:
    """Yield blocks, and modules and parameters without blocks, in forward order."""
    for child in children_in_forward_order(module):
        path = join_names(name, child)
        parameter, part = module._parameters.get(child), module._modules.get(child)
        if parameter is not None:
            yield path, parameter
        elif part is not None and path not in blocks and _contains_block(path, blocks):
            yield from _iter_parts(part, path, blocks)
        elif part is not None:
            yield path, part


def _contains_block(path: str, blocks: dict[str, str]) -> bool:
    return any(block.startswith(f"{path}.") for block in blocks)


def _list_parameters(part: Part) -> list[nn.Parameter]:
    from torch import nn

    return list(part.parameters()) if isinstance(part, nn.Module) else [part]


def _iter_modules_within(module: nn.Module, parameters: set[int], name: str = "") -> Iterator[str]:
    """Yield the largest modules that have only these parameters, by id."""
    for child, part in module.named_children():
        own = {id(parameter) for parameter in part.parameters()}
        if own and own <= parameters:
            yield join_names(name, child)
        elif own & parameters:
            yield from _iter_modules_within(part, parameters, join_names(name, child))


def set_training_from_depth(model: nn.Module, depth: int) -> None:
    """Set training mode from this depth upwards, and evaluation mode below.

    Modules that contain blocks are in evaluation mode too, unless `depth` is 0: their dropout,
    masking and LayerDrop act from the lowest block on.
    """
    from torch import nn

    model.train(depth == 0)
    _, inner = find_transformers_model(model)
    for part, part_depth in _iter_parts_with_depth(inner, find_blocks(inner)):
        if isinstance(part, nn.Module):
            part.train(part_depth >= depth)
