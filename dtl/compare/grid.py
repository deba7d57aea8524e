"""The grid of a comparison: its runs and the config of each, as pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any, Literal

from dtl.config import registry
from dtl.config.schema import RunConfig
from dtl.config.schema.compare import LP_FT

SCRATCH = "scratch"
RATES_SCALED_TOGETHER = ("full", "partial", LP_FT, "lora")  # their default rates have fixed ratios
RATE_FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)  # candidates, as multiples of the default rate
EVALUATIONS_PER_CELL = 5  # points of a learning curve
ROUND_STEP_SHARES = (0.25, 0.5)  # share of the steps per search round, with a time budget


@dataclass(frozen=True)
class LabelCount:
    """A number of labeled rows. `requested`: None for all; `number`: per class, or all rows."""

    requested: int | None
    number: int
    rows: int


@dataclass(frozen=True)
class PlannedRun:
    """A run of the grid. `kind`: a search run is a trial of a learning rate, scored on the
    validation rows; a cell is in the results. `step_share`: share of train.steps. `rank`: of a
    search run, the index of its learning rate in the ranking of the previous round."""

    kind: Literal["search", "cell"]
    strategy: str
    labels: LabelCount
    seed: int
    step_share: float = 1.0
    search_round: int = 0
    rank: int = 0

    @property
    def name(self) -> str:
        """The name of its run folder."""
        if self.kind == "search":
            trial = f"{self.search_round + 1}.{self.rank + 1}"
            return f"search-{self.strategy}-{self.labels.number}-{trial}"
        return f"{self.strategy}-{self.labels.number}-seed{self.seed}"


@dataclass(frozen=True)
class SearchRound:
    """A round of a learning-rate search: share of train.steps, and number of rates."""

    step_share: float
    rates: int


@dataclass(frozen=True)
class TrialResult:
    """The result of a search run. `score`: higher is better; None: the run failed."""

    planned_run: PlannedRun
    learning_rate: float
    score: float | None


@dataclass(frozen=True)
class Grid:
    """All runs of a comparison. `config`: the user's; `classes`: None if the task has none."""

    config: RunConfig
    strategies: tuple[str, ...]
    labels: tuple[LabelCount, ...]
    classes: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "config": self.config.model_dump(mode="json"),
            "strategies": list(self.strategies),
            "labels": [asdict(labels) for labels in self.labels],
            "classes": self.classes,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Grid:
        """Return the grid that `to_dict` has written."""
        return cls(
            RunConfig.model_validate(values["config"]),
            tuple(values["strategies"]),
            tuple(LabelCount(**each) for each in values["labels"]),
            values["classes"],
        )

    @property
    def seeds(self) -> tuple[int, ...]:
        """Consecutive seeds, from train.seed."""
        first = self.config.train.seed
        return tuple(range(first, first + self.config.compare.seeds))

    @property
    def planned_runs(self) -> tuple[PlannedRun, ...]:
        """All runs in order: first the search runs; then the cells seed by seed, so that an early
        end leaves complete seeds."""
        return (*self.search_runs, *self.cell_runs)

    @property
    def search_runs(self) -> tuple[PlannedRun, ...]:
        """The runs of the learning-rate searches, with the first seed."""
        all_labels = dict.fromkeys(map(self.search_labels, self.labels))
        rounds = {strategy: self.search_rounds(strategy) for strategy in self.strategies}
        return tuple(
            PlannedRun("search", strategy, labels, self.seeds[0], one.step_share, number, rank)
            for number in range(max(map(len, rounds.values())))
            for labels in all_labels
            for strategy in self.strategies
            for one in rounds[strategy][number : number + 1]
            for rank in range(one.rates)
        )

    def search_labels(self, labels: LabelCount) -> LabelCount:
        """Return the labels of the search for cells with `labels`: the same, or the middle ones."""
        if self.config.compare.learning_rate_search == "per_size":
            return labels
        return self.labels[(len(self.labels) - 1) // 2]

    def share_search(self, one: PlannedRun, other: PlannedRun) -> bool:
        """Return whether two runs take the learning rate of the same search."""
        has_same_labels = self.search_labels(one.labels) == self.search_labels(other.labels)
        return one.strategy == other.strategy and has_same_labels

    @property
    def cell_runs(self) -> tuple[PlannedRun, ...]:
        """The cells: each strategy with each number of labels and each seed."""
        return tuple(
            PlannedRun("cell", strategy, labels, seed)
            for seed in self.seeds
            for labels in self.labels
            for strategy in self.strategies
        )

    @property
    def probe_config(self) -> RunConfig:
        """The config of the feature probe: fewest labels, scored on the validation rows."""
        fewest = PlannedRun("search", "full", self.labels[0], self.seeds[0])
        return self.make_config(fewest, self.default_rate("full"), runs=".")

    def search_rounds(self, strategy: str) -> list[SearchRound]:
        """Return the rounds of a learning-rate search. With a time budget each round drops the
        worse half of the rates (successive halving)."""
        rates = len(self.candidate_rates(strategy))
        if rates == 1:
            return []
        if self.config.compare.time_budget is None:
            return [SearchRound(1.0, rates)]
        rounds = []
        for step_share in ROUND_STEP_SHARES if rates > 2 else ROUND_STEP_SHARES[-1:]:
            rounds.append(SearchRound(step_share, rates))
            rates = ceil(rates / 2)
        return rounds

    def candidate_rates(self, strategy: str) -> tuple[float, ...]:
        """Return the candidate learning rates of a strategy, in ascending order."""
        configured = self.config.compare.learning_rates.get(strategy)
        if configured is not None:
            return tuple(sorted(configured))
        default = self.default_rate(strategy)
        return tuple(float(f"{default * factor:.3g}") for factor in RATE_FACTORS)

    def default_rate(self, strategy: str) -> float:
        """Return the default learning rate of a strategy: scaled with the config's own rate if the
        ratio is fixed (LoRA's is ten times full's); else the strategy's."""
        own, rate = configured_strategy(self.config), self.config.optim.learning_rate
        default = _plugin_learning_rate(strategy)
        is_scaled = own == strategy or {own, strategy} <= set(RATES_SCALED_TOGETHER)
        if rate is None or not is_scaled:
            return default
        return rate * default / _plugin_learning_rate(own)

    def choose_rate(self, planned: PlannedRun, trials: Sequence[TrialResult]) -> float | None:
        """Return the learning rate of a run; None: its search is not finished."""
        candidates = self.candidate_rates(planned.strategy)
        if planned.kind == "search" and planned.search_round == 0:
            return candidates[planned.rank]
        if planned.kind == "cell" and len(candidates) == 1:
            return candidates[0]
        rounds = self.search_rounds(planned.strategy)
        last = planned.search_round - 1 if planned.kind == "search" else len(rounds) - 1
        search = [one for one in trials if self.share_search(one.planned_run, planned)]
        ranked = _rank_rates(search, search_round=last)
        return ranked[planned.rank] if len(ranked) == rounds[last].rates else None

    def best_rate_so_far(self, planned: PlannedRun, trials: Sequence[TrialResult]) -> float:
        """Return the best rate of the latest search round with results, for a search that the time
        budget has ended; the middle candidate if there are no results."""
        search = [one for one in trials if self.share_search(one.planned_run, planned)]
        for number in reversed(range(len(self.search_rounds(planned.strategy)))):
            if ranked := _rank_rates(search, search_round=number):
                return ranked[0]
        candidates = self.candidate_rates(planned.strategy)
        return candidates[len(candidates) // 2]

    def make_config(self, planned: PlannedRun, rate: float, *, runs: str) -> RunConfig:
        """Return the config of a run. `runs`: the parent of its run folder."""
        values = self.config.model_dump(mode="json")
        train, compare = values["train"], self.config.compare
        is_search = planned.kind == "search"
        steps = max(1, round(train["steps"] * planned.step_share))
        interval = _evaluation_interval(train["evaluate_every"], steps)
        train |= {
            "steps": steps,
            "seed": planned.seed,
            "evaluate_every": None if is_search else interval,
            "keep_best": False,
            "export": "last",
            "ema_decay": None,
            "average_checkpoints": None,
        }
        values["strategy"] = self.strategy_config(planned.strategy, rate)
        values["optim"]["learning_rate"] = rate
        values["data"]["subsample"] = {
            "size": planned.labels.requested,
            "feature_cache_size": self._feature_cache_size(planned.labels),
            "seed": planned.seed,
            "validation_fraction": compare.validation_fraction,
            "evaluate_on": "validation" if is_search else "eval",
        }
        if is_search:
            values["task"]["group_by"] = None
        values["run"] = {"name": planned.name, "dir": runs}
        values.pop("compare")
        return RunConfig.model_validate(values)

    def _feature_cache_size(self, labels: LabelCount) -> int | str | None:
        """Return the largest number of labels with which every row is read more than once, if it
        is larger than `labels`: the cells of a seed share the features of its rows."""
        train = self.config.train
        reads = (train.steps or 0) * train.global_batch.limit
        if train.global_batch.unit != "examples":
            return None
        fit = [one for one in self.labels if labels.rows < one.rows < reads]
        return ("all" if fit[-1].requested is None else fit[-1].requested) if fit else None

    def strategy_config(self, name: str, rate: float) -> Any:
        """Return a config's `strategy` section, with the user's options if it is the user's."""
        if name == LP_FT:
            head = {"name": "frozen", "length": 0.5, "learning_rate": self.default_rate("frozen")}
            return [head, {**self._strategy_options("full"), "learning_rate": rate}]
        return self._strategy_options(name)

    def _strategy_options(self, name: str) -> dict[str, Any]:
        if configured_strategy(self.config) == name:
            return dict(self.config.model_dump(mode="json")["strategy"])
        return {"name": name}


def configured_strategy(config: RunConfig) -> str:
    """Return the strategy of the config; of phases lp-ft or an empty string."""
    if not isinstance(config.strategy, tuple):
        return config.strategy.name
    names = tuple(phase.name for phase in config.strategy)
    return LP_FT if names == ("frozen", "full") else ""


def _plugin_learning_rate(strategy: str) -> float:
    name = "full" if strategy == LP_FT else strategy
    return float(registry.load("strategies", name).Plugin.learning_rate)


def _evaluation_interval(configured: int | None, steps: int) -> int | None:
    return configured or max(1, steps // EVALUATIONS_PER_CELL)


def _rank_rates(trials: Sequence[TrialResult], *, search_round: int) -> list[float]:
    """Return the learning rates of a round, best first. A failed run is the worst. Of equal scores
    the lower rate is first."""
    of_round = [one for one in trials if one.planned_run.search_round == search_round]

    def sort_key(one: TrialResult) -> tuple[bool, float, float]:
        return one.score is None, -(one.score or 0.0), one.learning_rate

    return [one.learning_rate for one in sorted(of_round, key=sort_key)]
