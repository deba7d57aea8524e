"""The command: run the requested trials, print the table, and fail where a trial failed."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import benchmarks.chaos
from benchmarks.chaos import kinds, table
from benchmarks.chaos.setup import Setup
from benchmarks.chaos.trials import Store, run_kind, run_one


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    start = time.monotonic()
    with _folder(options.folder) as folder:
        setup = Setup(folder, options.seed, options.most_kills)
        setup.create()
        if options.repeat:
            return _repeat(setup, options)
        store = Store(folder / "trials.jsonl", options.seed)
        results = [
            (kind, run_kind(kind, setup, store, jobs=options.jobs))
            for kind in kinds.select_kinds(setup, options)
        ]
    minutes = (time.monotonic() - start) / 60
    page = "\n".join(table.report(results, seed=options.seed, minutes=minutes)) + "\n"
    print(page)
    if options.out:
        options.out.write_text(page, encoding="utf-8")
    return 0 if table.all_passed(results) else 1


def _repeat(setup: Setup, options: argparse.Namespace) -> int:
    """Run one trial again, by `kind:number`."""
    options.only, _, number = options.repeat.partition(":")
    (kind,) = kinds.select_kinds(setup, options)
    result = run_one(kind, setup, int(number))
    print("\n".join(f"{key}: {value}" for key, value in result.measurements.items()))
    return 1 if result.violations else 0


@contextlib.contextmanager
def _folder(path: Path | None) -> Iterator[Path]:
    """Yield the folder of the trials; a temporary one is removed at the end."""
    if path is not None:
        yield path.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="dtl-chaos-") as temporary:
        yield Path(temporary)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos",
        description=benchmarks.chaos.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=200, help="kills to inject")
    parser.add_argument("--most-kills", type=int, default=7, help="of one run")
    parser.add_argument("--signals", type=int, default=50, help="signals to inject")
    parser.add_argument("--corruptions", type=int, default=100, help="damaged checkpoints")
    parser.add_argument("--verb-kills", type=int, default=120, help="kills of all commands")
    parser.add_argument("--damages", type=int, default=400, help="damaged files, of all there are")
    parser.add_argument("--limits", type=int, default=60, help="limits, clocks and races")
    parser.add_argument("--peer-kills", type=int, default=60, help="kills of plain Trainer runs")
    parser.add_argument(
        "--peer-corruptions", type=int, default=40, help="damaged checkpoints of plain Trainer runs"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all random choices")
    parser.add_argument("--only", help="kinds, comma-separated")
    parser.add_argument("--repeat", metavar="KIND:NUMBER", help="run one trial again")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument(
        "--folder", type=Path, help="keep trials in this folder, and continue with those in it"
    )
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
