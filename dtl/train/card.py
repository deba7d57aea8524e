"""The model card that travels with an export."""

from __future__ import annotations

import json
from typing import Any

from dtl.config.schema import Model, RunConfig, Source
from dtl.plan import Plan
from dtl.units import format_count

LOADING = {
    "adapter": """from peft import PeftModel
from transformers import {classes}

base = {head}.from_pretrained({base}{extra})
{below}model = PeftModel.from_pretrained(base, "path/of/this/folder")
""",
    "model": """from transformers import {classes}

model = {head}.from_pretrained("path/of/this/folder")
""",
}
QUANTIZED = (
    "The adapter was trained against the quantized weights. A merged model is made of these,",
    "dequantized: merged into the original weights of the base, the adapter is another model.",
)
READERS = {  # what a task reads by -> the names in the code, and the classes that open the files
    "tokenizer": {"tokenizer": "AutoTokenizer"},
    "features": {"feature_extractor": "AutoFeatureExtractor"},
    "images": {"image_processor": "AutoImageProcessor"},
    # Not AutoProcessor: beside an adapter there is no config to tell it the model's kind.
    "speech": {"feature_extractor": "AutoFeatureExtractor", "tokenizer": "AutoTokenizer"},
}


def model_card(
    config: RunConfig,
    plan: Plan,
    *,
    kind: str,
    head: str,
    labels: list[str] | None,
    scores: dict[str, dict[str, float]],
    versions: dict[str, Any],
    reads_by: str = "tokenizer",
    base_needs: dict[str, Any] | None = None,
    quantized: dict[str, Any] | None = None,
) -> str:
    """README.md of an export: base, data, strategy, scores, versions, and how to load it.

    `base_needs`: what from_pretrained is told so that the base has the head that was learnt.
    `quantized`: the arguments of BitsAndBytesConfig, where the base is quantized.
    """
    front = {
        "base_model": config.model.path,
        "library_name": "peft" if kind == "adapter" else "transformers",
        "tags": ["dtl", config.task.name, *dict.fromkeys(phase.name for phase in config.phases)],
    }
    held_out = config.data.eval.path if config.data.eval else f"{config.data.holdout} of the rows"
    rows = [
        ("base", f"{config.model.path} (revision {config.model.revision or 'as found'})"),
        *(("worked into it", path) for path in config.model.adapters),
        *([("base held in", _held_in(config.model))] if quantized else []),
        ("task", config.task.name),
        ("strategy", json.dumps(config.model_dump(mode="json")["strategy"])),
        ("learning parameters", format_count(plan.parameters.learning)),
        ("trained on", ", ".join(map(_named, (config.data.train, *config.data.mix)))),
        ("scored on", held_out if scores else "nothing"),
        ("steps", f"{plan.steps} of {config.train.global_batch}"),
        (
            "learning rate",
            f"{', then '.join(f'{phase.learning_rate:g}' for phase in plan.phases)}, "
            f"{config.optim.schedule}",
        ),
        ("layout", f"{plan.layout.ranks} ranks, ZeRO {plan.layout.zero}, {plan.layout.dtype}"),
    ]
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---", ""]
    lines += [f"# {config.run.name}", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in rows]
    lines += ["", "## Held-out scores", "", *_score_table(scores)]
    if config.task.group_by is not None and scores:
        lines += ["", f"## Held-out scores by {config.task.group_by}", ""]
        lines += _group_table(list(scores.values())[-1], config.task.group_by)
    lines += ["", "## How to load it", "", "```python"]
    needs = {**_labelled(labels), **(base_needs or {})}
    if quantized:
        needs |= {"dtype": plan.layout.dtype.replace("bf", "bfloat").replace("fp", "float")}
    readers = READERS[reads_by]
    lines += [_loading(kind, head, config.model, needs, readers, quantized or {}), "```"]
    lines += ["", *QUANTIZED] if quantized else []
    lines += [
        "",
        "## Versions",
        "",
        *(f"- {name} {number}" for name, number in versions.items() if number),
    ]
    return "\n".join(lines) + "\n"


def _labelled(labels: list[str] | None) -> dict[str, Any]:
    if not labels:
        return {}
    return {"id2label": dict(enumerate(labels)), "ignore_mismatched_sizes": True}


def _held_in(model: Model) -> str:
    doubled = ", its scales in 8 bits" if model.quantize == "nf4" and model.double_quantize else ""
    return f"{model.quantize} (bitsandbytes){doubled}; head and adapter are not quantized"


def _named(source: Source) -> str:
    return source.path if source.weight == 1 else f"{source.path} x {source.weight:g}"


def _loading(
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
    base = json.dumps(path) if mini == path else f"str(mini.path({json.dumps(mini)}))"
    extra = "".join(f", {key}={value!r}" for key, value in needs.items())
    extra += ", quantization_config=quantized" if quantized else ""
    quantizing = ["BitsAndBytesConfig"] if quantized else []
    classes = ", ".join([head, *quantizing, *readers.values()])
    code = LOADING[kind].format(head=head, classes=classes, base=base, extra=extra, below=below)
    if quantized:
        given = "".join(f"    {name}={value!r},\n" for name, value in quantized.items())
        code = code.replace("base =", f"quantized = BitsAndBytesConfig(\n{given})\nbase =", 1)
    for name, reader in readers.items():
        code += f'{name} = {reader}.from_pretrained("path/of/this/folder")\n'
    code = code.rstrip()
    return code if mini == path or kind == "model" else f"from dtl import mini\n{code}"


def _score_table(scores: dict[str, dict[str, float]]) -> list[str]:
    if not scores:
        return ["No held-out data was given."]
    names = [name for name in next(iter(scores.values())) if "/" not in name]
    lines = ["| model | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for model, found in scores.items():
        lines.append(f"| {model} | " + " | ".join(f"{found[name]:.6g}" for name in names) + " |")
    return lines


def _group_table(scores: dict[str, float], column: str) -> list[str]:
    """Of the last model that was scored: each group with its interval, the worst, and the mean."""
    start = f"group/{column}/"
    groups = [
        name[len(start) : -2] for name in scores if name.startswith(start) and name[-2:] == "/n"
    ]
    if not groups:
        return ["The scores are of a time when they were not broken down."]
    first = f"{start}{groups[0]}/"
    (score,) = {name.removeprefix(first) for name in scores if name.startswith(first)} - {
        "n",
        "low",
        "high",
    }
    lines = [f"| group | n | {score} | 95 % interval |", "|---|---|---|---|"]
    for group in groups:
        value, n, low, high = (
            scores[f"{start}{group}/{name}"] for name in (score, "n", "low", "high")
        )
        lines.append(f"| {group} | {n} | {value:.6g} | {low:.6g} to {high:.6g} |")
    worst, macro = scores[f"{start}worst"], scores[f"{start}macro"]
    return [*lines, "", f"Worst group {worst:.6g}; mean over groups {macro:.6g}."]
