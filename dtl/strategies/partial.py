"""Partial fine-tuning: chosen blocks learn, and what stands above them."""

from __future__ import annotations

from fnmatch import fnmatchcase
from math import ceil
from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator

from dtl.config.record import ConfigFault, Record, refuse
from dtl.core.errors import DtlError, Fault, near
from dtl.models.anatomy import anatomy, depths, norm_parameters, train_above
from dtl.strategies.base import Strategy, set_trainable

if TYPE_CHECKING:
    from torch import nn

TOP = 0.25  # the share of blocks that learn where nothing else is asked for


class Options(Record):
    """Options of `strategy: partial`. Blocks are numbered from 0 in the order in which they run, an
    encoder's before a decoder's."""

    top: float | None = Field(
        None,
        gt=0,
        description="How many of the last blocks learn; below 1: which share of them, rounded up. "
        f"Left out: {TOP}, unless blocks or names say what learns.",
    )
    blocks: tuple[int, int] | None = Field(
        None,
        description="Instead of the last blocks, those from one number to another, both included; "
        "[0, 0] is the first one alone (surgical fine-tuning, arXiv:2210.11466).",
    )
    names: tuple[str, ...] = Field(
        (),
        description="Parameters that learn as well, by patterns of their whole names with * and ?, "
        "such as '*.q_proj.*'.",
    )
    norms: bool = Field(False, description="Let all normalisation layers learn as well.")
    embeddings: bool = Field(
        False,
        description="Let what stands below the blocks learn as well: embeddings, the first "
        "convolutions, and a head that is tied to them.",
    )
    head: bool = Field(
        True,
        description="Let what stands above the blocks learn as well: a last norm, a pooler, the "
        "head. A new head always does.",
    )

    @model_validator(mode="after")
    def _blocks_are_told_once(self) -> Self:
        faults = []
        if self.top is not None and self.blocks is not None:
            faults.append(
                ConfigFault("top", problem="blocks says already which learn", fix="leave out one")
            )
        if self.top is not None and self.top > 1 and self.top != int(self.top):
            faults.append(
                ConfigFault(
                    "top",
                    problem=f"there are no {self.top:g} blocks",
                    fix="write a whole number, or a share below 1",
                )
            )
        if self.blocks is not None and not 0 <= self.blocks[0] <= self.blocks[1]:
            first, last = self.blocks
            faults.append(
                ConfigFault(
                    "blocks",
                    problem=f"there are none from {first} to {last}",
                    fix="write the first number, from 0, and then the last",
                )
            )
        refuse(faults)
        return self


class Plugin(Strategy):
    """Chosen blocks move, and what stands above the blocks; below them no gradient is computed."""

    learning_rate = 5e-5
    options: Options

    def apply(self, model: nn.Module, *, new: frozenset[str]) -> nn.Module:
        options, depth = self.options, depths(model)
        blocks = len(anatomy(model).blocks)
        learn = set(self._blocks(blocks))
        if options.embeddings:
            learn.add(0)
        if options.head:
            learn.add(blocks + 1)
        names = {name for name, place in depth.items() if place in learn}
        if options.norms:
            names |= norm_parameters(model)
        return set_trainable(model, names | self._named(model) | new)

    def training_mode(self, model: nn.Module) -> None:
        """What is below the lowest part that learns stands still: no dropout, no SpecAugment in
        the model, no LayerDrop, so that it gives the same in every epoch."""
        depth = depths(model)
        learning = [name for name, value in model.named_parameters() if value.requires_grad]
        train_above(model, min(depth[name] for name in learning))

    def _blocks(self, count: int) -> range:
        """The depths of the blocks that learn. Raises DtlError where the model has fewer."""
        options = self.options
        if options.blocks is None and options.top is None and options.names:
            return range(0)
        if options.blocks is not None:
            first, last = options.blocks
            key, asked = "blocks", last + 1
        else:
            top = TOP if options.top is None else options.top
            asked = ceil(top * count) if top < 1 else int(top)
            key, first, last = "top", count - asked, count - 1
        if asked > count:
            raise DtlError.of(
                f"strategy.{key}",
                f"the model has {count} blocks, numbered 0 to {count - 1}",
                "ask for fewer, or take strategy full",
            )
        return range(first + 1, last + 2)

    def _named(self, model: nn.Module) -> set[str]:
        """What the patterns name. Raises DtlError for those that name nothing of its own."""
        first = {id(value): name for name, value in model.named_parameters()}
        every = {
            name: first[id(value)] for name, value in model.named_parameters(remove_duplicate=False)
        }
        found: set[str] = set()
        faults = []
        for pattern in self.options.names:
            named = [name for name in every if fnmatchcase(name, pattern)]
            found.update(name for name in named if every[name] == name)
            if not named:
                problem = f"'{pattern}' names no parameter of {type(model).__name__}"
                fix = near(pattern, every) or f"write whole names, such as {next(iter(every))}"
                faults.append(Fault("strategy.names", problem, f"{fix}, or * for a part of them"))
            elif not found.intersection(named):
                tied = every[named[0]]
                problem = f"{named[0]} is tied to {tied}: they are one parameter"
                faults.append(Fault("strategy.names", problem, f"name {tied}"))
        if faults:
            raise DtlError(*faults)
        return found
