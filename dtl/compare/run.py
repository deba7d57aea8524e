"""Runs the planned runs of a comparison, each once."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path

from dtl import api
from dtl.compare.grid import PlannedRun
from dtl.compare.measure import EVALUATION, best_score
from dtl.compare.plan import on_this_machine, plan, refuse_other
from dtl.compare.records import Comparison
from dtl.compare.state import GRID, SPENT, State, last_word
from dtl.compare.table import write_table
from dtl.config.schema import RunConfig
from dtl.core.errors import DtlError, Fault, RunFailed, StoppedEarly
from dtl.core.files import write_json
from dtl.core.lock import Lease
from dtl.core.signals import STOPPED, Stop
from dtl.core.units import format_seconds
from dtl.launch.child_process import fork_process
from dtl.run.folder import RunFolder

SEARCH_SHARE = 1 / 3  # maximum share of the time budget for the learning-rate search
WARM = ("dtl.jobs.train", "dtl.compare.forgetting", "sklearn.metrics")

Say = Callable[[str], None]


def begin(config: RunConfig, folder: Path) -> State:
    """Return the state of a new or existing comparison. Raises DtlError for invalid configs."""
    if (folder / GRID).is_file():
        state = State.at(folder)
        refuse_other(state.grid.config, config, folder)
        state.grid = replace(state.grid, config=on_this_machine(config))
    else:
        state = State(folder, *plan(config))
        folder.mkdir(parents=True, exist_ok=True)
    state.write_grid()
    return state


@dataclass
class Running:
    """Runs what a comparison still needs. `fork`: start runs as forks of this process; False if
    torch has already computed in it."""

    state: State
    say: Say
    fork: bool

    def all(self) -> Comparison:
        """Run everything that is not finished, in order, and write the results. Raises StoppedEarly
        after a stop signal: the same call continues."""
        state = self.state
        with Lease(state.folder), Stop(interrupts=True):
            try:
                self._warm()
                self._before()
                self._timed()
            except StoppedEarly as stopped:
                write_table(state)
                told = f"stopped; `dtl compare {state.folder}` goes on"
                raise StoppedEarly.of("", told, "") from stopped
            return write_table(state)

    def one(self, planned: PlannedRun) -> None:
        """Run one planned run. Several processes may do so at once. Raises DtlError if its
        learning-rate search is not finished, or if it fails."""
        self._warm()
        rate = self.state.rate_of(planned)
        if rate is None:
            raise DtlError.of(
                planned.name,
                "the search of its learning rate is not finished",
                f"run the search runs first: see `dtl compare {self.state.folder} --list`",
            )
        self._run(planned, rate)
        if planned.name in self.state.failed:
            raise RunFailed.of(planned.name, self.state.failed[planned.name], "")

    def _timed(self) -> None:
        """Run all; record the time spent, also after a failure."""
        began, spent = time.monotonic(), self.state.spent

        def seconds() -> float:
            return spent + time.monotonic() - began

        try:
            for number, planned in enumerate(self.state.grid.planned_runs, start=1):
                self._in_turn(number, planned, seconds)
        finally:
            write_json(self.state.folder / SPENT, {"seconds": seconds()})

    def _in_turn(self, number: int, planned: PlannedRun, seconds: Callable[[], float]) -> None:
        """Run it, unless it is finished or the time budget is too short."""
        state, budget = self.state, self.state.budget
        searching = planned.kind == "rate"
        if state.finished(planned) or (searching and state.settled(planned)):
            return
        rate = state.rate_of(planned)
        if budget is not None:
            limit = budget * (SEARCH_SHARE if searching else 1)
            if seconds() + state.likely_seconds(planned) > limit:
                return
            if rate is None and not searching:
                rate = state.grid.best_so_far(planned, state.tried)
        if rate is None:
            return
        before = seconds()
        self._run(planned, rate)
        told = state.failed.get(planned.name) or self._told(planned)
        took = format_seconds(seconds() - before)
        self.say(f"{number:>3} of {len(state.grid.planned_runs)}  {planned.name}  {told}  ({took})")

    def _told(self, planned: PlannedRun) -> str:
        run, name = self.state.folder_of(planned), best_score(self.state.task)
        value = run.result["scores"]["adapted"][name]
        return f"{name} {value:.4g} at rate {run.config.optim.learning_rate:.3g}"

    def _run(self, planned: PlannedRun, rate: float) -> None:
        """Train it in a run folder, then score it on the source and OOD data."""
        state = self.state
        config = state.grid.config_of(planned, rate, runs=str(state.cells))
        folder = RunFolder.from_config(config)
        if folder.state != "finished":
            state.failed.pop(planned.name, None)
            outcome = api.train(config, say=_say_nothing, fork=self.fork, quiet=True)
            if outcome.exit_code == STOPPED:
                raise StoppedEarly.of(planned.name, "stopped", "")
            if outcome.exit_code:
                state.failed[planned.name] = last_word(folder)
                return
        kinds = state.unscored(planned) if planned.kind == "cell" else []
        if kinds:
            self._aside(lambda: self._score_beside(planned, kinds), planned.name)

    def _score_beside(self, planned: PlannedRun, kinds: list[str]) -> None:
        from dtl.jobs.evaluate import score_run

        run, compare = self.state.folder_of(planned), self.state.grid.config.compare
        if "ood" in kinds:
            assert compare.ood_data is not None
            out = self.state.scores_of(planned, "ood")
            score_run(
                run, compare.ood_data, ["task.group_by=null"], out=out, print_line=_say_nothing
            )
        if "source" in kinds:
            self._score_source(run, self.state.scores_of(planned, "source"))

    def _score_source(self, run: RunFolder | None, out: Path) -> None:
        from dtl.compare.forgetting import score_source

        config = self.state.grid.config
        assert config.compare.source_data is not None
        base = RunConfig.model_validate({**config.model_dump(mode="json"), "strategy": "full"})
        score_source(base, config.compare.source_data, run, out=out, say=_say_nothing)

    def _before(self) -> None:
        """Score the base on the data of --source and probe its features, before any training."""
        state = self.state
        out = state.scores_of_base
        if state.grid.config.compare.source_data and not (out / f"{EVALUATION}.json").is_file():
            try:
                self._aside(lambda: self._score_source(None, out), "base")
            except DtlError as fault:
                told = "; ".join(one.problem for one in fault.faults)
                raise DtlError.of(
                    "compare.source_data",
                    told,
                    "remove it, or use data that the base was trained for",
                ) from fault
        if state.hint_file.is_file():
            return
        if state.grid.classes is None:
            why = "the task has no classes"
            write_json(state.hint_file, {"why": why})
            return
        try:
            self._aside(self._ask_for_hint, "hint")
        except DtlError as fault:
            write_json(state.hint_file, {"why": fault.faults[0].problem})

    def _ask_for_hint(self) -> None:
        from dtl.compare.hint import hint

        write_json(self.state.hint_file, asdict(hint(self.state.grid.probe_config)))

    def _aside(self, work: Callable[[], None], name: str) -> None:
        """Run `work` in a forked process, because torch must not compute in this one. Raises the
        DtlError of `work`."""
        if not self.fork:
            work()
            return
        logs = self.state.folder / "logs"
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

        child = fork_process(in_copy, log=logs / f"{name}.log")
        _, status = os.waitpid(child, 0)
        if fault.is_file():
            raise DtlError(*(Fault(**one) for one in json.loads(fault.read_text())))
        if status:
            raise RunFailed.of(name, "scoring failed", f"see {logs / name}.log")

    def _warm(self) -> None:
        """Import modules once that each forked process would import again."""
        if self.fork:
            for name in WARM:
                import_module(name)


def _say_nothing(_: str) -> None:
    return None
