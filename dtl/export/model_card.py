"""The model card that travels with an export."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtl.config.schema import Model, RunConfig, Source
from dtl.config.schema.batch_size import BatchSize
from dtl.core.units import format_count, format_seconds
from dtl.evaluation.groups import read_group_scores
from dtl.export.evidence import RunEvidence, collect_evidence
from dtl.export.logit_difference import LogitDifference
from dtl.plan.records import Plan
from dtl.run.folder import RunFolder
from dtl.tasks.base import DatasetStats, Task
from dtl.train.usage import Usage

LOADING_CODE = {
    "adapter": """from peft import PeftModel
from transformers import {classes}

base = {head}.from_pretrained({base}{extra})
{below}model = PeftModel.from_pretrained(base, "path/of/this/folder")
""",
    "model": """from transformers import {classes}

model = {head}.from_pretrained("path/of/this/folder")
""",
    "onnx": """import onnxruntime
from transformers import {classes}

model = onnxruntime.InferenceSession("path/of/this/folder/model.onnx")
""",
    "gguf": """from transformers import {classes}

""",
}
QUANTIZED = (
    "The adapter was trained against the quantized weights. A merged model is made of these,",
    "dequantized: merged into the original weights of the base, the adapter is another model.",
)
LIBRARIES = {"adapter": "peft", "model": "transformers", "onnx": "onnx", "gguf": "gguf"}
PROCESSOR_CLASSES = {  # what a task reads by -> the names in the code, and the classes that open the files
    "tokenizer": {"tokenizer": "AutoTokenizer"},
    "feature_extractor": {"feature_extractor": "AutoFeatureExtractor"},
    "image_processor": {"image_processor": "AutoImageProcessor"},
    # Not AutoProcessor: beside an adapter there is no config to tell it the model's kind.
    "processor": {"feature_extractor": "AutoFeatureExtractor", "tokenizer": "AutoTokenizer"},
}


def write_run_card(
    folder: RunFolder,
    task: Task,
    dataset_stats: DatasetStats,
    *,
    kind: str,
    scores: dict[str, dict[str, float]],
    step: int,
    weights: str = "adapted",
    quantized: dict[str, Any] | None = None,
    saved: ExportSummary | None = None,
) -> str:
    """The card of an export of a run, from what the run has stored. `step`: after which the weights
    are those that are exported. `weights`: adapted, or an average. `quantized`: the arguments of
    BitsAndBytesConfig, where the base is quantized. `saved`: how a later export was written."""
    return model_card(
        folder.config,
        folder.plan,
        kind=kind,
        head=task.auto_class,
        labels=dataset_stats.get("labels"),
        scores=scores,
        versions=folder.versions,
        processor_kind=task.processor_kind,
        base_needs=dataset_stats.get("loading"),
        quantized=quantized,
        step=step,
        evidence=collect_evidence(folder, task, dataset_stats, step=step, weights=weights),
        best=task.metric.name,
        saved=saved,
    )


@dataclass(frozen=True)
class ExportSummary:
    """How an export was written, in words, and what it says in a fresh process; `difference` None:
    nobody has asked it."""

    how: str
    difference: LogitDifference | None


def model_card(
    config: RunConfig,
    plan: Plan,
    *,
    kind: str,
    head: str,
    labels: list[str] | None,
    scores: dict[str, dict[str, float]],
    versions: dict[str, Any],
    processor_kind: str = "tokenizer",
    base_needs: dict[str, Any] | None = None,
    quantized: dict[str, Any] | None = None,
    step: int | None = None,
    evidence: RunEvidence | None = None,
    best: str = "",
    saved: ExportSummary | None = None,
) -> str:
    """README.md of an export: base, data, strategy, scores, versions, and how to load it.

    `base_needs`: what from_pretrained is told so that the base has the head that was learnt.
    `quantized`: the arguments of BitsAndBytesConfig, where the base is quantized.
    `step`: of the weights; None: the last. `best`: the score that `evidence` has intervals of.
    """
    known = evidence or RunEvidence()
    front = {
        **({"base_model": config.model.path} if _is_on_the_hub(config.model.path) else {}),
        "library_name": LIBRARIES[kind],
        "tags": ["dtl", config.task.name, *dict.fromkeys(phase.name for phase in config.phases)],
    }
    held_out = (
        config.data.eval.path if config.data.eval else f"{config.data.eval_fraction} of the rows"
    )
    rows = [
        ("base", f"{config.model.path} (revision {config.model.revision or 'as found'})"),
        *(("worked into it", path) for path in config.model.adapters),
        *([("base held in", _quantization_text(config.model))] if quantized else []),
        *_optional_row("fingerprint of the base", known.base_fingerprint),
        ("task", config.task.name),
        ("strategy", json.dumps(config.model_dump(mode="json")["strategy"])),
        ("learning parameters", format_count(plan.parameters.trainable)),
        ("trained on", ", ".join(_training_sources(config, known))),
        ("scored on", _held_out_source(config, held_out, known) if scores else "nothing"),
        ("steps", _steps_text(plan, step, config.train.global_batch)),
        (
            "learning rate",
            f"{', then '.join(f'{phase.learning_rate:g}' for phase in plan.phases)}, "
            f"{config.optim.schedule}",
        ),
        (
            "layout",
            f"{plan.layout.world_size} ranks, ZeRO {plan.layout.zero_stage}, {plan.layout.dtype}",
        ),
        *_usage_rows(known.usage),
        *_verification_rows(saved),
    ]
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---", ""]
    lines += [f"# {config.run.name}", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in rows]
    lines += ["", "## Held-out scores", "", *_score_table(scores)]
    lines += _interval_lines(known, best) if scores else []
    if config.task.group_by is not None and scores:
        lines += ["", f"## Held-out scores by {config.task.group_by}", ""]
        lines += _group_table(list(scores.values())[-1], config.task.group_by, best)
    lines += ["", "## How to load it", ""]
    if kind == "gguf":
        lines += [
            "With llama.cpp or what is built on it, as `llama-cli -m FILE.gguf`; its input:",
            "",
        ]
    needs = {**_label_arguments(labels), **(base_needs or {})}
    if quantized:
        needs |= {"dtype": plan.layout.dtype.replace("bf", "bfloat").replace("fp", "float")}
    readers = PROCESSOR_CLASSES[processor_kind]
    code = _loading_code(kind, head, config.model, needs, readers, quantized or {})
    lines += ["```python", code, "```"]
    lines += ["", *QUANTIZED] if quantized else []
    lines += [
        "",
        "## Versions",
        "",
        *(f"- {name} {number}" for name, number in versions.items() if number),
    ]
    return "\n".join(lines) + "\n"


def _is_on_the_hub(path: str) -> bool:
    """The hub refuses a card whose base is none of its own."""
    return not path.startswith("mini:") and not Path(path).expanduser().is_dir()


def _optional_row(name: str, value: str | None) -> list[tuple[str, str]]:
    return [] if value is None else [(name, value)]


def _training_sources(config: RunConfig, known: RunEvidence) -> list[str]:
    """What was learnt from: each with its rows and digest, where they are known."""
    named = {"data.train": config.data.train}
    named |= {f"data.mix[{number}]": source for number, source in enumerate(config.data.mix)}
    return [_source_name(source) + _source_digest(known, place) for place, source in named.items()]


def _held_out_source(config: RunConfig, held_out: str, known: RunEvidence) -> str:
    if config.data.eval:
        return held_out + _source_digest(known, "data.eval")
    return held_out if known.held_out_examples is None else f"{held_out} ({known.scored})"


def _source_digest(known: RunEvidence, place: str) -> str:
    source = known.sources.get(place)
    return "" if source is None else f" ({source['rows']} rows, SHA-256 {source['sha256']})"


def _steps_text(plan: Plan, step: int | None, global_batch: BatchSize) -> str:
    of = "" if step in (None, plan.steps) else f"{step} of the planned "
    return f"{of}{plan.steps} of {global_batch}"


def _usage_rows(usage: Usage | None) -> list[tuple[str, str]]:
    if usage is None:
        return []
    energy = (
        None
        if usage.energy_joules is None
        else f"{usage.energy_joules / 3.6e6:.3g} kWh (the GPUs alone)"
    )
    rows = [("hardware", ", ".join(usage.hardware)), ("wall time", format_seconds(usage.seconds))]
    return [*rows, *_optional_row("energy", energy)]


def _verification_rows(saved: ExportSummary | None) -> list[tuple[str, str]]:
    if saved is None:
        return []
    asked = "not compared" if saved.difference is None else str(saved.difference)
    return [("saved", saved.how), ("against the trained model", asked)]


def _interval_lines(known: RunEvidence, best: str) -> list[str]:
    told = [f"{model} {low:.6g} to {high:.6g}" for model, (low, high) in known.intervals.items()]
    return (
        ["", f"95 % interval of {best} (bootstrap over examples): {', '.join(told)}."]
        if told
        else []
    )


def _label_arguments(labels: list[str] | None) -> dict[str, Any]:
    if not labels:
        return {}
    return {"id2label": dict(enumerate(labels)), "ignore_mismatched_sizes": True}


def _quantization_text(model: Model) -> str:
    doubled = ", its scales in 8 bits" if model.quantize == "nf4" and model.double_quantize else ""
    return f"{model.quantize} (bitsandbytes){doubled}; head and adapter are not quantized"


def _source_name(source: Source) -> str:
    return source.path if source.weight == 1 else f"{source.path} x {source.weight:g}"


def _loading_code(
    kind: str,
    head: str,
    model: Model,
    needs: dict[str, Any],
    readers: dict[str, str],
    quantized: dict[str, Any],
) -> str:
    """Code that runs as it stands, but for the path of the export."""
    path, mini = model.path, model.path.removeprefix("mini:")
    below = "".join(
        f"base = PeftModel.from_pretrained(base, {json.dumps(earlier)}).merge_and_unload()\n"
        for earlier in model.adapters
    )
    base = json.dumps(path) if mini == path else f"str(mini.base_folder({json.dumps(mini)}))"
    extra = "".join(f", {key}={value!r}" for key, value in needs.items())
    extra += ", quantization_config=quantized" if quantized else ""
    quantizing = ["BitsAndBytesConfig"] if quantized else []
    heads = [head, *quantizing] if kind in ("adapter", "model") else []
    classes = ", ".join([*heads, *readers.values()])
    code = LOADING_CODE[kind].format(
        head=head, classes=classes, base=base, extra=extra, below=below
    )
    if quantized:
        given = "".join(f"    {name}={value!r},\n" for name, value in quantized.items())
        code = code.replace("base =", f"quantized = BitsAndBytesConfig(\n{given})\nbase =", 1)
    for name, reader in readers.items():
        code += f'{name} = {reader}.from_pretrained("path/of/this/folder")\n'
    code = code.rstrip()
    return code if mini == path or kind != "adapter" else f"from dtl import mini\n{code}"


def _score_table(scores: dict[str, dict[str, float]]) -> list[str]:
    if not scores:
        return ["No held-out data was given."]
    names = [name for name in next(iter(scores.values())) if "/" not in name]
    lines = ["| model | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for model, found in scores.items():
        lines.append(f"| {model} | " + " | ".join(f"{found[name]:.6g}" for name in names) + " |")
    return lines


def _group_table(scores: dict[str, float], column: str, score: str) -> list[str]:
    """Of the last model that was scored: each group with its interval, the worst, and the mean."""
    groups = read_group_scores(scores, column)
    if not groups:
        return ["The scores are of a time when they were not broken down."]
    lines = [f"| group | n | {score} | 95 % interval |", "|---|---|---|---|"]
    lines += [
        f"| {one.group} | {one.examples} | {one.value:.6g} | {one.low:.6g} to {one.high:.6g} |"
        for one in groups
    ]
    worst, macro = (scores[f"group/{column}/{which}"] for which in ("worst", "macro"))
    return [*lines, "", f"Worst group {worst:.6g}; mean over groups {macro:.6g}."]
