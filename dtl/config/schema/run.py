"""The section `run`: where the results are written."""

from __future__ import annotations

from pydantic import Field, field_validator

from dtl.config.schema.base import ConfigFault, Record, raise_config_faults


class Run(Record):
    """Where the results are written: the run folder is <dir>/<name>."""

    name: str | None = Field(
        default=None, description="name of the run folder; default: the config file's name"
    )
    dir: str = Field(default="runs", min_length=1, description="folder that contains run folders")

    @field_validator("name")
    @classmethod
    def _check_folder_name(cls, name: str | None) -> str | None:
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
