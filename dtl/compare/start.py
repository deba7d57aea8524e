"""Begins a comparison, or goes on with one: all of it, or one of its runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from dtl.compare import Comparison
from dtl.compare.run import Running, begin
from dtl.compare.state import State
from dtl.config.load import load_config
from dtl.errors import DtlError

HOME = Path("comparisons")


def start(
    path: Path,
    overrides: Sequence[str],
    *,
    out: Path | None = None,
    cell: int | None = None,
    only_list: bool = False,
    say: Callable[[str], None] = print,
    fork: bool = True,
) -> Comparison | None:
    """`path`: a config, or the folder of a comparison. `cell`: the number of a run, from 1, that is
    run alone. None where not all was to be run. Raises DtlError; StoppedEarly where it was asked to
    end, and goes on when it is started again."""
    state = _open(path, overrides, out)
    planned = state.grid.planned
    if only_list:
        for number, one in enumerate(planned, start=1):
            say(f"{number:>4}  {one.name}")
        return None
    running = Running(state, say, fork)
    if cell is None:
        return running.all()
    if cell > len(planned):
        raise DtlError.of("--cell", f"there are {len(planned)} runs", f"name 1 to {len(planned)}")
    running.one(planned[cell - 1])
    return None


def _open(path: Path, overrides: Sequence[str], out: Path | None) -> State:
    if not path.is_dir():
        config = load_config(path, overrides)
        assert config.run.name is not None
        return begin(config, out or HOME / config.run.name)
    if overrides or out is not None:
        raise DtlError.of(
            str(path),
            "is a comparison, whose grid stands",
            "name its config again to give it more seeds or time",
        )
    return State.at(path)
