"""The training runs that distributed tests look at: what each is, and their launches.

A test names its runs by the marker `needs`. Before the first test of a file, the runs of all its
selected tests are made in as few launches as possible, since a launch costs as much as ten runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import launching


@dataclass(frozen=True)
class Run:
    """One run of `many.py` on so many processes. `bare`: it neither saves nor exports.
    `before`: runs that are made earlier, such as the interrupted one that this one resumes."""

    name: str
    processes: int
    overrides: tuple[str, ...] = ()
    config: str = "config.yaml"
    bare: bool = True
    stop_after: int | None = None
    stop_at: str | None = None
    poison: tuple[int, ...] = ()
    jump: int | None = None
    skip_steps: tuple[int, ...] = ()
    fp16: bool = False
    chunk_logits: int | None = None
    before: tuple[Run, ...] = ()

    @property
    def job(self) -> dict[str, Any]:
        """The run as `many.py` reads it."""
        more = {
            "stop_after": self.stop_after,
            "stop_at": self.stop_at,
            "poison": list(self.poison),
            "jump": self.jump,
            "skip_steps": list(self.skip_steps),
            "fp16": self.fp16,
            "chunk_logits": self.chunk_logits,
        }
        return {
            "config": self.config,
            "overrides": [*self.overrides, f"run.name={self.name}"],
            "bare": self.bare,
            **{key: value for key, value in more.items() if value},
        }

    def path(self, folder: Path) -> Path:
        """Return the run's folder."""
        return folder / "runs" / self.name

    def lines(self, folder: Path) -> list[dict[str, Any]]:
        """Return the train lines of the run's log."""
        return launching.train_lines(self.path(folder))

    def losses(self, folder: Path) -> list[float]:
        """Return the loss of each step."""
        return [line["loss"] for line in self.lines(folder)]


def interrupted(run: Run, **stop: Any) -> Run:
    """Return the run resumed: it is first stopped where `stop` says, on the same processes."""
    first = replace(run, bare=False, **stop)
    return replace(run, bare=False, before=(first,))


def needs(*runs: Run | Callable[..., Iterable[Run]]) -> pytest.MarkDecorator:
    """Mark a test with its runs, or with a function that makes them from the test's parameters."""
    return pytest.mark.needs.with_args(*runs)  # called with one function it would decorate it


def needed_by(items: Iterable[pytest.Item]) -> list[Run]:
    """Return the runs of tests, each once, those that come before others first."""
    found: dict[Run, None] = {}
    for item in items:
        parameters = getattr(item, "callspec", None)
        for marker in item.iter_markers("needs"):
            for run in marker.args:
                every = [run] if isinstance(run, Run) else run(**_of(parameters))
                found.update(dict.fromkeys(each for one in every for each in _in_order(one)))
    return list(found)


def _of(callspec: Any) -> dict[str, Any]:
    return dict(callspec.params) if callspec is not None else {}


def _in_order(run: Run) -> Iterator[Run]:
    for earlier in run.before:
        yield from _in_order(earlier)
    yield run


def launch(runs: list[Run], *, folder: Path, done: set[Run]) -> None:
    """Make the runs that are not done. Each launch takes all that can be made on as many processes
    as most of the waiting runs want."""
    waiting = [run for run in runs if run not in done]
    while waiting:
        ready = [run for run in waiting if done.issuperset(run.before)]
        (processes, _), *_ = Counter(run.processes for run in ready).most_common()
        together: list[Run] = []
        for run in waiting:
            if run.processes == processes and done.union(together).issuperset(run.before):
                together.append(run)
        launching.run_jobs(processes, [run.job for run in together], cwd=folder)
        done.update(together)
        waiting = [run for run in waiting if run not in done]
