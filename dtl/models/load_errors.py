"""Turn errors of the hub and of file readers into one message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dtl.config.schema import Model
from dtl.core.errors import DtlError, shorten_message
from dtl.models.locate import locate_model
from dtl.models.trust import LOCATION


def _first_line(fault: BaseException) -> str:
    lines = [line for line in str(fault).splitlines() if line.strip()]
    return lines[0].strip() if lines else type(fault).__name__


class translate_load_errors:
    """Context in which errors of the hub and of file readers become a DtlError.

    `part`: what is being read, such as "tokenizer".
    """

    def __init__(self, model: Model, part: str) -> None:
        self.model, self.part = model, part

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: Any
    ) -> None:
        from safetensors import SafetensorError

        if isinstance(fault, ImportError):
            raise DtlError.of(
                LOCATION,
                f"the {self.part} of {self.model.path} needs a library that is not installed "
                f"({_first_line(fault)})",
                "install it, or take another model",
            ) from fault
        if not isinstance(fault, (OSError, ValueError, SafetensorError, json.JSONDecodeError)):
            return
        reason = shorten_message(fault)
        fix = (
            "check the name and the network, or fetch it once with `hf download`"
            if not Path(locate_model(self.model)).exists()
            else "check the files in the folder"
        )
        raise DtlError.of(
            LOCATION, f"cannot read the {self.part} of {self.model.path} ({reason})", fix
        ) from fault
