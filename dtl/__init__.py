"""Distributed transfer learning: adapt a pretrained model to a new task, on one machine or many."""

import os
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dtl.api import (
        cancel,
        check,
        evaluate,
        export,
        load_config,
        load_run,
        plan,
        predict,
        push,
        status,
        submit,
        train,
    )

# Else pydantic looks through every installed package for plugins of its own, at each command.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "cancel",
    "check",
    "evaluate",
    "export",
    "load_config",
    "load_run",
    "plan",
    "predict",
    "push",
    "status",
    "submit",
    "train",
]

_FUNCTIONS = tuple(name for name in __all__ if name != "__version__")


def __getattr__(name: str) -> Any:
    """Import the public functions when first asked for, so that `import dtl` stays quick."""
    if name not in _FUNCTIONS:
        raise AttributeError(f"module 'dtl' has no attribute {name!r}")
    return getattr(import_module("dtl.api"), name)


class _Package(ModuleType):
    """Keeps dtl.plan and dtl.train the functions, although packages carry the same names.

    The import system binds every imported submodule in its parent; `from dtl.plan.planner import
    ...` does not need that binding.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _FUNCTIONS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
