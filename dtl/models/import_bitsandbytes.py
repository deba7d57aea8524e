"""Import bitsandbytes, which PEFT imports, without initializing CUDA in this process."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

# bitsandbytes asks for it, but chooses its library by the version of CUDA alone.
ASSUMED_CAPABILITY = (9, 0)


def import_bitsandbytes() -> None:
    """Import bitsandbytes, if it is installed, before PEFT or transformers import it.

    At import it asks every GPU for its compute capability, which initializes CUDA. The process that
    plans and supervises a run must not do that: during the run it would hold memory of a GPU, and
    its forks could not use CUDA.
    """
    if "bitsandbytes" in sys.modules or find_spec("bitsandbytes") is None:
        return
    with _assume_device_capability():
        importlib.import_module("bitsandbytes")


@contextmanager
def _assume_device_capability() -> Iterator[None]:
    """Answer questions for the compute capability of a GPU without asking the driver."""
    import torch

    if torch.cuda.is_initialized():
        yield
        return
    original = torch.cuda.get_device_capability
    torch.cuda.get_device_capability = lambda device=None: ASSUMED_CAPABILITY
    try:
        yield
    finally:
        torch.cuda.get_device_capability = original
