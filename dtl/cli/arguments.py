"""Arguments that several commands have, and the location of faults in a config."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from dtl.core.errors import DtlError

Config = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="the YAML file that describes the run")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="changes to the config, as train.steps=100"),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="the run folder, as runs/text")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


@contextmanager
def located_faults(config: Path, overrides: Sequence[str]) -> Iterator[None]:
    """Add to faults that name a config key where it is: file and line, or command line."""
    from dtl.config.load import add_locations

    try:
        yield
    except DtlError as error:
        raise add_locations(error, config, overrides) from None
