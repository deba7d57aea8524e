"""Runs the planned runs of a comparison, each once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path

from dtl import api
from dtl.compare.grid import PlannedRun
from dtl.compare.measure import EVALUATION_STEM, score_name
from dtl.compare.plan import check_same_comparison, plan_grid, with_local_layout
from dtl.compare.records import Comparison
from dtl.compare.results import write_comparison
from dtl.compare.state import GRID_FILE, SPENT_FILE, ComparisonState, describe_failure
from dtl.config.schema import RunConfig
from dtl.core.cache_folder import read_cache_record
from dtl.core.errors import DtlError, Fault, RunFailed, StoppedEarly
from dtl.core.files import read_record, write_record
from dtl.core.lock import Lease
from dtl.core.signals import STOPPED, Stop
from dtl.core.units import format_seconds
from dtl.launch.child_process import fork_process
from dtl.run.folder import RunFolder

SEARCH_BUDGET_SHARE = 1 / 3  # maximum share of the time budget for the learning-rate search
PRELOADED_MODULES = ("dtl.jobs.train", "dtl.compare.forgetting", "sklearn.metrics")

PrintLine = Callable[[str], None]


def create_or_resume(config: RunConfig, folder: Path) -> ComparisonState:
    """Return the state of a new or existing comparison. Raises DtlError for invalid configs."""
    if (folder / GRID_FILE).is_file():
        state = ComparisonState.load(folder)
        check_same_comparison(state.grid.config, config, folder)
        state.grid = replace(state.grid, config=with_local_layout(config))
    else:
        planned = plan_grid(config)
        state = ComparisonState(folder, planned.grid, planned.missing_runs, planned.notes)
        folder.mkdir(parents=True, exist_ok=True)
    state.write_grid()
    return state


@dataclass
class Runner:
    """Runs what a comparison still needs. `can_fork`: runs may be forks of this process;
    False if torch has already computed in it."""

    state: ComparisonState
    print_line: PrintLine
    can_fork: bool

    def run_all(self) -> Comparison:
        """Run everything that is not finished, in order, and write the results. Raises StoppedEarly
        after a stop signal: the same call continues."""
        state = self.state
        with Lease(state.folder), Stop(interrupts=True):
            try:
                self._preload_modules()
                self._measure_base()
                self._run_all_timed()
            except StoppedEarly as stopped:
                write_comparison(state)
                message = f"stopped; to continue, run `dtl compare {state.folder}`"
                raise StoppedEarly.of("", message, "") from stopped
            return write_comparison(state)

    def run_one(self, planned: PlannedRun) -> None:
        """Run one planned run. Several processes may do so at once. Raises DtlError if its
        learning-rate search is not finished, or if it fails."""
        self._preload_modules()
        rate = self.state.choose_rate(planned)
        if rate is None:
            raise DtlError.of(
                planned.name,
                "its learning-rate search is not finished",
                f"run the search runs first: see `dtl compare {self.state.folder} --list`",
            )
        self._train_and_score(planned, rate)
        if planned.name in self.state.failures:
            raise RunFailed.of(planned.name, self.state.failures[planned.name], "")

    def _run_all_timed(self) -> None:
        """Run all; record the time spent, also after a failure."""
        start, spent = time.monotonic(), self.state.spent_seconds

        def seconds() -> float:
            return spent + time.monotonic() - start

        try:
            for number, planned in enumerate(self.state.grid.planned_runs, start=1):
                self._run_if_due(number, planned, seconds)
        finally:
            write_record(self.state.folder / SPENT_FILE, {"seconds": seconds()})

    def _run_if_due(self, number: int, planned: PlannedRun, seconds: Callable[[], float]) -> None:
        """Run it, unless it is finished or the time budget is too short."""
        state, budget = self.state, self.state.budget_seconds
        is_search = planned.kind == "search"
        if state.is_finished(planned) or (is_search and state.started_rate(planned)):
            return
        rate = state.choose_rate(planned)
        if budget is not None:
            limit = budget * (SEARCH_BUDGET_SHARE if is_search else 1)
            if seconds() + state.estimate_seconds(planned) > limit:
                return
            if rate is None and not is_search:
                rate = state.grid.best_rate_so_far(planned, state.trial_results)
        if rate is None:
            return
        before = seconds()
        self._train_and_score(planned, rate)
        result = state.failures.get(planned.name) or self._format_result(planned)
        duration = format_seconds(seconds() - before)
        total = len(state.grid.planned_runs)
        self.print_line(f"{number:>3} of {total}  {planned.name}  {result}  ({duration})")

    def _format_result(self, planned: PlannedRun) -> str:
        run, name = self.state.run_folder(planned), score_name(self.state.task)
        value = run.result["scores"]["adapted"][name]
        return f"{name} {value:.4g} at learning rate {run.config.optim.learning_rate:.3g}"

    def _train_and_score(self, planned: PlannedRun, rate: float) -> None:
        """Train it in a run folder, then score it on the source and OOD data."""
        state = self.state
        config = state.grid.make_config(planned, rate, runs=str(state.cells_folder))
        folder = RunFolder.from_config(config)
        if folder.state != "finished":
            state.failures.pop(planned.name, None)
            result = api.train(config, print_line=_discard, can_fork=self.can_fork, quiet=True)
            if result.exit_code == STOPPED:
                raise StoppedEarly.of(planned.name, "stopped", "")
            if result.exit_code:
                state.failures[planned.name] = describe_failure(folder)
                return
        kinds = state.missing_scores(planned) if planned.kind == "cell" else []
        if kinds:
            self._run_in_child(lambda: self._score_other_data(planned, kinds), planned.name)

    def _score_other_data(self, planned: PlannedRun, kinds: list[str]) -> None:
        """Evaluate a run on the source and OOD data."""
        from dtl.jobs.evaluate import score_run

        run, compare = self.state.run_folder(planned), self.state.grid.config.compare
        if "ood" in kinds:
            assert compare.ood_data is not None
            out = self.state.scores_folder(planned, "ood")
            score_run(run, compare.ood_data, ["task.group_by=null"], out=out, print_line=_discard)
        if "source" in kinds:
            self._score_source(run, self.state.scores_folder(planned, "source"))

    def _score_source(self, run: RunFolder | None, out: Path) -> None:
        """Evaluate a run, or the unadapted base, on the source data."""
        from dtl.compare.forgetting import score_source

        config = self.state.grid.config
        assert config.compare.source_data is not None
        base = RunConfig.model_validate({**config.model_dump(mode="json"), "strategy": "full"})
        score_source(base, config.compare.source_data, run, out=out, print_line=_discard)

    def _measure_base(self) -> None:
        """Score the base on the source data and probe its features, before any training."""
        state = self.state
        out = state.base_scores_folder
        if (
            state.grid.config.compare.source_data
            and not (out / f"{EVALUATION_STEM}.json").is_file()
        ):
            try:
                self._run_in_child(lambda: self._score_source(None, out), "base")
            except DtlError as fault:
                problems = "; ".join(one.problem for one in fault.faults)
                raise DtlError.of(
                    "compare.source_data",
                    problems,
                    "remove it, or use data that the base was trained for",
                ) from fault
        if read_cache_record(state.probe_file) is not None:
            return
        if state.grid.classes is None:
            write_record(state.probe_file, {"reason": "the task has no classes"})
            return
        try:
            self._run_in_child(self._write_feature_probe, "feature_probe")
        except DtlError as fault:
            write_record(state.probe_file, {"reason": fault.faults[0].problem})

    def _write_feature_probe(self) -> None:
        from dtl.compare.feature_probe import probe_features

        write_record(self.state.probe_file, asdict(probe_features(self.state.grid.probe_config)))

    def _run_in_child(self, work: Callable[[], None], name: str) -> None:
        """Run `work` in a forked process, because torch must not compute in this one. Raises the
        DtlError of `work`."""
        if not self.can_fork:
            work()
            return
        logs = self.state.folder / "logs"
        fault_file = logs / f"{name}.fault.json"
        fault_file.unlink(missing_ok=True)
        logs.mkdir(exist_ok=True)

        def run_and_record_fault() -> int:
            try:
                work()
            except DtlError as error:
                write_record(fault_file, {"faults": [asdict(one) for one in error.faults]})
                return error.exit_code
            return 0

        child = fork_process(run_and_record_fault, log=logs / f"{name}.log")
        _, status = os.waitpid(child, 0)
        if fault_file.is_file():
            raise DtlError(*(Fault(**one) for one in read_record(fault_file)["faults"]))
        if status:
            raise RunFailed.of(name, "the evaluation failed", f"see {logs / name}.log")

    def _preload_modules(self) -> None:
        """Import modules once that each forked process would import again."""
        if self.can_fork:
            for name in PRELOADED_MODULES:
                import_module(name)


def _discard(_: str) -> None:
    return None
