"""Two configs compared: which keys change what a run learns."""

from __future__ import annotations

from typing import Any

from dtl.config.schema import RunConfig

# Places, layout and rhythm do not change the result.
HARMLESS = (
    "run.",
    "compare.",
    "layout.",
    "model.stage_to",
    "task.group_by",
    "tracking",
    "data.on_bad_row",
    "data.max_bad_fraction",
    "train.keep",
    "train.export",
    "train.save_every",
    "train.evaluate_every",
    "train.evaluation_batch",
    "train.skip_limit",
    "train.no_gradient",
    "train.wall_time",
    "train.hang_seconds",
    "train.loading_hang_seconds",
)


def changes(before: RunConfig, after: RunConfig) -> list[str]:
    """Keys that differ and change the result, sorted."""
    old, new = decisive(before), decisive(after)
    return sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))


def decisive(config: RunConfig) -> dict[str, Any]:
    """The keys that decide what a run learns, and their values."""
    keys = flat(config.model_dump(mode="json"))
    return {key: value for key, value in keys.items() if not key.startswith(HARMLESS)}


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves by their keys, joined with dots."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        name: leaf
        for key, part in value.items()
        for name, leaf in flat(part, f"{prefix}.{key}" if prefix else key).items()
    }
