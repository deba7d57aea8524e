"""The runs of a comparison: which there are, and the config of each, as pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any, Literal

from dtl.config import registry
from dtl.config.comparing import LP_FT
from dtl.config.schema import RunConfig

SCRATCH = "scratch"
SCALED = ("full", "partial", LP_FT, "lora")  # whose rates go with one another
AROUND = (0.1, 0.3, 1.0, 3.0, 10.0)  # times the usual rate
SCORINGS = 5  # of a cell, for its score over time
SHARES = (0.25, 0.5)  # of the steps, in the rounds of a search under a budget


@dataclass(frozen=True)
class Labels:
    """A number of labelled rows. `asked`: None is all; `number`: of each class, or `rows`."""

    asked: int | None
    number: int
    rows: int


@dataclass(frozen=True)
class Planned:
    """A run. `kind`: rate tells which learning rate to take, from the rows kept apart; cell is in
    the table. `round` and `place`: of a rate, which round of the search, and which of the rates
    that are in it, the best one of the round before first."""

    kind: Literal["rate", "cell"]
    strategy: str
    labels: Labels
    seed: int
    share: float = 1.0
    round: int = 0
    place: int = 0

    @property
    def name(self) -> str:
        """Of its folder."""
        if self.kind == "rate":
            which = f"{self.round + 1}.{self.place + 1}"
            return f"rate-{self.strategy}-{self.labels.number}-{which}"
        return f"{self.strategy}-{self.labels.number}-seed{self.seed}"


@dataclass(frozen=True)
class Tried:
    """What a rate came to; `score`: more is better, None where the run failed."""

    planned: Planned
    learning_rate: float
    score: float | None


@dataclass(frozen=True)
class Grid:
    """All runs of a comparison. `config`: as it was given; `classes`: None where the task has
    none."""

    config: RunConfig
    strategies: tuple[str, ...]
    labels: tuple[Labels, ...]
    classes: int | None

    def to_dict(self) -> dict[str, Any]:
        return {
            "config": self.config.model_dump(mode="json"),
            "strategies": list(self.strategies),
            "labels": [asdict(labels) for labels in self.labels],
            "classes": self.classes,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Grid:
        return cls(
            RunConfig.model_validate(values["config"]),
            tuple(values["strategies"]),
            tuple(Labels(**each) for each in values["labels"]),
            values["classes"],
        )

    @property
    def seeds(self) -> tuple[int, ...]:
        first = self.config.train.seed
        return tuple(range(first, first + self.config.compare.seeds))

    @property
    def planned(self) -> tuple[Planned, ...]:
        """All runs in order: those that others wait for first; then seed by seed, so that an early
        end leaves whole rounds."""
        return (*self.searches, *self.cells)

    @property
    def searches(self) -> tuple[Planned, ...]:
        """The runs that tell which learning rate a strategy takes, with the first seed."""
        searched = dict.fromkeys(map(self.searched, self.labels))
        rounds = {strategy: self.rounds(strategy) for strategy in self.strategies}
        return tuple(
            Planned("rate", strategy, labels, self.seeds[0], share, number, place)
            for number in range(max(map(len, rounds.values())))
            for labels in searched
            for strategy in self.strategies
            for share, rates in rounds[strategy][number : number + 1]
            for place in range(rates)
        )

    def searched(self, labels: Labels) -> Labels:
        """Those with which the learning rate of a cell is searched: its own, or the middle ones."""
        if self.config.compare.search == "each":
            return labels
        return self.labels[(len(self.labels) - 1) // 2]

    def same_rate(self, one: Planned, other: Planned) -> bool:
        """Whether two runs wait for the same search."""
        alike = self.searched(one.labels) == self.searched(other.labels)
        return one.strategy == other.strategy and alike

    @property
    def cells(self) -> tuple[Planned, ...]:
        return tuple(
            Planned("cell", strategy, labels, seed)
            for seed in self.seeds
            for labels in self.labels
            for strategy in self.strategies
        )

    @property
    def hint_config(self) -> RunConfig:
        """With the fewest labels, scored on the rows kept apart."""
        fewest = Planned("rate", "full", self.labels[0], self.seeds[0])
        return self.config_of(fewest, self.usual_rate("full"), runs=".")

    def rounds(self, strategy: str) -> list[tuple[float, int]]:
        """Share of the steps and number of rates of each round of a strategy's search. Under a
        budget the worse half of the rates is dropped after each (successive halving)."""
        rates = len(self.rates(strategy))
        if rates == 1:
            return []
        if self.config.compare.budget is None:
            return [(1.0, rates)]
        rounds = []
        for share in SHARES if rates > 2 else SHARES[-1:]:
            rounds.append((share, rates))
            rates = ceil(rates / 2)
        return rounds

    def rates(self, strategy: str) -> tuple[float, ...]:
        """The learning rates that are tried for a strategy, rising."""
        given = self.config.compare.rates.get(strategy)
        if given is not None:
            return tuple(sorted(given))
        usual = self.usual_rate(strategy)
        return tuple(float(f"{usual * times:.3g}") for times in AROUND)

    def usual_rate(self, strategy: str) -> float:
        """The config's own for its strategy, and for those whose rates go with it, as LoRA's is
        ten times full's; else what is usual for the strategy."""
        own, given = own_strategy(self.config), self.config.optim.learning_rate
        usual = _default_rate(strategy)
        if given is None or (own != strategy and not {own, strategy} <= set(SCALED)):
            return usual
        return given * usual / _default_rate(own)

    def rate_of(self, planned: Planned, tried: Sequence[Tried]) -> float | None:
        """The learning rate of a run, given what others came to; None: others come first."""
        rates = self.rates(planned.strategy)
        search = [one for one in tried if self.same_rate(one.planned, planned)]
        if planned.kind == "rate" and planned.round == 0:
            return rates[planned.place]
        if planned.kind == "rate":
            ranked = _ranked(search, round=planned.round - 1)
            wanted = self.rounds(planned.strategy)[planned.round - 1][1]
            return ranked[planned.place] if len(ranked) == wanted else None
        if len(rates) == 1:
            return rates[0]
        last = len(self.rounds(planned.strategy)) - 1
        wanted = self.rounds(planned.strategy)[last][1]
        ranked = _ranked(search, round=last)
        return ranked[0] if len(ranked) == wanted else None

    def best_so_far(self, planned: Planned, tried: Sequence[Tried]) -> float:
        """Where a budget ends the search for a cell early: the best rate of the latest round with
        any; the middle one where none was tried."""
        search = [one for one in tried if self.same_rate(one.planned, planned)]
        for number in reversed(range(len(self.rounds(planned.strategy)))):
            if ranked := _ranked(search, round=number):
                return ranked[0]
        rates = self.rates(planned.strategy)
        return rates[len(rates) // 2]

    def config_of(self, planned: Planned, rate: float, *, runs: str) -> RunConfig:
        """The config of an ordinary run. `runs`: the folder that its folder is made in."""
        values = self.config.model_dump(mode="json")
        train, compare = values["train"], self.config.compare
        searches = planned.kind == "rate"
        steps = max(1, round(train["steps"] * planned.share))
        train |= {
            "steps": steps,
            "seed": planned.seed,
            "evaluate_every": None if searches else _rhythm(train["evaluate_every"], steps),
            "keep_best": False,
            "export": "last",
            "ema": None,
            "average": None,
        }
        values["strategy"] = self.strategy(planned.strategy, rate)
        values["optim"]["learning_rate"] = rate
        values["data"]["draw"] = {
            "labels": planned.labels.asked,
            "within": self._shared(planned.labels),
            "seed": planned.seed,
            "apart": compare.apart,
            "score_on": "apart" if searches else "eval",
        }
        if searches:
            values["task"]["group_by"] = None
        values["run"] = {"name": planned.name, "dir": runs}
        values.pop("compare")
        return RunConfig.model_validate(values)

    def _shared(self, labels: Labels) -> int | str | None:
        """The most labels of which every row is read more than once, if they are more: a frozen
        base reads their rows for all cells of a seed."""
        train = self.config.train
        reads = (train.steps or 0) * train.global_batch.limit
        if train.global_batch.unit != "examples":
            return None
        fit = [one for one in self.labels if labels.rows < one.rows < reads]
        return ("all" if fit[-1].asked is None else fit[-1].asked) if fit else None

    def strategy(self, name: str, rate: float) -> Any:
        """As a config has it; with the config's own options where it names the same."""
        if name == LP_FT:
            head = {"name": "frozen", "length": 0.5, "learning_rate": self.usual_rate("frozen")}
            return [head, {**self._options("full"), "learning_rate": rate}]
        return self._options(name)

    def _options(self, name: str) -> dict[str, Any]:
        if own_strategy(self.config) == name:
            return dict(self.config.model_dump(mode="json")["strategy"])
        return {"name": name}


def own_strategy(config: RunConfig) -> str:
    """The one that the config names; of several phases, the last."""
    if not isinstance(config.strategy, tuple):
        return config.strategy.name
    names = tuple(phase.name for phase in config.strategy)
    return LP_FT if names == ("frozen", "full") else ""


def _default_rate(strategy: str) -> float:
    name = "full" if strategy == LP_FT else strategy
    return float(registry.load("strategies", name).Plugin.learning_rate)


def _rhythm(given: int | None, steps: int) -> int | None:
    return given or max(1, steps // SCORINGS)


def _ranked(tried: Sequence[Tried], *, round: int) -> list[float]:
    """Learning rates of a round, the best first; a failed run is the worst, and of equals the lower
    rate counts as better."""
    of_round = [one for one in tried if one.planned.round == round]

    def worth(one: Tried) -> tuple[bool, float, float]:
        return one.score is None, -(one.score or 0.0), one.learning_rate

    return [one.learning_rate for one in sorted(of_round, key=worth)]
