"""The commands that train on this machine: train, launch, resume."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dtl.cli.arguments import Config, Overrides, Run, located_faults
from dtl.cli.output import print_table

if TYPE_CHECKING:
    from dtl.api import RunResult


def train(config: Config, overrides: Overrides = None) -> None:
    """Check the config, plan, launch on this machine, train, evaluate and export."""
    from dtl import api

    loaded = api.load_config(config, overrides or ())
    with located_faults(config, overrides or ()):
        result = api.train(loaded, can_fork=True)
    _print_next_commands(result)
    raise typer.Exit(result.exit_code)


def launch(
    config: Config,
    overrides: Overrides = None,
    node_rank: Annotated[
        int, typer.Option(min=0, help="which of the machines this is, from 0")
    ] = 0,
    master: Annotated[
        str, typer.Option(metavar="HOST[:PORT]", help="address of the machine with node rank 0")
    ] = "",
) -> None:
    """Start this machine's processes of a run over several machines. Run it on each machine."""
    from dtl import api
    from dtl.launch.torchrun import parse_rendezvous

    loaded = api.load_config(config, overrides or ())
    rendezvous = parse_rendezvous(node_rank, loaded.layout.nodes, master)
    with located_faults(config, overrides or ()):
        result = api.launch(config, overrides or (), rendezvous=rendezvous)
    raise typer.Exit(result.exit_code)


def resume(
    run: Run,
    overrides: Overrides = None,
    allow_change: Annotated[
        str, typer.Option(metavar="KEYS", help="comma-separated keys that may change the result")
    ] = "",
    here: Annotated[
        bool, typer.Option("--here", help="resume a submitted run on this machine")
    ] = False,
    nodes: Annotated[
        int | None, typer.Option(min=1, help="of a submitted run: number of machines")
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="of a submitted run: time limit of the job, as 4h")
    ] = None,
) -> None:
    """Resume an interrupted run from its newest checkpoint, also on another layout.

    A submitted run is put into its queue again."""
    from dtl import api

    allowed = [key for key in allow_change.split(",") if key]
    options: dict[str, Any] = {"allow_change": allowed, "here": here, "nodes": nodes, "time": time}
    result = api.resume(run, overrides or (), can_fork=True, **options)
    _print_next_commands(result)
    raise typer.Exit(result.exit_code)


def _print_next_commands(result: RunResult) -> None:
    """Print what to do with a finished run."""
    run = result.run
    if result.exit_code != 0 or run.state != "finished":
        return
    path, is_adapter = shlex.quote(str(run.path)), (run.export / "adapter_config.json").is_file()
    options = "--merge" if is_adapter else "--dtype bf16"
    commands = [
        (f"dtl predict {path} FILE --out answers.csv", "predictions for rows of your own"),
        (f"dtl report {path}", "curves, scores, worst examples"),
        (f"dtl export {path} {options}", "the model in another form"),
    ]
    print("next:")
    print_table(commands, indent="  ")
