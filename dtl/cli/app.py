"""The `dtl` command: its subcommands, exit codes and messages.

Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import inspect
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated

import typer

from dtl import __version__
from dtl.cli.catalog import list_plugins, recipes_app, schema
from dtl.cli.checks import check, doctor, plan
from dtl.cli.compare import compare
from dtl.cli.models import evaluate, export, predict, push
from dtl.cli.queue import cancel, logs, status, submit
from dtl.cli.results import audit, diff, report, track
from dtl.cli.training import launch, resume, train
from dtl.core.errors import DtlError, Fault
from dtl.core.resource_errors import describe_file_error, is_out_of_memory, is_path_error
from dtl.core.signals import STOPPED, ignore_signals

app = typer.Typer(
    help="Adapt a pretrained model to a new task, on one machine or many.",
    epilog="Start with: dtl recipes list, dtl recipes copy quickstart/text, dtl train text.yaml",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(recipes_app, name="recipes")


def _add_command(command: Callable[..., None], name: str | None = None) -> None:
    """Add a command. The first paragraph of its docstring is in the list of commands, uncut."""
    paragraph = inspect.cleandoc(command.__doc__ or "").partition("\n\n")[0]
    app.command(name, short_help=" ".join(paragraph.split()))(command)


for command in (
    *(train, launch, resume),
    *(submit, status, logs, cancel),
    *(evaluate, compare, predict, export, push),
    *(audit, report, diff, track),
    *(plan, check),
):
    _add_command(command)
_add_command(list_plugins, "list")
_add_command(schema)
_add_command(doctor)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Show the version and stop.")] = False,
) -> None:
    if version:
        print(f"dtl {__version__}")
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0 done, 1 the run failed, 2 a fault of the user, 75 stopped early, 130 interrupted.
    """
    _silence_libraries()
    code = _run(arguments)
    if code == STOPPED:
        ignore_signals()
    return code


def _silence_libraries() -> None:
    """Silence warnings that no user can act on.

    PEFT uses deprecated names of transformers. bitsandbytes, which PEFT imports, warns of kernels
    that only 4-bit weights on a CPU would need.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")


def _run(arguments: Sequence[str] | None) -> int:
    try:
        app(args=arguments, prog_name="dtl")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except DtlError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        fault = _describe_error_of_machine(error)
        if fault is None:
            raise
        print(fault, file=sys.stderr)
        return DtlError.exit_code if is_path_error(error) else 1
    return 0


def _describe_error_of_machine(error: Exception) -> Fault | None:
    """Return the message for a full or read-only disk, and for full memory; None for a bug. What
    was being written is complete or absent, so that the same command can be started again."""
    if is_out_of_memory(error):
        return Fault("dtl", "out of memory", "end other processes, or use a machine with more")
    fault = describe_file_error(error)
    if fault is None or is_path_error(error):
        return fault
    return replace(fault, fix=f"{fault.fix}; then start it again")
