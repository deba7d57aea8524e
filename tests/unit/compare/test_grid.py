"""The grid of a comparison is a pure function of its config."""

import json
from dataclasses import replace

import pytest

from dtl.compare.grid import Grid, LabelCount, SearchRound, TrialResult
from dtl.compare.run import Runner
from dtl.compare.state import ComparisonState
from dtl.config.load import load_config
from dtl.core.errors import DtlError
from dtl.core.files import write_record

CONFIG = """\
model: {path: "mini:text"}
task: causal_lm
data: {train: rows.jsonl, eval: others.jsonl}
strategy: {name: lora, rank: 4}
optim: {learning_rate: 3e-3}
train: {steps: 40, export: best, evaluate_every: 10}
compare: {train_sizes: [5, 20, all], seeds: 2}
"""
LABELS = (LabelCount(5, 5, 5), LabelCount(20, 20, 20), LabelCount(None, 90, 90))


@pytest.fixture
def make_grid(tmp_path):
    def make(*overrides, strategies=("scratch", "lora", "full")):
        path = tmp_path / "run.yaml"
        path.write_text(CONFIG, encoding="utf-8")
        return Grid(load_config(path, overrides), strategies, LABELS, None)

    return make


def first_round_results(grid, strategy, scores):
    """The results of the first search round."""
    runs = [one for one in grid.search_runs if one.strategy == strategy]
    planned = [one for one in runs if one.search_round == 0]
    return [
        TrialResult(one, grid.choose_rate(one, []), score)
        for one, score in zip(planned, scores, strict=True)
    ]


def first_cell(grid, strategy):
    return next(one for one in grid.cell_runs if one.strategy == strategy)


def test_grid_is_equal_after_json_round_trip(make_grid):
    grid = make_grid()
    loaded = Grid.from_dict(json.loads(json.dumps(grid.to_dict())))
    assert loaded == grid
    assert loaded.planned_runs == grid.planned_runs
    names = [planned.name for planned in grid.planned_runs]
    assert len(set(names)) == len(names) == 3 * 5 + 3 * 3 * 2


def test_all_strategies_train_on_the_same_rows_with_the_same_seed(make_grid):
    grid = make_grid()
    for labels in LABELS:
        for seed in (0, 1):
            data_sections = {
                json.dumps(config.data.model_dump(mode="json"))
                for planned in grid.cell_runs
                if (planned.labels, planned.seed) == (labels, seed)
                for config in [grid.make_config(planned, 0.1, runs="runs")]
                if config.train.seed == seed
            }
            (data,) = map(json.loads, data_sections)
            assert data["subsample"] == {
                "size": labels.requested,
                "feature_cache_size": None if labels.requested is None else "all",
                "seed": seed,
                "validation_fraction": 0.2,
                "evaluate_on": "eval",
            }


def test_learning_rates_are_chosen_on_validation_rows(make_grid):
    grid = make_grid()
    for planned in grid.search_runs:
        config = grid.make_config(planned, 0.1, runs="runs")
        assert config.data.subsample.evaluate_on == "validation"
        assert config.data.subsample.size == 20  # the middle number
    cell = grid.make_config(grid.cell_runs[0], 0.1, runs="runs")
    assert cell.data.subsample.evaluate_on == "eval"
    assert (cell.train.export, cell.train.keep_best) == ("last", False)


@pytest.mark.parametrize(
    ("override", "sizes"),
    [
        ("train.global_batch=16", ["all", "all", None]),  # 40 steps read 640 rows
        ("train.global_batch=2", [20, None, None]),  # 80 rows are fewer than 90
        ("train.steps=1", [None, None, None]),
        ("train.global_batch=512 tokens", [None, None, None]),
    ],
)
def test_cells_share_cached_features_of_rows_read_more_than_once(make_grid, override, sizes):
    grid = make_grid(override)
    cells = [
        planned for planned in grid.cell_runs if (planned.strategy, planned.seed) == ("full", 0)
    ]
    configs = [grid.make_config(planned, 0.1, runs="runs") for planned in cells]
    assert [config.data.subsample.feature_cache_size for config in configs] == sizes


def test_configured_strategy_keeps_its_options(make_grid):
    grid = make_grid(strategies=("lora", "lp-ft"))
    assert grid.strategy_config("lora", 0.1) == {
        **grid.config.strategy.options.model_dump(mode="json"),
        "name": "lora",
    }
    assert grid.strategy_config("lora", 0.1)["rank"] == 4
    assert grid.strategy_config("lp-ft", 0.1) == [
        {"name": "frozen", "length": 0.5, "learning_rate": 0.001},
        {"name": "full", "learning_rate": 0.1},
    ]


def test_default_rates_scale_with_the_configured_rate(make_grid):
    """LoRA has 15 times its default rate here, and so has full; LoRA has ten times full's rate."""
    grid = make_grid()
    assert grid.default_rate("lora") == pytest.approx(3e-3)
    assert grid.default_rate("full") == grid.default_rate("lp-ft") == pytest.approx(3e-4)
    assert grid.default_rate("scratch") == grid.default_rate("frozen") == 1e-3
    assert grid.candidate_rates("full") == pytest.approx((3e-5, 9e-5, 3e-4, 9e-4, 3e-3))
    assert make_grid("compare.learning_rates.full=[0.3,0.1]").candidate_rates("full") == (0.1, 0.3)


