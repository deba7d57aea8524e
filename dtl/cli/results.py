"""The commands that read run folders: audit, report, diff, track."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from dtl.cli.arguments import AsJson, Run
from dtl.cli.output import print_json


def audit(
    run: Run,
    other: Annotated[
        Path | None, typer.Argument(metavar="[OTHER]", help="a run to compare it with")
    ] = None,
) -> None:
    """Prove from the log that each example was read exactly once an epoch, in the planned order."""
    from dtl.api import load_run
    from dtl.inspect.audit import audit_run, find_data_difference

    runs = [load_run(path) for path in (run, other) if path is not None]
    audits = [audit_run(folder) for folder in runs]
    for folder, result in zip(runs, audits, strict=True):
        print(result.format_line(str(folder.path)))
    difference = find_data_difference(*runs) if len(runs) == 2 else None
    if len(runs) == 2:
        print(difference or "both read the same examples in the same order")
    raise typer.Exit(1 if difference or any(result.fault for result in audits) else 0)


def report(
    path: Annotated[
        Path, typer.Argument(metavar="RUN|COMPARISON", help="its folder, finished or not")
    ],
    png: Annotated[
        bool | None,
        typer.Option(
            "--png/--no-png", help="PNG charts too; default: on if matplotlib is installed"
        ),
    ] = None,
) -> None:
    """Write report.html of a run (scores, curves, worst examples) or of a comparison."""
    from dtl.report.write import write_report

    written = write_report(path, png=png)
    print(f"{written.page}\ncharts: {written.charts_folder}")
    if png is None and not written.has_png:
        print("no PNG: matplotlib is not installed; pip install 'dtl[report]'")


def diff(
    first: Annotated[Path, typer.Argument(metavar="RUN_A", help="a run folder")],
    second: Annotated[Path, typer.Argument(metavar="RUN_B", help="another one")],
    as_json: AsJson = False,
) -> None:
    """Show the differences between two runs; the exit code is 0 if there are none, else 1."""
    from dtl.api import load_run
    from dtl.inspect.diff import diff_runs, diff_to_dict, format_diff_table

    differences = diff_runs(load_run(first), load_run(second))
    if as_json:
        print_json(diff_to_dict(differences))
    elif differences:
        print("\n".join(format_diff_table(differences, (str(first), str(second)))))
    else:
        print("nothing differs")
    raise typer.Exit(1 if differences else 0)


def track(
    run: Run,
    to: Annotated[
        Literal["tensorboard", "wandb", "mlflow", "trackio"] | None,
        typer.Option(help="tracker; default: those of the run's config, or tensorboard"),
    ] = None,
) -> None:
    """Send the metrics.jsonl of a run to a tracker, as a new run there."""
    from dtl.api import load_run
    from dtl.jobs.track import send_to_trackers

    folder = load_run(run)
    names = [to] if to is not None else folder.config.tracking or ["tensorboard"]
    for name in send_to_trackers(folder, names):
        print(f"sent to {name}")
