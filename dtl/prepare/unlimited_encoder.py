"""Encode rows without length limits, to measure what the limits truncate."""

from __future__ import annotations

import copy
from typing import Any

from dtl.tasks.base import DatasetStats, Encoder, Task

UNLIMITED_OPTION = 100_000  # tokens; the task's limit for encoding a row without truncation
UNLIMITED_MODEL = 2**31  # tokens; more than any model reads


def raise_limits(task: Task) -> Task:
    """Return the task with limits that no row reaches."""
    raised = {
        name: max(UNLIMITED_OPTION, getattr(task.options, name)) for name in task.truncation_options
    }
    return type(task)(task.options.model_copy(update=raised))


def raise_model_limits(processor: Any, model_config: Any) -> tuple[Any, Any]:
    """Return copies of a processor and a model's config that limit no text."""
    processor, model_config = copy.deepcopy(processor), copy.copy(model_config)
    model_config.max_position_embeddings = UNLIMITED_MODEL
    if hasattr(processor, "model_max_length"):
        processor.model_max_length = UNLIMITED_MODEL
    return processor, model_config


def unlimited_prompt_encoder(
    task: Task, processor: Any, dataset_stats: DatasetStats, model_config: Any
) -> Encoder | None:
    """Return the encoder of rows to predict for, without limits; None if the task has none."""
    if not task.truncation_options:
        return None
    processor, model_config = raise_model_limits(processor, model_config)
    return raise_limits(task).prompt_encoder(processor, dataset_stats, model_config)
