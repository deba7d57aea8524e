"""The state of a comparison in its folder: the grid, and which of its runs are finished."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from dtl.assembly.parts import assemble
from dtl.compare.grid import SCRATCH, Grid, PlannedRun, TrialResult
from dtl.compare.measure import EVALUATION_STEM, oriented_score
from dtl.compare.records import MissingRuns
from dtl.core.cache_folder import read_cache_record
from dtl.core.errors import DtlError
from dtl.core.files import read_record, write_record
from dtl.core.units import parse_seconds
from dtl.launch.supervisor import TERMINAL_LOG
from dtl.run.folder import RunFolder
from dtl.tasks.base import Task

GRID_FILE = "grid.json"
SPENT_FILE = "spent.json"


@dataclass
class ComparisonState:
    """A comparison and its folder. `missing_runs`: what cannot be run. `failures`: runs that have
    failed in this process, by name, and why."""

    folder: Path
    grid: Grid
    missing_runs: tuple[MissingRuns, ...]
    notes: tuple[str, ...]
    failures: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> ComparisonState:
        """Load an existing comparison. Raises DtlError if there is none."""
        try:
            stored = read_record(folder / GRID_FILE)
        except DtlError as fault:
            raise DtlError.of(
                str(folder),
                f"contains no readable comparison ({fault.faults[0].problem})",
                f"run `dtl compare CONFIG`; if {GRID_FILE} is damaged, remove it first: finished "
                "runs stay",
            ) from fault
        missing_runs = tuple(MissingRuns(**each) for each in stored["missing_runs"])
        return cls(folder, Grid.from_dict(stored["grid"]), missing_runs, tuple(stored["notes"]))

    def write_grid(self) -> None:
        """Write grid.json."""
        write_record(
            self.folder / GRID_FILE,
            {
                "grid": self.grid.to_dict(),
                "missing_runs": [asdict(each) for each in self.missing_runs],
                "notes": self.notes,
            },
        )

    @property
    def cells_folder(self) -> Path:
        return self.folder / "cells"

    def run_folder(self, planned: PlannedRun) -> RunFolder:
        return RunFolder(self.cells_folder / planned.name)

    def is_finished(self, planned: PlannedRun) -> bool:
        """Return whether it is finished and fully evaluated, or a search run that failed."""
        run = self.run_folder(planned)
        if planned.kind == "search":
            return run.state == "finished" or _has_failed(run)
        return run.state == "finished" and not self.missing_scores(planned)

    @property
    def trial_results(self) -> list[TrialResult]:
        """The results of all search runs that have ended."""
        results = []
        for planned in self.grid.search_runs:
            run = self.run_folder(planned)
            has_finished = run.state == "finished"
            if has_finished or _has_failed(run):
                score = oriented_score(self.task, run) if has_finished else None
                results.append(
                    TrialResult(planned, float(run.config.optim.learning_rate or 0), score)
                )
        return results

    def started_rate(self, planned: PlannedRun) -> float | None:
        """Return the learning rate of the cells that have started with the same search, so that
        the others take the same; None if none has started."""
        for cell in self.grid.cell_runs:
            run = self.run_folder(cell)
            if self.grid.share_search(cell, planned) and run.state != "absent":
                return run.config.optim.learning_rate
        return None

    def choose_rate(self, planned: PlannedRun) -> float | None:
        """Return the learning rate of a run; None: its search is not finished."""
        started_rate = self.started_rate(planned) if planned.kind == "cell" else None
        return started_rate or self.grid.choose_rate(planned, self.trial_results)

    @cached_property
    def task(self) -> Task:
        return assemble(self.grid.config).task

    @property
    def budget_seconds(self) -> float | None:
        budget = self.grid.config.compare.time_budget
        return None if budget is None else parse_seconds(budget)

    @property
    def spent_seconds(self) -> float:
        path = self.folder / SPENT_FILE
        if not path.is_file():
            return 0.0
        return float(read_record(path)["seconds"])

    def estimate_seconds(self, planned: PlannedRun) -> float:
        """Return the expected seconds of a run: the maximum of the finished runs with its strategy,
        else of all finished runs."""
        from dtl.train.usage import read_usage

        same_strategy: list[float] = []
        others: list[float] = []
        for other in self.grid.planned_runs:
            run = self.run_folder(other)
            if run.state == "finished" and (usage := read_usage(run.usage)) is not None:
                durations = same_strategy if other.strategy == planned.strategy else others
                durations.append(usage.seconds / other.step_share * planned.step_share)
        return max(same_strategy or others or [0.0])

    @property
    def probe_file(self) -> Path:
        return self.folder / "feature_probe.json"

    def scores_folder(self, planned: PlannedRun, kind: str) -> Path:
        """Return the folder of a run's evaluation on other data. `kind`: source or ood."""
        return self.folder / "scores" / planned.name / kind

    @property
    def base_scores_folder(self) -> Path:
        """The folder of the unadapted base's evaluation on the source data."""
        return self.folder / "scores" / "base"

    def missing_scores(self, planned: PlannedRun) -> list[str]:
        """Return the evaluations on other data that a run still needs: source, ood."""
        compare, kinds = self.grid.config.compare, []
        if compare.ood_data is not None:
            kinds.append("ood")
        if compare.source_data is not None and planned.strategy != SCRATCH:
            kinds.append("source")
        return [
            kind
            for kind in kinds
            if read_cache_record(self.scores_folder(planned, kind) / f"{EVALUATION_STEM}.json")
            is None
        ]


def _has_failed(run: RunFolder) -> bool:
    return run.state == "interrupted" and run.exit_code == 1


def describe_failure(folder: RunFolder) -> str:
    """Return the last line of the terminal log of a failed run."""
    log = folder.logs / TERMINAL_LOG
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    lines = text.strip().splitlines()
    return f"failed: {lines[-1] if lines else f'see {folder.logs}'}"
