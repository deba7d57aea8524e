"""The command `compare`."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dtl.cli.arguments import Overrides, located_faults

if TYPE_CHECKING:
    from dtl.compare.start import StartOptions


def compare(
    path: Annotated[
        Path, typer.Argument(metavar="CONFIG|FOLDER", help="a config, or a comparison to continue")
    ],
    overrides: Overrides = None,
    strategies: Annotated[
        str | None, typer.Option(help="with commas, as scratch,frozen,lora,partial,full,lp-ft")
    ] = None,
    train_sizes: Annotated[
        str | None,
        typer.Option(help="labeled rows per class, or rows; with commas, as 5,20,100,all"),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="runs per strategy and size")] = None,
    time_budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="total time limit, as 45min or 2h")
    ] = None,
    ood_data: Annotated[
        str | None, typer.Option(metavar="DATA", help="out-of-distribution rows to score on")
    ] = None,
    source_data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="rows that the base was trained for: forgetting"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder to write to; default: comparisons/NAME")
    ] = None,
    cell: Annotated[int | None, typer.Option(min=1, help="run only this number of --list")] = None,
    only_list: Annotated[bool, typer.Option("--list", help="list the runs and run none")] = False,
    cluster: Annotated[
        str | None, typer.Option(metavar="SITE", help="submit all runs to a Slurm cluster")
    ] = None,
    time: Annotated[str | None, typer.Option(help="time limit per job, as 45min")] = None,
    account: Annotated[str | None, typer.Option(help="Slurm account")] = None,
    partition: Annotated[str | None, typer.Option(help="Slurm partition")] = None,
    job: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Compare transfer strategies with each other and with training from scratch."""
    keys = {
        "strategies": strategies and f"[{strategies}]",
        "train_sizes": train_sizes and f"[{train_sizes}]",
        "seeds": seeds,
        "time_budget": time_budget,
        "ood_data": ood_data,
        "source_data": source_data,
    }
    flags = [f"compare.{key}={value}" for key, value in keys.items() if value is not None]
    changes = [*(overrides or ()), *flags]
    if not (changes or only_list or cell or job) and _show_finished(path):
        return
    from dtl.compare.slurm_arrays import QueueOptions
    from dtl.compare.start import StartOptions

    queue = None if cluster is None else QueueOptions(cluster, time, account, partition)
    _start(path, changes, StartOptions(out, cell, only_list, queue, job))


def _show_finished(path: Path) -> bool:
    """Print a comparison that is finished already; return whether it is."""
    from dtl.compare import terminal

    comparison = terminal.load_if_finished(path)
    if comparison is not None:
        print("\n".join(terminal.format_comparison(comparison)))
    return comparison is not None


def _start(path: Path, changes: list[str], options: StartOptions) -> None:
    """Run, list or submit a comparison; print it if it is finished."""
    from dtl.compare import terminal
    from dtl.compare.start import start

    with located_faults(path, changes) if path.is_file() else nullcontext():
        comparison = start(path, changes, options)
    if comparison is not None:
        print("\n".join(terminal.format_comparison(comparison)))
