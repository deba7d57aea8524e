"""What a comparison will run: the grid of a config, held to its data and its model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dtl.assembly.parts import assemble
from dtl.compare.grid import Grid, Labels, Planned, own_strategy
from dtl.compare.records import NotRun
from dtl.config.comparing import STRATEGIES
from dtl.config.diff import changes
from dtl.config.schema import Draw, RunConfig
from dtl.core.errors import DtlError, Fault
from dtl.data.subsample import drawn
from dtl.prepare import preparation
from dtl.prepare.dataset import labelled
from dtl.tasks.base import Classification, Task


def plan(config: RunConfig) -> tuple[Grid, tuple[NotRun, ...], tuple[str, ...]]:
    """The grid, what of it cannot be run, and what is to be known of it. Raises DtlError."""
    _refuse_unfit(config)
    notes = []
    if config.train.export != "last" or config.train.ema or config.train.average:
        notes.append(
            "each cell ends with the weights of its last step: better ones would be chosen by the "
            "very rows that it is scored on"
        )
    config = on_this_machine(config)
    task = assemble(config).task
    classes = labelled(config, task)
    labels, left_out = _labels(config, task, classes)
    grid = Grid(config, (), labels, len(classes) if isinstance(task, Classification) else None)
    strategies, unfit = _strategies(grid)
    notes.append(
        f"learning rates were chosen by {_apart(config, classes)} other labelled rows, which no "
        "number of labels counts"
    )
    return replace(grid, strategies=strategies), (*unfit, *left_out), tuple(notes)


def _apart(config: RunConfig, classes: dict[str, list[int]]) -> int:
    return len(drawn(classes, Draw(apart=config.compare.apart)).apart)


def on_this_machine(config: RunConfig) -> RunConfig:
    """Cells are small: on a CPU each is one process, unless the config says otherwise."""
    import torch

    layout = config.layout
    if torch.cuda.is_available() or layout.processes is not None or layout.nodes > 1:
        return config
    alone = layout.model_copy(update={"processes": 1})
    return config.model_copy(update={"layout": alone})


def _refuse_unfit(config: RunConfig) -> None:
    faults = []
    if config.data.eval is None and config.data.holdout is None:
        faults.append(
            Fault("data.eval", "there are no held-out rows to compare on", "set it or data.holdout")
        )
    if config.train.steps is None:
        faults.append(
            Fault(
                "train.epochs",
                "few labels would mean few steps, and time would be compared, not strategies",
                "give train.steps, which all cells take, and train.epochs=null",
            )
        )
    if config.optim.head_learning_rate is not None:
        faults.append(
            Fault(
                "optim.head_learning_rate",
                "one rate is tried for all that learns",
                "set it to null",
            )
        )
    if faults:
        raise DtlError(*faults)


def _labels(
    config: RunConfig, task: Task, classes: dict[str, list[int]]
) -> tuple[tuple[Labels, ...], list[NotRun]]:
    """The numbers of labels that there are rows for. Raises DtlError where others were asked for
    by name."""
    found: list[Labels] = []
    left_out = []
    compare = config.compare
    many = len(classes)
    for asked in compare.labels:
        number = None if asked == "all" else asked
        got = drawn(classes, Draw(labels=number, apart=compare.apart, seed=config.train.seed))
        if got.short is None:
            each = round(len(got.learnt) / many) if number is None else number
            if number is None and found and found[-1].number >= each:
                continue  # all there are has been named by its number
            found.append(Labels(number, each, len(got.learnt)))
            continue
        of = "no class has more than" if isinstance(task, Classification) else "there are only"
        problem = f"{of} {got.short} labelled rows beside those kept apart"
        if "labels" in compare.model_fields_set:
            raise DtlError.of(
                "compare.labels", f"{asked} are too many: {problem}", "name fewer, or all"
            )
        left_out.append(NotRun(f"{asked} labels", problem))
    if not found:
        raise DtlError.of("compare.labels", left_out[0].why, "give more rows")
    return tuple(found), left_out


def _strategies(grid: Grid) -> tuple[tuple[str, ...], list[NotRun]]:
    """Those that the model has a place for. Raises DtlError where one was asked for by name that it
    has none for."""
    asked = grid.config.compare.strategies
    fit: list[str] = []
    faults: dict[str, DtlError] = {}
    for strategy in asked or STRATEGIES:
        first = Planned("cell", strategy, grid.labels[0], grid.seeds[0])
        try:
            preparation.prepare_run(grid.config_of(first, grid.usual_rate(strategy), runs="."))
            fit.append(strategy)
        except DtlError as fault:
            faults[strategy] = fault
    if faults and (asked is not None or not fit):
        raise DtlError(*dict.fromkeys(one for each in faults.values() for one in each.faults))
    own = own_strategy(grid.config)
    if asked is None and own and own not in STRATEGIES:
        fit.append(own)
    return tuple(fit), [
        NotRun(strategy, fault.faults[0].problem) for strategy, fault in faults.items()
    ]


def refuse_other(before: RunConfig, now: RunConfig, folder: Path) -> None:
    """A comparison may get more seeds and time; all else would be another. Raises DtlError."""
    alone = on_this_machine(now)
    grids = [one.compare.model_dump(mode="json") for one in (before, alone)]
    keys = [f"compare.{key}" for key in grids[0] if key not in ("seeds", "budget")]
    differs = changes(before, alone)
    differs += [key for key in keys if len({str(g[key.partition(".")[2]]) for g in grids}) > 1]
    if (before.compare.budget is None) != (now.compare.budget is None):
        differs.append("compare.budget")
    if differs:
        raise DtlError.of(
            str(folder),
            f"holds a comparison with another {', '.join(differs)}",
            "name another folder with --out",
        )
