"""The runs of a comparison are a pure function of its config."""

import json
from dataclasses import replace

import pytest

from dtl.compare.grid import Grid, LabelCount, TrialResult
from dtl.compare.run import Running
from dtl.compare.state import State
from dtl.config.load import load_config
from dtl.core.errors import DtlError

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
def grid(tmp_path):
    def make(*overrides, strategies=("scratch", "lora", "full")):
        path = tmp_path / "run.yaml"
        path.write_text(CONFIG, encoding="utf-8")
        return Grid(load_config(path, overrides), strategies, LABELS, None)

    return make


def tried(grid, strategy, scores, *, round=0):
    """What the rates of a round came to."""
    planned = [one for one in grid.searches if (one.strategy, one.round) == (strategy, round)]
    found = []
    for one, score in zip(planned, scores, strict=True):
        rate = grid.choose_rate(one, tried.before)
        found.append(TrialResult(one, rate, score))
    return found


tried.before = []


def test_it_is_the_same_from_its_file(grid):
    one = grid()
    again = Grid.from_dict(json.loads(json.dumps(one.to_dict())))
    assert again == one
    assert again.planned_runs == one.planned
    names = [planned.name for planned in one.planned]
    assert len(set(names)) == len(names) == 3 * 5 + 3 * 3 * 2


def test_all_strategies_learn_from_the_same_rows_by_the_same_seed(grid):
    one = grid()
    for labels in LABELS:
        for seed in (0, 1):
            draws = {
                json.dumps(config.data.model_dump(mode="json"))
                for planned in one.cells
                if (planned.labels, planned.seed) == (labels, seed)
                for config in [one.make_config(planned, 0.1, runs="runs")]
                if config.train.seed == seed
            }
            (draw,) = map(json.loads, draws)
            assert draw["subsample"] == {
                "size": labels.requested,
                "feature_cache_size": None if labels.requested is None else "all",
                "seed": seed,
                "validation_fraction": 0.2,
                "evaluate_on": "eval",
            }


def test_rates_are_chosen_by_rows_that_no_cell_is_scored_on(grid):
    one = grid()
    for planned in one.searches:
        config = one.make_config(planned, 0.1, runs="runs")
        assert config.data.subsample.evaluate_on == "validation"
        assert config.data.subsample.size == 20  # the middle number
    cell = one.make_config(one.cells[0], 0.1, runs="runs")
    assert cell.data.subsample.evaluate_on == "eval"
    assert (cell.train.export, cell.train.keep_best) == ("last", False)


@pytest.mark.parametrize(
    "change, shared",
    [
        ("train.global_batch=16", ["all", "all", None]),  # 40 steps read 640 rows
        ("train.global_batch=2", [20, None, None]),  # 80 rows: not each of 90 is read twice
        ("train.steps=1", [None, None, None]),
        ("train.global_batch=512 tokens", [None, None, None]),
    ],
)
def test_a_frozen_base_reads_the_rows_of_all_cells_that_read_them_often(grid, change, shared):
    one = grid(change)
    cells = [planned for planned in one.cells if (planned.strategy, planned.seed) == ("full", 0)]
    configs = [one.make_config(planned, 0.1, runs="runs") for planned in cells]
    assert [config.data.subsample.feature_cache_size for config in configs] == shared


def test_a_strategy_has_the_options_that_the_config_gives_it(grid):
    one = grid(strategies=("lora", "lp-ft"))
    assert one.strategy("lora", 0.1) == {
        **one.config.strategy.options.model_dump(mode="json"),
        "name": "lora",
    }
    assert one.strategy("lora", 0.1)["rank"] == 4
    assert one.strategy("lp-ft", 0.1) == [
        {"name": "frozen", "length": 0.5, "learning_rate": 0.001},
        {"name": "full", "learning_rate": 0.1},
    ]


def test_usual_rates_go_with_the_configs_own(grid):
    """LoRA is at 15 times its usual rate here, so full is too; LoRA has ten times full's."""
    one = grid()
    assert one.default_rate("lora") == pytest.approx(3e-3)
    assert one.default_rate("full") == one.default_rate("lp-ft") == pytest.approx(3e-4)
    assert one.default_rate("scratch") == one.default_rate("frozen") == 1e-3
    assert one.rates("full") == pytest.approx((3e-5, 9e-5, 3e-4, 9e-4, 3e-3))
    assert grid("compare.learning_rates.full=[0.3,0.1]").rates("full") == (0.1, 0.3)


def test_the_best_rate_is_taken_once_all_were_tried(grid):
    one = grid("compare.learning_rates={full: [0.1, 0.2, 0.3], lora: 0.5}")
    cell = next(planned for planned in one.cells if planned.strategy == "full")
    found = tried(one, "full", [-3.0, -1.0, None])  # the third run failed
    assert one.choose_rate(cell, found) == 0.2
    assert one.choose_rate(cell, found[:2]) is None
    assert one.best_rate_so_far(cell, found[:1]) == 0.1
    assert one.best_rate_so_far(cell, []) == 0.2
    lora = next(planned for planned in one.cells if planned.strategy == "lora")
    assert one.choose_rate(lora, []) == 0.5


