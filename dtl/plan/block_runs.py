"""Shorten a model without weights, to trace a few of the blocks that are alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dtl.core.errors import DtlError
from dtl.models.structure.blocks import find_blocks

if TYPE_CHECKING:
    from torch import nn

FEWEST = 2  # blocks of a run that are traced
MORE = 4  # of one run in another trace, from which follows what a block adds


@dataclass(frozen=True)
class BlockRun:
    """Consecutive blocks that have the same parameters. `owner`: the name of their list.
    `start`, `end`: their positions in it."""

    owner: str
    start: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.start


def find_long_runs(model: nn.Module) -> list[BlockRun]:
    """Return the runs of more than `MORE` blocks in lists of modules."""
    from torch import nn

    from dtl.models.structure.wrappers import find_transformers_model, unwrap

    prefix, inner = find_transformers_model(unwrap(model))
    try:
        names = list(find_blocks(inner))
    except DtlError:  # the blocks cannot be separated: all of them are traced
        return []
    owners = dict.fromkeys(name.rpartition(".")[0] for name in names)
    runs = []
    for owner in owners:
        path = f"{prefix}{owner}"
        blocks = model.get_submodule(path)
        if isinstance(blocks, nn.ModuleList):
            runs += [run for run in _runs_of(path, blocks) if run.length > MORE]
    return runs


def _runs_of(path: str, blocks: nn.ModuleList) -> Iterator[BlockRun]:
    signatures = [_signature(block) for block in blocks]
    start = 0
    for position in range(1, len(signatures) + 1):
        if position == len(signatures) or signatures[position] != signatures[start]:
            yield BlockRun(path, start, position)
            start = position


def _signature(block: nn.Module) -> tuple[Any, ...]:
    return (
        type(block),
        *((name, value.shape, value.requires_grad) for name, value in block.named_parameters()),
    )


@contextmanager
def shorten(model: nn.Module, lengths: Mapping[BlockRun, int]) -> Iterator[None]:
    """Run the model with only so many blocks of each run, the first ones."""
    from torch import nn

    replaced = []
    for owner in {run.owner for run in lengths}:
        blocks: Any = model.get_submodule(owner)
        dropped = {
            position
            for run, length in lengths.items()
            if run.owner == owner
            for position in range(run.start + length, run.end)
        }
        remaining = [block for position, block in enumerate(blocks) if position not in dropped]
        parent, _, name = owner.rpartition(".")
        replaced.append((model.get_submodule(parent), name, blocks))
        model.get_submodule(parent)._modules[name] = nn.ModuleList(remaining)
    try:
        yield
    finally:
        for module, name, blocks in replaced:
            module._modules[name] = blocks
