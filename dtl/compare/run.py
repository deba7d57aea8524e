"""Runs the cells of a comparison, each once, and writes the table of what has been run."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from dtl import api, desk
from dtl.assemble import assemble
from dtl.compare import TABLE, Comparison, Hint, NotRun, Rate, in_words
from dtl.compare.advise import SCRATCH, differences, points, recommendations
from dtl.compare.grid import Grid, Labels, Planned, Tried, own_strategy
from dtl.compare.measure import LEVEL, Measured, best_score, measure, worth
from dtl.config.compare import changes
from dtl.config.comparing import STRATEGIES
from dtl.config.schema import Draw, RunConfig
from dtl.data.draw import drawn
from dtl.errors import DtlError, Fault, RunFailed, StoppedEarly
from dtl.examples import labelled
from dtl.lease import Lease
from dtl.run_folder import RunFolder, write_json
from dtl.stop import STOPPED, Stop
from dtl.supervisor import TOLD, start_copy
from dtl.tasks import Classification, Task
from dtl.units import format_seconds, parse_seconds

GRID = "grid.json"
SPENT = "spent.json"
SEARCH_SHARE = 1 / 3  # of a budget, at most, for learning rates
WARM = ("dtl.jobs.train", "dtl.jobs.evaluate", "sklearn.metrics")

Say = Callable[[str], None]


def open_folder(config: RunConfig, folder: Path, *, say: Say) -> Running:
    """The comparison of a config, begun or new. Raises DtlError for what is wrong with it."""
    begun = Running.at(folder, say=say) if (folder / GRID).is_file() else None
    if begun is None:
        grid, left_out, notes = _plan(config, say)
        folder.mkdir(parents=True, exist_ok=True)
        begun = Running(folder, grid, left_out, notes, say)
    else:
        _refuse_other(begun.grid.config, config, folder)
        begun = replace(begun, grid=replace(begun.grid, config=_on_this_machine(config)))
    begun.write_grid()
    return begun


@dataclass
class Running:
    """A comparison in its folder. `left_out`: what of the grid cannot be run."""

    folder: Path
    grid: Grid
    left_out: tuple[NotRun, ...]
    notes: tuple[str, ...]
    say: Say
    fork: bool = False
    failed: dict[str, str] = field(default_factory=dict)

    @classmethod
    def at(cls, folder: Path, *, say: Say) -> Running:
        """One that was begun. Raises DtlError where there is none."""
        path = folder / GRID
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as fault:
            raise DtlError.of(
                str(folder),
                f"there is no comparison in it that can be read ({fault})",
                "begin with `dtl compare CONFIG`",
            ) from fault
        left_out = tuple(NotRun(**each) for each in stored["left_out"])
        return cls(folder, Grid.from_dict(stored["grid"]), left_out, tuple(stored["notes"]), say)

    def write_grid(self) -> None:
        write_json(
            self.folder / GRID,
            {
                "grid": self.grid.to_dict(),
                "left_out": [asdict(each) for each in self.left_out],
                "notes": self.notes,
            },
        )

    # All of it.

    def run(self) -> Comparison:
        """Everything that is not finished, in order; then the table. Raises StoppedEarly when it
        was asked to end: the same again goes on."""
        with Lease(self.folder), Stop(interrupts=True):
            try:
                self._warm()
                self._before()
                budget = self._budget()
                began, spent = time.monotonic(), self._spent()

                def seconds() -> float:
                    return spent + time.monotonic() - began

                try:
                    self._run_all(budget, seconds)
                finally:
                    write_json(self.folder / SPENT, {"seconds": seconds()})
            except StoppedEarly as stopped:
                self.write_table()
                raise StoppedEarly.of(
                    "",
                    f"stopped; `dtl compare {self.folder}` goes on",
                    "",
                ) from stopped
            return self.write_table()

    def run_one(self, planned: Planned) -> None:
        """One run of the grid alone, where those that it waits for are finished. Several may be
        run at once. Raises DtlError where others come first, or it fails."""
        self._warm()
        rate = self.grid.rate_of(planned, self._tried)
        if rate is None:
            raise DtlError.of(
                planned.name,
                "its learning rate is that of the best of others, which are not all finished",
                f"run those before it first; `dtl compare {self.folder} --list` numbers them",
            )
        self._run(planned, rate)
        if planned.name in self.failed:
            raise RunFailed.of(planned.name, self.failed[planned.name], "")

    def _run_all(self, budget: float | None, seconds: Callable[[], float]) -> None:
        planned = self.grid.planned
        for number, one in enumerate(planned, start=1):
            rate = self.grid.rate_of(one, self._tried)
            searching = one.kind == "rate"
            if budget is not None:
                limit = budget * (SEARCH_SHARE if searching else 1)
                needs = self._likely_seconds(one)
                if not self._finished(one) and seconds() + needs > limit:
                    continue
                if rate is None:
                    rate = self.grid.best_so_far(one.strategy, self._tried)
            if rate is None or self._finished(one):
                continue
            began = time.monotonic()
            self._run(one, rate)
            took = format_seconds(time.monotonic() - began)
            told = self.failed.get(one.name) or self._told(one)
            self.say(f"{number:>3} of {len(planned)}  {one.name}  {told}  ({took})")

    def _run(self, planned: Planned, rate: float) -> None:
        """An ordinary run in an ordinary run folder, and what is scored of it beside."""
        config = self.grid.config_of(planned, rate, runs=str(self._cells))
        folder = RunFolder.of(config)
        if folder.state != "finished":
            self.failed.pop(planned.name, None)
            outcome = api.train(config, say=_say_nothing, fork=self.fork, quiet=True)
            if outcome.exit_code == STOPPED:
                raise StoppedEarly.of(planned.name, "stopped", "")
            if outcome.exit_code:
                self.failed[planned.name] = _last_word(folder)
                return
        if planned.kind == "cell":
            self._score_beside(planned, folder)

    def _score_beside(self, planned: Planned, run: RunFolder) -> None:
        compare = self.grid.config.compare
        scores = self.folder / "scores" / planned.name
        if compare.ood is not None and not (scores / "ood" / "evaluation.json").is_file():
            ood = compare.ood

            def shifted() -> None:
                from dtl.jobs.evaluate import score_run

                score_run(run, ood, ["task.group_by=null"], out=scores / "ood", say=_say_nothing)

            self._aside(shifted, planned.name)
        if (
            compare.source is not None
            and planned.strategy != SCRATCH
            and not (scores / "source" / "evaluation.json").is_file()
        ):
            self._aside(lambda: self._score_source(run, scores / "source"), planned.name)

    def _score_source(self, run: RunFolder | None, out: Path) -> None:
        from dtl.jobs.forgetting import score_source

        source = self.grid.config.compare.source
        assert source is not None
        values = self.grid.config.model_dump(mode="json")
        values["strategy"] = "full"
        base = RunConfig.model_validate(values)
        score_source(base, source, run, out=out, say=_say_nothing)

    def _before(self) -> None:
        """What is found out before any training: the base on the data of --source, and the hint."""
        out = self.folder / "scores" / "base"
        if self.grid.config.compare.source and not (out / "evaluation.json").is_file():
            try:
                self._aside(lambda: self._score_source(None, out), "base")
            except DtlError as fault:
                told = "; ".join(one.problem for one in fault.faults)
                raise DtlError.of(
                    "compare.source", told, "leave it out, or name what the base had learnt"
                ) from fault
        hinted = self.folder / "hint.json"
        if hinted.is_file():
            return
        if self.grid.classes is None:
            write_json(hinted, {"why": "only classes can be told from features by a probe"})
            return

        def ask() -> None:
            from dtl.jobs.hint import hint

            write_json(hinted, asdict(hint(self._hint_config)))

        try:
            self._aside(ask, "hint")
        except DtlError as fault:
            write_json(hinted, {"why": fault.faults[0].problem})

    @property
    def _hint_config(self) -> RunConfig:
        fewest = Planned("rate", "full", self.grid.labels[0], self.grid.seeds[0])
        return self.grid.config_of(fewest, 1.0, runs=str(self._cells))

    def _aside(self, work: Callable[[], None], name: str) -> None:
        """In a copy of this process, as torch must not compute in this one. Raises its DtlError."""
        if not self.fork:
            work()
            return
        logs = self.folder / "logs"
        fault = logs / f"{name}.fault.json"
        fault.unlink(missing_ok=True)
        logs.mkdir(exist_ok=True)

        def in_copy() -> int:
            try:
                work()
            except DtlError as error:
                write_json(fault, [asdict(one) for one in error.faults])
                return error.exit_code
            return 0

        child = start_copy(in_copy, log=logs / f"{name}.log")
        _, status = os.waitpid(child, 0)
        if fault.is_file():
            raise DtlError(*(Fault(**one) for one in json.loads(fault.read_text())))
        if status:
            raise RunFailed.of(name, "could not be scored", f"see {logs / name}.log")

    def _warm(self) -> None:
        """Load once what each copy of this process would load again."""
        if self.fork:
            for name in WARM:
                import_module(name)

    # What is there.

    @property
    def _cells(self) -> Path:
        return self.folder / "cells"

    def _folder_of(self, planned: Planned) -> RunFolder:
        return RunFolder(self._cells / planned.name)

    def _finished(self, planned: Planned) -> bool:
        """Whether it is not to be run: done, with what is scored beside; or a rate that failed."""
        run = self._folder_of(planned)
        if planned.kind == "rate":
            return run.state == "finished" or _has_failed(run)
        compare, scores = self.grid.config.compare, self.folder / "scores" / planned.name
        beside = [name for name in ("ood", "source") if getattr(compare, name) is not None]
        if planned.strategy == SCRATCH:
            beside = [name for name in beside if name != "source"]
        return run.state == "finished" and all(
            (scores / name / "evaluation.json").is_file() for name in beside
        )

    @property
    def _tried(self) -> list[Tried]:
        """The rates whose runs have ended."""
        found = []
        for planned in self.grid.searches:
            run = self._folder_of(planned)
            done = run.state == "finished"
            if done or _has_failed(run):
                score = worth(self._task, run) if done else None
                found.append(Tried(planned, float(run.config.optim.learning_rate or 0), score))
        return found

    @cached_property
    def _task(self) -> Task:
        return assemble(self.grid.config).task

    def _told(self, planned: Planned) -> str:
        run, name = self._folder_of(planned), best_score(self._task)
        rate = run.config.optim.learning_rate
        return f"{name} {run.result['scores']['adapted'][name]:.4g} at rate {rate:.3g}"

    def _budget(self) -> float | None:
        budget = self.grid.config.compare.budget
        return None if budget is None else parse_seconds(budget)

    def _spent(self) -> float:
        path = self.folder / SPENT
        if not path.is_file():
            return 0.0
        return float(json.loads(path.read_text(encoding="utf-8"))["seconds"])

    def _likely_seconds(self, planned: Planned) -> float:
        """How long a run takes, from the slowest of the same strategy so far; of none, any."""
        from dtl.train.usage import read_usage

        seen: dict[bool, list[float]] = {True: [], False: []}
        for other in self.grid.planned:
            run = self._folder_of(other)
            if run.state == "finished" and (usage := read_usage(run.usage)) is not None:
                same = other.strategy == planned.strategy
                seen[same].append(usage.seconds / other.share * planned.share)
        return max(seen[True] or seen[False] or [0.0])

    # The table.

    def write_table(self) -> Comparison:
        """comparison.json, and comparison.csv beside it, of all that is finished."""
        found = self.table()
        write_json(self.folder / TABLE, found.to_dict())
        _write_csv(found, self.folder / "comparison.csv")
        return found

    def table(self) -> Comparison:
        """All that the finished runs say, computed anew from the outcomes that they stored."""
        grid, task = self.grid, self._task
        sign = -1 if task.best.startswith("-") else 1
        measured = [self._measure(one) for one in grid.cells if self._finished(one)]
        mean_points = points(measured, sign=sign)
        pairs = differences(measured, sign=sign)
        hint, no_hint = self._hint()
        compare = grid.config.compare
        return Comparison(
            name=self.folder.name,
            task=grid.config.task.name,
            score_name=best_score(task),
            higher_is_better=sign > 0,
            classes=grid.classes,
            level=LEVEL,
            strategies=grid.strategies,
            labels=tuple(labels.number for labels in grid.labels),
            all_labels=next((each.number for each in grid.labels if each.asked is None), None),
            seeds=grid.seeds,
            source=compare.source.path if compare.source else None,
            source_before=self._source_before(task),
            ood=compare.ood.path if compare.ood else None,
            cells=tuple(one.cell for one in measured),
            points=tuple(mean_points),
            differences=tuple(pairs),
            recommendations=tuple(recommendations(mean_points, pairs, sign=sign, unit=self._unit)),
            rates=tuple(self._rates(sign)),
            hint=hint,
            no_hint=no_hint,
            notes=(*self.notes, *self._edges()),
            not_run=(*self.left_out, *self._missing()),
        )

    def _measure(self, planned: Planned) -> Measured:
        scores = self.folder / "scores" / planned.name
        return measure(planned, self._folder_of(planned), self._task, scores=scores)

    def _unit(self, labels: int) -> str:
        return in_words(labels, classes=self.grid.classes)

    def _hint(self) -> tuple[Hint | None, str | None]:
        path = self.folder / "hint.json"
        if not path.is_file():
            return None, "not asked yet"
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if "why" in stored:
            return None, str(stored["why"])
        return Hint(labels=self.grid.labels[0].number, **stored), None

    def _source_before(self, task: Task) -> float | None:
        path = self.folder / "scores" / "base" / "evaluation.json"
        if not path.is_file():
            return None
        return float(json.loads(path.read_text(encoding="utf-8"))["scores"][best_score(task)])

    def _rates(self, sign: int) -> list[Rate]:
        return [
            Rate(one.planned.strategy, one.learning_rate, one.planned.share, sign * one.score)
            for one in self._tried
            if one.score is not None
        ]

    def _edges(self) -> list[str]:
        """Strategies whose best rate has no neighbour on one side, so that a better one may lie
        beyond."""
        notes = []
        for strategy in self.grid.strategies:
            rates = self.grid.rates(strategy)
            chosen = self.grid.rate_of(
                next(one for one in self.grid.cells if one.strategy == strategy), self._tried
            )
            if len(rates) > 1 and chosen in (rates[0], rates[-1]):
                end = "lowest" if chosen == rates[0] else "highest"
                notes.append(
                    f"{strategy} did best at the {end} rate that was tried ({chosen:.3g}): give "
                    f"compare.rates.{strategy} others beyond"
                )
        return notes

    def _missing(self) -> list[NotRun]:
        """What could be run and was not."""
        tried = {one.planned.name for one in self._tried}
        spent = self._budget() is not None
        missing = []
        for strategy in self.grid.strategies:
            searches = [one for one in self.grid.searches if one.strategy == strategy]
            left = sum(one.name not in tried for one in searches)
            if left and spent:
                what = f"{strategy}: {left} of {len(searches)} tries of learning rates"
                missing.append(NotRun(what, "budget: a third of it is spent"))
        for strategy in self.grid.strategies:
            for labels in self.grid.labels:
                cells = [
                    one
                    for one in self.grid.cells
                    if (one.strategy, one.labels) == (strategy, labels) and not self._finished(one)
                ]
                failed = [one for one in cells if one.name in self.failed]
                waiting = [one for one in cells if one.name not in self.failed]
                for group, why in (
                    (failed, failed and self.failed[failed[0].name]),
                    (waiting, "budget spent" if spent else "not run yet"),
                ):
                    if group:
                        seeds = ", ".join(str(one.seed) for one in group)
                        what = f"{strategy} with {self._unit(labels.number)}, seeds {seeds}"
                        missing.append(NotRun(what, str(why)))
        return missing


def _write_csv(found: Comparison, path: Path) -> None:
    """A line a cell."""
    rows = []
    for cell in found.cells:
        row = asdict(cell)
        low_high = row.pop("interval")
        scores = row.pop("scores")
        row.pop("curve")
        row |= {"low": low_high["low"], "high": low_high["high"]}
        rows.append(row | {f"scores/{name}": value for name, value in scores.items()})
    names = list(dict.fromkeys(name for row in rows for name in row))
    staged = path.with_name(f".{path.name}")
    with staged.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    staged.replace(path)


# Before anything runs.


def _plan(config: RunConfig, say: Say) -> tuple[Grid, tuple[NotRun, ...], tuple[str, ...]]:
    """The grid, what of it cannot be run, and what is to be known of it. Raises DtlError."""
    _refuse_unfit(config)
    notes = []
    if config.train.export != "last" or config.train.ema or config.train.average:
        notes.append(
            "each cell ends with the weights of its last step: better ones would be chosen by the "
            "very rows that it is scored on"
        )
    config = _on_this_machine(config)
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


def _on_this_machine(config: RunConfig) -> RunConfig:
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
            desk.prepare_run(grid.config_of(first, grid.usual_rate(strategy), runs="."))
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


def _refuse_other(before: RunConfig, now: RunConfig, folder: Path) -> None:
    """A comparison may get more seeds and time; all else would be another. Raises DtlError."""
    alone = _on_this_machine(now)
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


def _has_failed(run: RunFolder) -> bool:
    return run.state == "interrupted" and run.ended == 1


def _last_word(folder: RunFolder) -> str:
    told = folder.logs / TOLD
    lines = told.read_text(encoding="utf-8").strip().splitlines() if told.is_file() else []
    return f"failed: {lines[-1] if lines else f'see {folder.logs}'}"


def _say_nothing(_: str) -> None:
    return None
