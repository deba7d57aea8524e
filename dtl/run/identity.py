"""The identity of a run: the same for two runs that give the same result."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from dtl.config.diff import result_values
from dtl.config.schema import RunConfig


def hash_identity(config: RunConfig, data: dict[str, Any]) -> str:
    """Return a hash of what determines the result: a config, and what is known of its data."""
    text = json.dumps([result_values(config), data], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
