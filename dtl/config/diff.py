"""The keys of two configs that differ and change what a run learns."""

from __future__ import annotations

from typing import Any

from dtl.config.schema import RunConfig

# Keys that begin with one of these do not change the result: folders, layout, how often and where
# a run saves, evaluates and reports.
IGNORED_PREFIXES = (
    "run.",
    "compare.",
    "layout.",
    "model.staging_dir",
    "task.group_by",
    "tracking",
    "data.on_bad_row",
    "data.max_bad_fraction",
    "train.keep_last",
    "train.keep_best",
    "train.export",
    "train.save_every",
    "train.evaluate_every",
    "train.evaluation_batch",
    "train.packing",
    "train.max_skipped_steps",
    "train.on_missing_gradient",
    "train.wall_time",
    "train.hang_seconds",
    "train.loading_hang_seconds",
)


def changed_keys(before: RunConfig, after: RunConfig) -> list[str]:
    """Return the keys that differ and change the result, sorted."""
    old, new = result_values(before), result_values(after)
    return sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))


def result_values(config: RunConfig) -> dict[str, Any]:
    """Return the keys that determine what a run learns, with their values."""
    values = flatten(config.model_dump(mode="json"))
    return {key: value for key, value in values.items() if not key.startswith(IGNORED_PREFIXES)}


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings by their keys, joined with dots."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        name: leaf
        for key, part in value.items()
        for name, leaf in flatten(part, f"{prefix}.{key}" if prefix else key).items()
    }
