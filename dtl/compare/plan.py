"""Plans the grid of a comparison: checks a config against its data and its model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from dtl.assembly.parts import assemble
from dtl.compare.grid import Grid, LabelCount, PlannedRun, configured_strategy
from dtl.compare.records import MissingRuns
from dtl.config.diff import changed_keys
from dtl.config.schema import RunConfig, Subsample
from dtl.config.schema.compare import STRATEGIES
from dtl.core.errors import DtlError, Fault
from dtl.data.subsample import draw_subsample
from dtl.plan.hardware import count_gpus
from dtl.prepare import prepared_run
from dtl.prepare.splits import find_class_rows
from dtl.tasks.base import Task


@dataclass(frozen=True)
class GridPlan:
    """A planned grid. `missing_runs`: what is impossible. `notes`: for the user."""

    grid: Grid
    missing_runs: tuple[MissingRuns, ...]
    notes: tuple[str, ...]


def plan_grid(config: RunConfig) -> GridPlan:
    """Return the planned grid of a config. Raises DtlError for all faults."""
    _check_config(config)
    notes = []
    options = config.train
    chooses_weights = options.export not in (None, "last")
    if chooses_weights or options.ema_decay or options.average_checkpoints:
        notes.append(
            "each cell uses the weights of its last step: choosing the best step would use the "
            "rows that are scored"
        )
    config = with_local_layout(config)
    task = assemble(config).task
    classes = find_class_rows(config, task)
    labels, missing_runs = _plan_label_counts(config, task, classes)
    grid = Grid(config, (), labels, len(classes) if task.has_classes else None)
    strategies, unfit = _plan_strategies(grid)
    validation_rows = _count_validation_rows(config, classes)
    notes.append(
        f"learning rates were chosen on {validation_rows} labeled validation rows, which no number "
        "of labels counts"
    )
    grid = replace(grid, strategies=strategies)
    return GridPlan(grid, (*unfit, *missing_runs), tuple(notes))


def _count_validation_rows(config: RunConfig, classes: dict[str, list[int]]) -> int:
    subsample = Subsample(validation_fraction=config.compare.validation_fraction)
    return len(draw_subsample(classes, subsample).validation_rows)


def with_local_layout(config: RunConfig) -> RunConfig:
    """Return the config with one process on a CPU, unless it sets processes or nodes."""
    layout = config.layout
    if count_gpus() > 0 or layout.processes_per_node is not None or layout.nodes > 1:
        return config
    single_process = layout.model_copy(update={"processes_per_node": 1})
    return config.model_copy(update={"layout": single_process})


def _check_config(config: RunConfig) -> None:
    faults = []
    if config.data.eval is None and config.data.eval_fraction is None:
        faults.append(
            Fault(
                "data.eval",
                "no held-out rows to compare on",
                "set data.eval or data.eval_fraction",
            )
        )
    if config.train.steps is None:
        faults.append(
            Fault(
                "train.epochs",
                "with epochs, fewer labels mean fewer steps, so the cells are not comparable",
                "set train.steps and train.epochs=null",
            )
        )
    if config.optim.head_learning_rate is not None:
        faults.append(
            Fault(
                "optim.head_learning_rate",
                "the search uses one learning rate for all trainable parameters",
                "set it to null",
            )
        )
    if faults:
        raise DtlError(*faults)


def _plan_label_counts(
    config: RunConfig, task: Task, classes: dict[str, list[int]]
) -> tuple[tuple[LabelCount, ...], list[MissingRuns]]:
    """Return the numbers of labels that the data has rows for, and the others. Raises DtlError if
    the user configured one of the others."""
    counts: list[LabelCount] = []
    missing_runs = []
    compare = config.compare
    for requested in compare.train_sizes:
        number = None if requested == "all" else requested
        subsample = draw_subsample(
            classes,
            Subsample(
                size=number, validation_fraction=compare.validation_fraction, seed=config.train.seed
            ),
        )
        if subsample.largest_class is None:
            rows = len(subsample.training_rows)
            per_class = round(rows / len(classes)) if number is None else number
            if number is None and counts and counts[-1].number >= per_class:
                continue  # the same number as the one before
            counts.append(LabelCount(number, per_class, rows))
            continue
        limit = "no class has more than" if task.has_classes else "there are only"
        problem = f"{limit} {subsample.largest_class} labeled rows without the validation rows"
        if "train_sizes" in compare.model_fields_set:
            raise DtlError.of(
                "compare.train_sizes", f"{requested} are too many: {problem}", "use fewer, or all"
            )
        missing_runs.append(MissingRuns(f"{requested} labels", problem))
    if not counts:
        raise DtlError.of("compare.train_sizes", missing_runs[0].reason, "add training rows")
    return tuple(counts), missing_runs


def _plan_strategies(grid: Grid) -> tuple[tuple[str, ...], list[MissingRuns]]:
    """Return the strategies that fit the model, and the others. Raises DtlError if the user
    configured one of the others."""
    requested = grid.config.compare.strategies
    fit: list[str] = []
    faults: dict[str, DtlError] = {}
    for strategy in requested or STRATEGIES:
        first = PlannedRun("cell", strategy, grid.labels[0], grid.seeds[0])
        try:
            prepared_run.prepare_run(grid.make_config(first, grid.default_rate(strategy), runs="."))
            fit.append(strategy)
        except DtlError as fault:
            faults[strategy] = fault
    if faults and (requested is not None or not fit):
        raise DtlError(*dict.fromkeys(one for each in faults.values() for one in each.faults))
    own = configured_strategy(grid.config)
    if requested is None and own and own not in STRATEGIES:
        fit.append(own)
    return tuple(fit), [
        MissingRuns(strategy, fault.faults[0].problem) for strategy, fault in faults.items()
    ]


def check_same_comparison(before: RunConfig, now: RunConfig, folder: Path) -> None:
    """Raise DtlError if two configs differ in more than seeds and time budget."""
    now = with_local_layout(now)
    old, new = (one.compare.model_dump(mode="json") for one in (before, now))
    differs = changed_keys(before, now)
    differs += [
        f"compare.{key}"
        for key in old
        if key not in ("seeds", "time_budget") and str(old[key]) != str(new[key])
    ]
    if (before.compare.time_budget is None) != (now.compare.time_budget is None):
        differs.append("compare.time_budget")
    if differs:
        raise DtlError.of(
            str(folder),
            f"contains a comparison with another {', '.join(differs)}",
            "choose another folder with --out",
        )
