"""The commands that check before a run: plan, check, doctor."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from dtl.cli.arguments import AsJson, Config, Overrides, located_faults
from dtl.cli.output import print_json
from dtl.core.errors import DtlError
from dtl.core.tables import terminal_width


def plan(config: Config, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Show what `dtl train` would launch, and why."""
    from dtl import api

    loaded = api.load_config(config, overrides or ())
    with located_faults(config, overrides or ()):
        planned = api.plan(loaded)
    if as_json:
        print_json(planned.to_dict())
    else:
        print("\n".join(planned.format_lines(width=terminal_width(sys.stdout))))


def check(config: Config, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Check the data: what would waste a run, in which rows, and how to fix it."""
    from dtl import api

    loaded = api.load_config(config, overrides or ())
    with located_faults(config, overrides or ()):
        report = api.check(loaded)
    if as_json:
        print_json(report.to_dict())
    else:
        print("\n".join(report.format_lines(color=sys.stdout.isatty())))
    raise typer.Exit(report.exit_code)


def doctor(
    cluster: Annotated[
        bool, typer.Option("--cluster", help="draft a site file for this Slurm cluster instead")
    ] = False,
    partition: Annotated[
        str | None, typer.Option(help="with --cluster; default: the default partition")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="with --cluster: file to write; default: the terminal")
    ] = None,
) -> None:
    """Show installed versions and devices, what is missing, and how to install it."""
    if cluster:
        _draft_site(partition, out)
        return
    for option, value in {"--partition": partition, "--out": out}.items():
        if value is not None:
            raise DtlError.of(option, "this option needs --cluster", "add --cluster")
    from dtl.inspect.doctor import examine

    findings = list(examine())
    for finding in findings:
        print(finding)
    missing = sum(finding.state == "missing" for finding in findings)
    print(f"\n{missing} missing" if missing else "\nnothing is missing")
    raise typer.Exit(1 if missing else 0)


def _draft_site(partition: str | None, out: Path | None) -> None:
    """Print a draft of a site file, or write it; an existing file is not replaced."""
    from dtl.cluster.site_draft import draft_site_file

    text = draft_site_file(partition=partition)
    if out is None:
        print(text, end="")
        return
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise DtlError.of("--out", f"{out} exists already", "use another file") from None
    except OSError as error:
        problem = f"{out} cannot be written ({error.strerror})"
        raise DtlError.of("--out", problem, "use another folder") from None
    print(f"written to {out}; check it before you use it")
