"""Encoding without length limits, to measure what the limits truncate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dtl.data.example import EncodedExample, Skip
from dtl.data.modalities.text import count_positions
from dtl.data.sources.rows import Row
from dtl.prepare.prepared_data import PreparedData
from dtl.prepare.unlimited_encoder import UNLIMITED_MODEL, raise_limits, raise_model_limits
from dtl.tasks.base import Task


def create_unlimited_encoder(
    task: Task, prepared: PreparedData, *, ignore_model_limits: bool
) -> Callable[[Row], EncodedExample | Skip] | None:
    """Return the task's encoder with raised limits; None if the task has no limits.

    `ignore_model_limits`: also raise the limits of the model and its tokenizer.
    """
    if not task.truncation_options:
        return None
    processor, model_config = prepared.processor, prepared.model_config
    if ignore_model_limits:
        processor, model_config = raise_model_limits(processor, model_config)
    return raise_limits(task).encoder(processor, prepared.dataset_stats, model_config)


def find_model_limits(
    longest: dict[str, tuple[int, Row]], task: Task, prepared: PreparedData
) -> dict[str, int]:
    """Return, for each limit option, the tokens that the model can read (UNLIMITED_MODEL: all).

    `longest`: option -> the length of the longest row in tokens, and that row.
    """
    encoder = create_unlimited_encoder(task, prepared, ignore_model_limits=False)
    limits = {}
    for option, (length, row) in longest.items():
        assert encoder is not None, "a task without limits has no lengths"
        example = encoder(row)
        readable = (
            measure_lengths(example.values, task)[option]
            if isinstance(example, EncodedExample)
            else get_max_positions(prepared)
        )
        limits[option] = readable if readable < length else UNLIMITED_MODEL
    return limits


def measure_lengths(values: dict[str, Any] | None, task: Task) -> dict[str, int]:
    """Return the length of an example in tokens for each limit option."""
    if values is None:
        return {}
    return {
        option: max(len(values[name]) for name in names)
        for option, names in task.truncation_options.items()
    }


def get_max_positions(prepared: PreparedData) -> int:
    """Return the model's number of positions, in tokens."""
    return count_positions(prepared.model_config) or UNLIMITED_MODEL


def get_tokenizer_limit(prepared: PreparedData) -> int:
    """Return the tokenizer's model_max_length, in tokens."""
    limit = getattr(prepared.processor, "model_max_length", UNLIMITED_MODEL)
    return int(min(UNLIMITED_MODEL, limit))
