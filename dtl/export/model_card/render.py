"""Render a model card: front matter, table, scores, loading code and versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dtl.export.model_card.data import (
    ExportedRun,
    ExportSummary,
    ModelCardData,
    collect_card_data,
)
from dtl.export.model_card.loading_code import loading_code
from dtl.export.model_card.scores import group_section, label_section, score_section
from dtl.export.model_card.table import table_rows

LIBRARIES = {"adapter": "peft", "model": "transformers", "onnx": "onnx", "gguf": "gguf"}
QUANTIZED_BASE_NOTE = (
    "The adapter was trained on the quantized weights. To merge it, dequantize these first.",
    "Merging into the unquantized base changes the outputs.",
)


def render_run_card(
    exported: ExportedRun,
    *,
    kind: str,
    quantization: dict[str, Any] | None,
    summary: ExportSummary | None = None,
) -> str:
    """Return the model card of an exported run.

    `kind`: adapter, model, onnx or gguf. `quantization`: arguments of BitsAndBytesConfig where the
    base is quantized. `summary`: of an export that `dtl export` writes.
    """
    return render_model_card(
        collect_card_data(exported, kind=kind, quantization=quantization or {}, summary=summary)
    )


def render_model_card(card: ModelCardData) -> str:
    """Return the text of README.md."""
    lines = [
        *_front_matter(card),
        f"# {card.config.run.name}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in table_rows(card)),
        *score_section(card),
        *label_section(card),
        *group_section(card),
        *_loading_section(card),
        "",
        "## Versions",
        "",
        *(f"- {name} {version}" for name, version in card.versions.items() if version),
    ]
    return "\n".join(lines) + "\n"


def _front_matter(card: ModelCardData) -> list[str]:
    """Return the YAML header that the Hugging Face Hub reads."""
    config = card.config
    strategies = dict.fromkeys(phase.name for phase in config.phases)
    header = {
        **({"base_model": config.model.path} if _is_on_the_hub(config.model.path) else {}),
        "library_name": LIBRARIES[card.kind],
        "tags": ["dtl", config.task.name, *strategies],
    }
    return ["---", *(f"{key}: {json.dumps(value)}" for key, value in header.items()), "---", ""]


def _is_on_the_hub(path: str) -> bool:
    """Whether the base is a repository; the Hub rejects a card that names another base."""
    return not path.startswith("mini:") and not Path(path).expanduser().is_dir()


def _loading_section(card: ModelCardData) -> list[str]:
    lines = ["", "## How to load it", ""]
    if card.kind == "gguf":
        lines += ["Run it with llama.cpp: `llama-cli -m FILE.gguf`. The tokenizer:", ""]
    lines += ["```python", loading_code(card), "```"]
    return [*lines, "", *QUANTIZED_BASE_NOTE] if card.quantization else lines
