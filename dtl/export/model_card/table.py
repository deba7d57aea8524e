"""The table of a model card: base, data, strategy, steps, hardware and verification."""

from __future__ import annotations

import json

from dtl.config.schema import Model, Source
from dtl.core.units import format_count, format_seconds
from dtl.evaluation.run_results import RunResults
from dtl.export.model_card.data import ExportSummary, ModelCardData
from dtl.train.usage import Usage

Row = tuple[str, str]


def table_rows(card: ModelCardData) -> list[Row]:
    """Return the rows of the table: name and value."""
    return [
        *_base_rows(card),
        *_data_rows(card),
        *_training_rows(card),
        *usage_rows(card.results.usage),
        *_verification_rows(card.summary),
    ]


def _base_rows(card: ModelCardData) -> list[Row]:
    model, fingerprint = card.config.model, card.results.base_fingerprint
    return [
        ("base model", f"{model.path} (revision {model.revision or 'not set'})"),
        *(("adapter merged into the base", path) for path in model.adapters),
        *([("base quantized to", _format_quantization(model))] if card.quantization else []),
        *([("base fingerprint", fingerprint)] if fingerprint is not None else []),
    ]


def _data_rows(card: ModelCardData) -> list[Row]:
    evaluated = _format_held_out(card) if card.scores else "nothing"
    return [
        ("task", card.config.task.name),
        ("training data", ", ".join(_training_sources(card))),
        ("evaluated on", evaluated),
    ]


def _training_rows(card: ModelCardData) -> list[Row]:
    config, plan = card.config, card.plan
    rates = ", then ".join(f"{phase.learning_rate:g}" for phase in plan.phases)
    layout = plan.layout
    return [
        ("strategy", json.dumps(config.model_dump(mode="json")["strategy"])),
        ("trainable parameters", format_count(plan.parameters.trainable)),
        ("steps", _format_steps(card)),
        ("global batch", str(config.train.global_batch)),
        ("learning rate", f"{rates}, {config.optim.schedule}"),
        ("layout", f"{layout.world_size} ranks, ZeRO {layout.zero_stage}, {layout.dtype}"),
    ]


def usage_rows(usage: Usage | None) -> list[Row]:
    """Return hardware, wall time and energy; no rows where nothing was recorded."""
    if usage is None:
        return []
    rows = [("hardware", ", ".join(usage.hardware)), ("wall time", format_seconds(usage.seconds))]
    if usage.energy_joules is not None:
        rows.append(("energy", f"{usage.energy_joules / 3.6e6:.3g} kWh (GPUs only)"))
    return rows


def _verification_rows(summary: ExportSummary | None) -> list[Row]:
    if summary is None:
        return []
    difference = "not compared" if summary.difference is None else str(summary.difference)
    return [
        ("export", summary.description),
        ("compared with the trained model", difference),
    ]


def _format_quantization(model: Model) -> str:
    is_double = model.quantize == "nf4" and model.double_quantize
    double = ", double quantization (scales in 8 bits)" if is_double else ""
    return f"{model.quantize} (bitsandbytes){double}; head and adapter are not quantized"


def _training_sources(card: ModelCardData) -> list[str]:
    """Return each training source with its number of rows and digest, where they are recorded."""
    data = card.config.data
    sources = {"data.train": data.train}
    sources |= {f"data.mix[{index}]": source for index, source in enumerate(data.mix)}
    return [
        _format_source(source) + _format_digest(card.results, key)
        for key, source in sources.items()
    ]


def _format_source(source: Source) -> str:
    return source.path if source.weight == 1 else f"{source.path} x {source.weight:g}"


def _format_digest(results: RunResults, key: str) -> str:
    source = results.sources.get(key)
    return "" if source is None else f" ({source['rows']} rows, SHA-256 {source['sha256']})"


def _format_held_out(card: ModelCardData) -> str:
    data, examples = card.config.data, card.results.held_out_examples
    if data.eval:
        return data.eval.path + _format_digest(card.results, "data.eval")
    fraction = f"{data.eval_fraction} of the rows"
    return fraction if examples is None else f"{fraction} ({examples})"


def _format_steps(card: ModelCardData) -> str:
    if card.step in (None, card.plan.steps):
        return str(card.plan.steps)
    return f"{card.step} of {card.plan.steps} planned"
