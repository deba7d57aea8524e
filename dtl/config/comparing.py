"""The grid of a comparison, as a config says it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from dtl.config import registry
from dtl.config.record import ConfigFault, Record, refuse
from dtl.core.units import parse_seconds

LP_FT = "lp-ft"
STRATEGIES = ("scratch", "frozen", "lora", "partial", "full", LP_FT)


class Grid(Record):
    """What is tried with each of the others."""

    strategies: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description=f"names of strategies, and {LP_FT}: frozen for half of the steps, then full; "
        f"left out: those of {', '.join(STRATEGIES)} that the model has a place for",
    )
    labels: tuple[int | Literal["all"], ...] = Field(
        default=(5, 20, 100, "all"),
        min_length=1,
        description="how many labelled rows to learn from, in turn: of each class where the task "
        "has classes, else rows",
    )
    seeds: int = Field(
        default=3, ge=1, description="runs of each, with other rows, heads and orders"
    )
    rates: dict[str, tuple[float, ...]] = Field(
        default_factory=dict,
        description="strategy -> the learning rates that are tried for it; left out: five around "
        "what is usual",
    )
    search: Literal["once", "each"] = Field(
        default="once",
        description="learning rates are searched with the middle number of labels, or with each",
    )
    apart: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="share of data.train, of 500 rows at most, by which learning rates are chosen; "
        "no run learns from them, and no score that is told is of them",
    )
    budget: str | None = Field(
        default=None,
        description="longest time of the whole grid, as 45min or 2h; what does not fit is told",
    )

    @field_validator("rates", mode="before")
    @classmethod
    def _rates_are_lists(cls, rates: object) -> object:
        if not isinstance(rates, dict):
            return rates
        return {
            name: tuple(each) if isinstance(each, list) else (each,) for name, each in rates.items()
        }

    @field_validator("labels")
    @classmethod
    def _from_few_to_all(
        cls, labels: tuple[int | Literal["all"], ...]
    ) -> tuple[int | Literal["all"], ...]:
        numbers = [label for label in labels if label != "all"]
        if any(number < 1 for number in numbers) or numbers != sorted(set(numbers)):
            refuse([ConfigFault(problem=f"{list(labels)} does not rise from 1", fix=_RISING)])
        if "all" in labels[:-1]:
            refuse([ConfigFault(problem="'all' is not the last one", fix=_RISING)])
        return labels

    @field_validator("budget")
    @classmethod
    def _is_a_time(cls, budget: str | None) -> str | None:
        try:
            if budget is not None:
                parse_seconds(budget)
        except ValueError as fault:
            refuse([ConfigFault(problem=str(fault), fix="write it as 45min or 2h")])
        return budget

    @model_validator(mode="after")
    def _strategies_are_known(self) -> Self:
        named = [("strategies", name) for name in self.strategies or ()]
        named += [("rates", name) for name in self.rates]
        known = (*registry.names("strategies"), LP_FT)
        faults = []
        for key, name in named:
            if name not in known:
                problem, fix = registry.unknown("strategies", name)
                faults.append(ConfigFault(key, problem=problem, fix=fix))
        if len(set(self.strategies or ())) < len(self.strategies or ()):
            faults.append(
                ConfigFault("strategies", problem="one is named twice", fix="name each once")
            )
        for name, rates in self.rates.items():
            if not rates or min(rates) <= 0 or len(set(rates)) < len(rates):
                faults.append(
                    ConfigFault(
                        "rates",
                        problem=f"{list(rates)} of {name} are not different rates above 0",
                        fix="write them as [0.001, 0.003]",
                    )
                )
        refuse(faults)
        return self


_RISING = "write rising numbers, and 'all' last, such as [5, 20, all]"
