"""Expand a grid of overrides into one config per combination."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from dtl.config.load import load_config
from dtl.config.schema import RunConfig
from dtl.core.errors import DtlError
from dtl.run.folder import RunFolder


def load_configs(path: Path, overrides: Sequence[str], grid: Sequence[str]) -> list[RunConfig]:
    """Return the config, or, with a grid, one for each combination of its values.

    The runs of a grid are in a folder with the name of the run, each named after its values.
    `grid`: axes such as `train.seed=0,1,2`. Raises DtlError.
    """
    config = load_config(path, overrides)
    if not grid:
        return [config]
    in_folder = config.run.model_copy(update={"dir": str(RunFolder.from_config(config).path)})
    configs = []
    for values in product(*map(parse_axis, grid)):
        name = ",".join(re.sub(r"[/\\\0]", "-", value) for value in values)
        loaded = load_config(path, [*overrides, *values])
        run = in_folder.model_copy(update={"name": name})
        configs.append(loaded.model_copy(update={"run": run}))
    return configs


def parse_axis(axis: str) -> list[str]:
    """Return one override per value: strategy.rank=4,16 -> strategy.rank=4 and strategy.rank=16.

    Commas in brackets do not separate values. Raises DtlError.
    """
    key, equals, listed = axis.partition("=")
    values = [value.strip() for value in re.split(r",(?![^\[{]*[\]}])", listed)]
    if not equals or not key or not all(values):
        raise DtlError.of(
            f"--grid {axis}", "no values are listed", "write key=VALUE,VALUE, as train.seed=0,1,2"
        )
    if len(set(values)) < len(values):
        raise DtlError.of(f"--grid {axis}", "a value is listed twice", "list each value once")
    return [f"{key}={value}" for value in values]