def test_best_rate_is_chosen_after_all_trials(make_grid):
    grid = make_grid("compare.learning_rates={full: [0.1, 0.2, 0.3], lora: 0.5}")
    cell = first_cell(grid, "full")
    results = first_round_results(grid, "full", [-3.0, -1.0, None])  # the third run failed
    assert grid.choose_rate(cell, results) == 0.2
    assert grid.choose_rate(cell, results[:2]) is None
    assert grid.best_rate_so_far(cell, results[:1]) == 0.1
    assert grid.best_rate_so_far(cell, []) == 0.2
    assert grid.choose_rate(first_cell(grid, "lora"), []) == 0.5


def test_search_per_size_has_a_search_for_each_number_of_labels(make_grid):
    grid = make_grid(
        "compare.learning_rate_search=per_size",
        "compare.learning_rates={full: [0.1, 0.2]}",
        strategies=("full",),
    )
    names = [planned.name for planned in grid.search_runs]
    assert names == [f"search-full-{labels}-1.{rank}" for labels in (5, 20, 90) for rank in (1, 2)]
    sizes = [
        grid.make_config(planned, 0.1, runs="r").data.subsample.size for planned in grid.search_runs
    ]
    assert sizes == [5, 5, 20, 20, None, None]
    results = [
        TrialResult(planned, grid.choose_rate(planned, []), score)
        for planned, score in zip(grid.search_runs, (0.1, 0.2, 0.4, 0.3, 0.5, 0.6), strict=True)
    ]
    cells = [planned for planned in grid.cell_runs if planned.seed == 0]
    assert [grid.choose_rate(cell, results) for cell in cells] == [0.2, 0.1, 0.2]
    assert [grid.choose_rate(cell, results[:4]) for cell in cells] == [0.2, 0.1, None]
    assert grid.best_rate_so_far(cells[1], results[:3]) == 0.1


def test_time_budget_drops_the_worse_half_of_rates_after_each_round(make_grid):
    grid = make_grid("compare.time_budget=2h", "compare.learning_rates={full: [1, 2, 3, 4, 5]}")
    assert grid.search_rounds("full") == [SearchRound(0.25, 5), SearchRound(0.5, 3)]
    first = first_round_results(grid, "full", [0.1, 0.2, 0.5, 0.4, 0.3])
    assert grid.make_config(first[0].planned_run, 1.0, runs="r").train.steps == 10
    second = [planned for planned in grid.search_runs if planned.search_round == 1]
    second = [planned for planned in second if planned.strategy == "full"]
    assert [grid.choose_rate(planned, first) for planned in second] == [3, 4, 5]
    second_results = [
        TrialResult(planned, rate, score)
        for planned, rate, score in zip(second, (3.0, 4.0, 5.0), (0.6, 0.9, 0.7), strict=True)
    ]
    cell = first_cell(grid, "full")
    assert grid.choose_rate(cell, [*first, *second_results]) == 4
    assert grid.best_rate_so_far(cell, [*first, *second_results[:1]]) == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("compare.train_sizes=[20,5]", "does not rise"),
        ("compare.train_sizes=[all,5]", "not the last"),
        ("compare.strategies=[scrach]", "did you mean 'scratch'"),
        ("compare.strategies=[full,full]", "listed twice"),
        ("compare.learning_rates={full: [0.1, 0.1]}", "not different rates"),
        ("compare.time_budget=soon", "not a length of time"),
        ("compare.seeds=0", "compare.seeds"),
    ],
)
def test_invalid_grid_is_an_error(make_grid, override, message):
    with pytest.raises(DtlError, match=message):
        make_grid(override)


class SimulatedRunner(Runner):
    """Writes finished run folders without training; each run takes ten seconds."""

    def _train_and_score(self, planned, rate):
        folder = self.state.run_folder(planned)
        config = self.state.grid.make_config(planned, rate, runs=str(self.state.cells_folder))
        folder.path.mkdir(parents=True)
        record = {"config": config.model_dump(mode="json")}
        write_record(folder.path / "run.json", record)
        scores = {"adapted": {"perplexity": abs(rate - 0.3) + 1}}  # 0.3 is the best
        folder.finish({"scores": scores})
        self.clock.append(10)

    def run_with_budget(self, budget):
        """Return the learning rate of each run folder. `budget`: seconds."""
        grid = self.state.grid
        compare = grid.config.compare.model_copy(update={"time_budget": f"{budget}s"})
        config = grid.config.model_copy(update={"compare": compare})
        self.state.grid = replace(grid, config=config)
        for number, planned in enumerate(self.state.grid.planned_runs, start=1):
            self._run_if_due(number, planned, lambda: sum(self.clock))
        return {
            path.parent.name: json.loads(path.read_text())["config"]["optim"]["learning_rate"]
            for path in self.state.cells_folder.glob("*/run.json")
        }


def test_larger_time_budget_keeps_the_rates_of_started_cells(make_grid, tmp_path, monkeypatch):
    grid = make_grid(
        "compare.time_budget=60s",
        "compare.learning_rates={full: [0.1, 0.2, 0.3]}",
        strategies=("full",),
    )
    state = ComparisonState(tmp_path / "few", grid, (), ())
    monkeypatch.setattr(ComparisonState, "estimate_seconds", lambda *_: 10.0)
    runner = SimulatedRunner(state, lambda _: None, can_fork=False)
    runner.clock = []
    first = runner.run_with_budget(60)  # a third of it is enough for two trials of three
    assert set(first) == {
        *(
            "search-full-20-1.1",
            "search-full-20-1.2",
            "full-5-seed0",
            "full-20-seed0",
            "full-90-seed0",
        ),
        "full-5-seed1",
    }
    assert {rate for name, rate in first.items() if "seed" in name} == {0.2}
    extended = runner.run_with_budget(600)
    assert set(extended) == {*first, "full-20-seed1", "full-90-seed1"}
    assert {rate for name, rate in extended.items() if "seed" in name} == {0.2}
