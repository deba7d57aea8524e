"""Lists and objects that a text carries, as tables and CSV files write nested values."""

from __future__ import annotations

import ast
import json
from typing import Any


def parse_text(value: Any) -> Any:
    """Return the list or object that a text holds as JSON or as a Python literal; other values as
    they are."""
    if not isinstance(value, str) or value.strip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    try:  # as pandas writes a list into a CSV file
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value
