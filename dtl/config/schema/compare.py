"""The section `compare`: the runs of a comparison, and what they are scored on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from dtl.config import registry
from dtl.config.schema.base import ConfigFault, Record, check_duration, raise_config_faults
from dtl.config.schema.data import Source

LP_FT = "lp-ft"
STRATEGIES = ("scratch", "frozen", "lora", "partial", "full", LP_FT)
RISING = "write rising numbers, and 'all' last, such as [5, 20, all]"


class Compare(Record):
    """What `dtl compare` runs and scores. It has no effect on a single run."""

    strategies: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description=f"names of strategies, and {LP_FT}: frozen for half of the steps, then full; "
        f"default: those of {', '.join(STRATEGIES)} that are possible for the model",
    )
    train_sizes: tuple[int | Literal["all"], ...] = Field(
        default=(5, 20, 100, "all"),
        min_length=1,
        description="numbers of labeled rows to train on, one after the other: of each class where "
        "the task has classes, else rows in all",
    )
    seeds: int = Field(
        default=3,
        ge=1,
        description="runs of each combination, each with its own rows, head and order",
    )
    learning_rates: dict[str, tuple[float, ...]] = Field(
        default_factory=dict,
        description="strategy -> the learning rates that are tried for it; default: five around "
        "the usual one",
    )
    learning_rate_search: Literal["once", "per_size"] = Field(
        default="once",
        description="search learning rates once, with the middle training size, or for each size",
    )
    validation_fraction: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="share of data.train, at most 500 rows, by which learning rates are chosen; no "
        "run trains on them, and no reported score is of them",
    )
    time_budget: str | None = Field(
        default=None,
        description="time limit of all runs together, as 45min or 2h; the report lists the runs "
        "that did not fit",
    )
    ood_data: Source | None = Field(
        default=None, description="out-of-distribution rows, on which every run is scored as well"
    )
    source_data: Source | None = Field(
        default=None,
        description="held-out rows of the task that the base was trained on, to measure what each "
        "run forgets",
    )

    @field_validator("learning_rates", mode="before")
    @classmethod
    def _convert_to_tuples(cls, learning_rates: object) -> object:
        if not isinstance(learning_rates, dict):
            return learning_rates
        return {
            name: tuple(value) if isinstance(value, list) else (value,)
            for name, value in learning_rates.items()
        }

    @field_validator("train_sizes")
    @classmethod
    def _check_rising(
        cls, sizes: tuple[int | Literal["all"], ...]
    ) -> tuple[int | Literal["all"], ...]:
        numbers = [size for size in sizes if size != "all"]
        if any(number < 1 for number in numbers) or numbers != sorted(set(numbers)):
            raise_config_faults(
                [ConfigFault(problem=f"{list(sizes)} does not rise from 1", fix=RISING)]
            )
        if "all" in sizes[:-1]:
            raise_config_faults([ConfigFault(problem="'all' is not the last one", fix=RISING)])
        return sizes

    _check_time_budget = field_validator("time_budget")(check_duration)

    @model_validator(mode="after")
    def _check_strategies(self) -> Self:
        raise_config_faults([*self._name_faults(), *self._learning_rate_faults()])
        return self

    def _name_faults(self) -> Iterator[ConfigFault]:
        names = [("strategies", name) for name in self.strategies or ()]
        names += [("learning_rates", name) for name in self.learning_rates]
        known = (*registry.list_names("strategies"), LP_FT)
        for key, name in names:
            if name not in known:
                problem, fix = registry.describe_unknown("strategies", name)
                yield ConfigFault(key, problem=problem, fix=fix)
        if len(set(self.strategies or ())) < len(self.strategies or ()):
            yield ConfigFault(
                "strategies", problem="a strategy is listed twice", fix="list each strategy once"
            )

    def _learning_rate_faults(self) -> Iterator[ConfigFault]:
        for name, rates in self.learning_rates.items():
            if not rates or min(rates) <= 0 or max(rates) > 100 or len(set(rates)) < len(rates):
                yield ConfigFault(
                    "learning_rates",
                    problem=f"{list(rates)} of {name} are not different rates above 0, at most 100",
                    fix="write them as [0.001, 0.003]",
                )
