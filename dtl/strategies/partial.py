"""Partial fine-tuning: selected blocks and what is above the blocks are trained."""

from __future__ import annotations

from fnmatch import fnmatchcase
from math import ceil
from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator

from dtl.config.schema.base import ConfigFault, Record, raise_config_faults
from dtl.core.errors import DtlError, Fault, near
from dtl.models.structure.model_structure import (
    find_structure,
    parameter_depths,
    set_training_from_depth,
)
from dtl.models.structure.module_kinds import norm_parameters
from dtl.strategies.base import Strategy, set_trainable

if TYPE_CHECKING:
    from torch import nn

DEFAULT_TOP_SHARE = 0.25  # share of the blocks that are trained if no option says otherwise


class Options(Record):
    """Options of `strategy: partial`. Blocks are numbered from 0 in forward order, those of an
    encoder before those of a decoder."""

    top: float | None = Field(
        None,
        gt=0,
        description="Number of last blocks that are trained; below 1: their share, rounded up. "
        f"Left out: {DEFAULT_TOP_SHARE}, unless blocks or parameter_names is set.",
    )
    blocks: tuple[int, int] | None = Field(
        None,
        description="Range of trained blocks, first and last number included, instead of the last "
        "blocks; [0, 0] is only the first block (surgical fine-tuning, arXiv:2210.11466).",
    )
    parameter_names: tuple[str, ...] = Field(
        (),
        description="Parameters that are trained as well: patterns of full names with * and ?, "
        "such as '*.q_proj.*'.",
    )
    norms: bool = Field(False, description="Train all normalization layers as well.")
    embeddings: bool = Field(
        False,
        description="Train what is below the blocks as well: embeddings, the first convolutions, "
        "and a head that is tied to them.",
    )
    head: bool = Field(
        True,
        description="Train what is above the blocks as well: the last norm, the pooler, the head. "
        "A new head is always trained.",
    )

    @model_validator(mode="after")
    def _check_blocks(self) -> Self:
        faults = []
        if self.top is not None and self.blocks is not None:
            faults.append(
                ConfigFault("top", problem="cannot be combined with blocks", fix="remove one")
            )
        if self.top is not None and self.top > 1 and self.top != int(self.top):
            faults.append(
                ConfigFault(
                    "top",
                    problem=f"is not an integer (got {self.top:g})",
                    fix="write an integer number of blocks, or a share below 1",
                )
            )
        if self.blocks is not None and not 0 <= self.blocks[0] <= self.blocks[1]:
            first, last = self.blocks
            faults.append(
                ConfigFault(
                    "blocks",
                    problem=f"is not a range of blocks (expected 0 <= first <= last, got {first}, "
                    f"{last})",
                    fix="write the number of the first block, then that of the last",
                )
            )
        raise_config_faults(faults)
        return self


class Plugin(Strategy):
    """Trains selected blocks and what is above the blocks; no gradient is computed below them."""

    learning_rate = 5e-5
    scales_learning_rate = True
    options: Options

    def apply(self, model: nn.Module, *, new_parameters: frozenset[str]) -> nn.Module:
        options, depth = self.options, parameter_depths(model)
        blocks = len(find_structure(model).blocks)
        trained_depths = set(self._trainable_blocks(blocks))
        if options.embeddings:
            trained_depths.add(0)
        if options.head:
            trained_depths.add(blocks + 1)
        names = {name for name, level in depth.items() if level in trained_depths}
        if options.norms:
            names |= norm_parameters(model)
        return set_trainable(model, names | self._match_parameter_names(model) | new_parameters)

    def set_training_mode(self, model: nn.Module) -> None:
        """Set all modules below the lowest trained one to evaluation mode: without dropout,
        SpecAugment and LayerDrop their outputs are the same in every epoch."""
        depth = parameter_depths(model)
        trainable = [name for name, value in model.named_parameters() if value.requires_grad]
        set_training_from_depth(model, min(depth[name] for name in trainable))

    def trains_by_name(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.options.parameter_names)

    def _trainable_blocks(self, count: int) -> range:
        """Return the depths of the trained blocks. Raises DtlError if the model has fewer."""
        options = self.options
        if options.blocks is None and options.top is None and options.parameter_names:
            return range(0)
        if options.blocks is not None:
            first, last = options.blocks
            key, required = "blocks", last + 1
        else:
            top = DEFAULT_TOP_SHARE if options.top is None else options.top
            required = ceil(top * count) if top < 1 else int(top)
            key, first, last = "top", count - required, count - 1
        if required > count:
            raise DtlError.of(
                f"strategy.{key}",
                f"the model has {count} blocks, numbered 0 to {count - 1}",
                "lower it, or take strategy full",
            )
        return range(first + 1, last + 2)

    def _match_parameter_names(self, model: nn.Module) -> set[str]:
        """Return the names of the parameters that match the patterns.

        Raises DtlError for patterns that match no parameter, or only tied names of parameters.
        """
        first_names = {id(value): name for name, value in model.named_parameters()}
        every = {
            name: first_names[id(value)]
            for name, value in model.named_parameters(remove_duplicate=False)
        }
        matched: set[str] = set()
        faults = []
        for pattern in self.options.parameter_names:
            matches = [name for name in every if fnmatchcase(name, pattern)]
            matched.update(name for name in matches if every[name] == name)
            if not matches:
                problem = f"'{pattern}' matches no parameter of {type(model).__name__}"
                fix = near(pattern, every) or f"write full names, such as {next(iter(every))}"
                faults.append(
                    Fault("strategy.parameter_names", problem, f"{fix}, or * for a part of them")
                )
            elif not matched.intersection(matches):
                tied = every[matches[0]]
                problem = f"{matches[0]} is tied to {tied}: they are one parameter"
                faults.append(Fault("strategy.parameter_names", problem, f"use {tied}"))
        if faults:
            raise DtlError(*faults)
        return matched
