"""The commands for submitted runs: submit, status, logs, cancel."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from dtl.cli.arguments import Config, Overrides, Run, located_faults
from dtl.cli.output import print_table


def submit(
    config: Config,
    cluster: Annotated[str, typer.Option(metavar="SITE", help="a site's name, or its YAML file")],
    overrides: Overrides = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="number of machines")] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option(min=0, help="GPUs and processes per machine; 0: CPUs only")
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="time limit of one job, as 4:00:00 or 4h")
    ] = None,
    chain: Annotated[
        int, typer.Option(min=1, help="number of jobs, one after the other, until the run is done")
    ] = 1,
    after: Annotated[
        str | None, typer.Option(metavar="JOB", help="id of a job that must succeed first")
    ] = None,
    account: Annotated[str | None, typer.Option(help="project that pays")] = None,
    partition: Annotated[str | None, typer.Option(help="queue")] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE,VALUE", help="one run per value; may be repeated"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only print the job script")] = False,
) -> None:
    """Check, plan, and put the run into the queue of a cluster."""
    from dtl import api

    options: dict[str, Any] = {
        "nodes": nodes,
        "gpus_per_node": gpus_per_node,
        "time": time,
        "chain": chain,
        "after": after,
        "account": account,
        "partition": partition,
        "grid": tuple(grid or ()),
    }
    print_line = partial(print, end="") if dry_run else print
    with located_faults(config, overrides or ()):
        api.submit(
            config,
            overrides or (),
            cluster=cluster,
            print_line=print_line,
            dry_run=dry_run,
            **options,
        )


def status(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="a run or a grid; default: all runs")
    ] = None,
    folder: Annotated[Path, typer.Option("--dir", help="folder that contains the runs")] = Path(
        "runs"
    ),
) -> None:
    """Show the state of runs: queue, step, loss, remaining time."""
    from dtl.cluster.status import HEADINGS, query_runs

    print_table([HEADINGS, *(each.row() for each in query_runs(run or folder))])


def logs(
    run: Run,
    rank: Annotated[
        int | None, typer.Option(min=0, help="print the full log of this process")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="print new lines until the run ends")
    ] = False,
) -> None:
    """Print the log of a run."""
    from dtl.cluster.run_log import iter_log_lines

    for line in iter_log_lines(run, rank=rank, follow=follow):
        print(line, end="", flush=True)


def cancel(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a run, or a grid of runs")],
) -> None:
    """Request a run to save and stop, wherever it runs."""
    from dtl import api

    api.cancel(run)
