"""The Python code in a model card that loads the export."""

from __future__ import annotations

import json
from typing import Any

from dtl.export.model_card.data import ModelCardData
from dtl.models.dtypes import torch_dtype

TEMPLATES = {  # by the kind of export
    "adapter": """from peft import PeftModel
from transformers import {classes}

base = {auto_class}.from_pretrained({base}{arguments})
{resizes}{merges}model = PeftModel.from_pretrained(base, "path/of/this/folder")
""",
    "model": """from transformers import {classes}

model = {auto_class}.from_pretrained("path/of/this/folder")
""",
    "onnx": """import onnxruntime
from transformers import {classes}

model = onnxruntime.InferenceSession("path/of/this/folder/model.onnx")
""",
    "gguf": """from transformers import {classes}

""",
}
PROCESSOR_CLASSES = {  # by a task's processor_kind: variable and auto class
    "tokenizer": {"tokenizer": "AutoTokenizer"},
    "feature_extractor": {"feature_extractor": "AutoFeatureExtractor"},
    "image_processor": {"image_processor": "AutoImageProcessor"},
    # Not AutoProcessor: the folder of an adapter has no config that names the model type.
    "processor": {"feature_extractor": "AutoFeatureExtractor", "tokenizer": "AutoTokenizer"},
}


def loading_code(card: ModelCardData) -> str:
    """Return code that runs unchanged except for the path of the export."""
    path, mini_name = card.config.model.path, card.config.model.path.removeprefix("mini:")
    is_mini, processors = mini_name != path, PROCESSOR_CLASSES[card.processor_kind]
    code = TEMPLATES[card.kind].format(
        auto_class=card.auto_class,
        classes=", ".join([*_model_classes(card), *processors.values()]),
        base=f"str(mini.base_folder({json.dumps(mini_name)}))" if is_mini else json.dumps(path),
        arguments=_format_base_arguments(card),
        resizes=_resize_line(card),
        merges=_merge_lines(card.config.model.adapters),
    )
    if card.quantization:
        config = "".join(f"    {name}={value!r},\n" for name, value in card.quantization.items())
        code = code.replace("base =", f"quantized = BitsAndBytesConfig(\n{config})\nbase =", 1)
    if card.has_generation_config:
        code += (
            'model.generation_config = GenerationConfig.from_pretrained("path/of/this/folder")\n'
        )
    for name, auto_class in processors.items():
        code += f'{name} = {auto_class}.from_pretrained("path/of/this/folder")\n'
    code = code.rstrip()
    return f"from dtl import mini\n{code}" if is_mini and card.kind == "adapter" else code


def _model_classes(card: ModelCardData) -> list[str]:
    if card.kind not in ("adapter", "model"):
        return []
    quantization = ["BitsAndBytesConfig"] if card.quantization else []
    generation = ["GenerationConfig"] if card.has_generation_config else []
    return [card.auto_class, *quantization, *generation]


def _resize_line(card: ModelCardData) -> str:
    """Return the line that gives the base rows for the added tokens."""
    if card.embedding_rows is None:
        return ""
    return f"base.resize_token_embeddings({card.embedding_rows})\n"


def _merge_lines(adapters: tuple[str, ...]) -> str:
    """Return the lines that merge earlier adapters into the base."""
    return "".join(
        f"base = PeftModel.from_pretrained(base, {json.dumps(path)}).merge_and_unload()\n"
        for path in adapters
    )


def _format_base_arguments(card: ModelCardData) -> str:
    """Return the keyword arguments with which the base is loaded, after a comma."""
    arguments: dict[str, Any] = {}
    if card.labels:
        arguments["id2label"] = dict(enumerate(card.labels))
        arguments["ignore_mismatched_sizes"] = True
    arguments |= card.base_kwargs
    if card.quantization:
        dtype = torch_dtype(card.plan.layout.dtype)
        arguments["dtype"] = str(dtype).removeprefix("torch.")
    text = "".join(f", {name}={value!r}" for name, value in arguments.items())
    return text + (", quantization_config=quantized" if card.quantization else "")
