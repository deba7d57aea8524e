"""The section `run`: where the results are written, and whether every run has the same bits."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import AfterValidator, Field, field_validator

from dtl.config.schema.base import (
    ConfigFault,
    Record,
    check_path,
    check_single_line,
    raise_config_faults,
)

MAX_NAME_BYTES = 200  # temporary names next to a run's are longer, and have to fit in 255


class Run(Record):
    """Where the results are written, in the folder <dir>/<name>, and how exactly they repeat."""

    name: str | None = Field(
        default=None, description="name of the run folder; default: the config file's name"
    )
    dir: Annotated[str, AfterValidator(check_single_line), AfterValidator(check_path)] = Field(
        default="runs", min_length=1, description="folder that contains run folders"
    )

    deterministic: bool = Field(
        default=False,
        description="use only algorithms that give the same bits in every run, which some GPU "
        "operations do not without it; slower",
    )

    @field_validator("name")
    @classmethod
    def _check_folder_name(cls, name: str | None) -> str | None:
        check_single_line(name)
        if name is not None and len(os.fsencode(name)) > MAX_NAME_BYTES:
            raise_config_faults(
                [
                    ConfigFault(
                        problem=f"the name has {len(os.fsencode(name))} bytes, and a file system "
                        "does not accept more than 255",
                        fix=f"use at most {MAX_NAME_BYTES}",
                    )
                ]
            )
        if name is not None and (
            not name.strip() or name in (".", "..") or set(name) & set("/\\\0")
        ):
            raise_config_faults(
                [
                    ConfigFault(
                        problem=f"'{name}' is not a plain folder name",
                        fix="use a name without slashes, and set run.dir to choose the folder",
                    )
                ]
            )
        return name
