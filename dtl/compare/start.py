"""Begins a comparison, or goes on with one: all of it, or one of its runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from dtl.compare import Comparison
from dtl.compare.run import Running, open_folder
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
    running = _open(path, overrides, out, say)
    running.fork = fork
    planned = running.grid.planned
    if only_list:
        for number, one in enumerate(planned, start=1):
            say(f"{number:>4}  {one.name}")
        return None
    if cell is None:
        return running.run()
    if cell > len(planned):
        raise DtlError.of("--cell", f"there are {len(planned)} runs", f"name 1 to {len(planned)}")
    running.run_one(planned[cell - 1])
    return None


def _open(
    path: Path, overrides: Sequence[str], out: Path | None, say: Callable[[str], None]
) -> Running:
    if not path.is_dir():
        config = load_config(path, overrides)
        assert config.run.name is not None
        return open_folder(config, out or HOME / config.run.name, say=say)
    if overrides or out is not None:
        raise DtlError.of(
            str(path),
            "is a comparison, whose grid stands",
            "name its config again to give it more seeds or time",
        )
    return Running.at(path, say=say)
