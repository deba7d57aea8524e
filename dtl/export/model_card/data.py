"""The data of a model card."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dtl.config.schema import RunConfig
from dtl.evaluation.run_results import RunResults, collect_results
from dtl.export.logit_difference import LogitDifference
from dtl.plan.records import Plan
from dtl.run.folder import RunFolder
from dtl.tasks.base import DatasetStats, Task


@dataclass(frozen=True)
class ExportSummary:
    """What an export contains, in words, and how it compares with the trained model.

    `difference`: None where it was not compared.
    """

    description: str
    difference: LogitDifference | None


@dataclass(frozen=True)
class ExportedRun:
    """A run whose weights are exported.

    `step`: step of the exported weights. `scores`: by model. `weights`:
    adapted, or the name of an average. `embedding_rows`: with added tokens; None: the base's.
    """

    folder: RunFolder
    task: Task
    dataset_stats: DatasetStats
    step: int
    scores: dict[str, dict[str, float]]
    weights: str = "adapted"
    embedding_rows: int | None = None


@dataclass(frozen=True)
class ModelCardData:
    """What a model card is rendered from.

    `kind`: adapter, model, onnx or gguf. `auto_class`: of transformers. `scores`: by model.
    `versions`: of packages. `base_kwargs`: arguments of from_pretrained that give the base the
    trained head. `quantization`: arguments of BitsAndBytesConfig; empty where the base is not
    quantized. `step`: of the weights; None: the last. `metric_name`: of the metric that
    `results.intervals` are of. `embedding_rows`: with added tokens; None: those of the base.
    `has_generation_config`: beside an adapter.
    """

    config: RunConfig
    plan: Plan
    kind: str
    auto_class: str
    labels: list[str] | None
    scores: dict[str, dict[str, float]]
    versions: dict[str, Any]
    processor_kind: str = "tokenizer"
    base_kwargs: dict[str, Any] = field(default_factory=dict)
    quantization: dict[str, Any] = field(default_factory=dict)
    step: int | None = None
    results: RunResults = field(default_factory=RunResults)
    metric_name: str = ""
    summary: ExportSummary | None = None
    embedding_rows: int | None = None
    has_generation_config: bool = False


def collect_card_data(
    exported: ExportedRun,
    *,
    kind: str,
    quantization: dict[str, Any],
    summary: ExportSummary | None,
) -> ModelCardData:
    """Return the data of the model card of an exported run, from its folder."""
    folder, task, dataset_stats = exported.folder, exported.task, exported.dataset_stats
    return ModelCardData(
        config=folder.config,
        plan=folder.plan,
        kind=kind,
        auto_class=task.auto_class,
        labels=dataset_stats.get("labels"),
        scores=exported.scores,
        versions=folder.versions,
        processor_kind=task.processor_kind,
        base_kwargs=dataset_stats.get("loading") or {},
        quantization=quantization,
        step=exported.step,
        results=collect_results(
            folder, task, dataset_stats, step=exported.step, weights=exported.weights
        ),
        metric_name=task.metric.name,
        summary=summary,
        embedding_rows=exported.embedding_rows,
        has_generation_config=kind == "adapter" and task.auto_class == "AutoModelForCausalLM",
    )
