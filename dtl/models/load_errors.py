"""Turn errors of the hub and of file readers into one message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dtl.config.schema import Model
from dtl.core.errors import DtlError, shorten_message
from dtl.core.resource_errors import is_out_of_memory
from dtl.models.locate import locate_model
from dtl.models.trust import LOCATION


def _first_line(fault: BaseException) -> str:
    lines = [line for line in str(fault).splitlines() if line.strip()]
    return lines[0].strip() if lines else type(fault).__name__


# What libraries raise on files that are not what they should be.
MALFORMED = (OSError, ValueError, TypeError, LookupError, AttributeError)


def _describe(fault: BaseException) -> str:
    """Return an error as text; one of Python's says what it is about only with its name."""
    is_bare = isinstance(fault, LookupError | AttributeError | TypeError)
    return shorten_message(f"{type(fault).__name__}: {fault}" if is_bare else fault)


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
        from huggingface_hub.errors import StrictDataclassError
        from safetensors import SafetensorError

        if isinstance(fault, ImportError):
            raise DtlError.of(
                LOCATION,
                f"the {self.part} of {self.model.path} needs a library that is not installed "
                f"({_first_line(fault)})",
                "install it, or take another model",
            ) from fault
        if isinstance(fault, RuntimeError) and "ignore_mismatched_sizes" in str(fault):
            raise DtlError.of(
                LOCATION,
                f"the weight files of {self.model.path} have tensors of other sizes than its "
                "config.json says",
                "take config.json and weights from the same model",
            ) from fault
        kinds = (*MALFORMED, SafetensorError, StrictDataclassError)
        if not isinstance(fault, kinds) or is_out_of_memory(fault):
            return
        reason = _describe(fault)
        fix = (
            "check the name and the network, or fetch it once with `hf download`"
            if not Path(locate_model(self.model)).exists()
            else "check the files in the folder"
        )
        raise DtlError.of(
            LOCATION, f"cannot read the {self.part} of {self.model.path} ({reason})", fix
        ) from fault