def test_rates_are_searched_with_each_number_of_labels_where_that_is_asked(grid):
    one = grid(
        "compare.learning_rate_search=each",
        "compare.learning_rates={full: [0.1, 0.2]}",
        strategies=("full",),
    )
    names = [planned.name for planned in one.searches]
    assert names == [f"rate-full-{labels}-1.{place}" for labels in (5, 20, 90) for place in (1, 2)]
    drawn = [
        one.make_config(planned, 0.1, runs="r").data.subsample.size for planned in one.searches
    ]
    assert drawn == [5, 5, 20, 20, None, None]
    found = [
        TrialResult(planned, one.choose_rate(planned, []), score)
        for planned, score in zip(one.searches, (0.1, 0.2, 0.4, 0.3, 0.5, 0.6), strict=True)
    ]
    cells = [planned for planned in one.cells if planned.seed == 0]
    assert [one.choose_rate(cell, found) for cell in cells] == [0.2, 0.1, 0.2]
    assert [one.choose_rate(cell, found[:4]) for cell in cells] == [0.2, 0.1, None]
    assert one.best_rate_so_far(cells[1], found[:3]) == 0.1


def test_under_a_budget_the_worse_half_is_dropped_after_each_round(grid):
    one = grid("compare.time_budget=2h", "compare.learning_rates={full: [1, 2, 3, 4, 5]}")
    assert one.rounds("full") == [(0.25, 5), (0.5, 3)]
    first = tried(one, "full", [0.1, 0.2, 0.5, 0.4, 0.3])
    assert one.make_config(first[0].planned, 1.0, runs="r").train.steps == 10
    second = [planned for planned in one.searches if planned.round == 1]
    second = [planned for planned in second if planned.strategy == "full"]
    assert [one.choose_rate(planned, first) for planned in second] == [3, 4, 5]
    done = [
        TrialResult(planned, rate, score)
        for planned, rate, score in zip(second, (3.0, 4.0, 5.0), (0.6, 0.9, 0.7), strict=True)
    ]
    cell = next(planned for planned in one.cells if planned.strategy == "full")
    assert one.choose_rate(cell, [*first, *done]) == 4
    assert one.best_rate_so_far(cell, [*first, *done[:1]]) == 3


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("compare.train_sizes=[20,5]", "does not rise"),
        ("compare.train_sizes=[all,5]", "not the last"),
        ("compare.strategies=[scrach]", "did you mean 'scratch'"),
        ("compare.strategies=[full,full]", "named twice"),
        ("compare.learning_rates={full: [0.1, 0.1]}", "not different rates"),
        ("compare.time_budget=soon", "not a length of time"),
        ("compare.seeds=0", "compare.seeds"),
    ],
)
def test_a_wrong_grid_is_told(grid, override, told):
    with pytest.raises(DtlError, match=told):
        grid(override)


class Counted(Running):
    """Runs nothing: each takes ten seconds, and leaves what a finished run does."""

    def _train_and_score(self, planned, rate):
        folder = self.state.run_folder(planned)
        config = self.state.grid.make_config(planned, rate, runs=str(self.state.cells_folder))
        folder.path.mkdir(parents=True)
        record = {"config": config.model_dump(mode="json")}
        (folder.path / "run.json").write_text(json.dumps(record), encoding="utf-8")
        scores = {"adapted": {"perplexity": abs(rate - 0.3) + 1}}  # 0.3 is the best
        folder.finish({"scores": scores})
        self.clock.append(10)

    def in_order(self, budget):
        """Names of what is run, under so many seconds."""
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


def test_a_longer_budget_goes_on_with_the_rates_that_cells_have_begun_with(
    grid, tmp_path, monkeypatch
):
    one = grid(
        "compare.time_budget=60s",
        "compare.learning_rates={full: [0.1, 0.2, 0.3]}",
        strategies=("full",),
    )
    state = State(tmp_path / "few", one, (), ())
    monkeypatch.setattr(State, "likely_seconds", lambda *_: 10.0)
    running = Counted(state, lambda _: None, fork=False)
    running.clock = []
    first = running.in_order(60)  # a third of it holds two tries of three
    assert set(first) == {
        *("rate-full-20-1.1", "rate-full-20-1.2", "full-5-seed0", "full-20-seed0", "full-90-seed0"),
        "full-5-seed1",
    }
    assert {rate for name, rate in first.items() if "seed" in name} == {0.2}
    whole = running.in_order(600)
    assert set(whole) == {*first, "full-20-seed1", "full-90-seed1"}
    assert {rate for name, rate in whole.items() if "seed" in name} == {0.2}
