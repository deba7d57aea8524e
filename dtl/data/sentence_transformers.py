"""The files with which sentence-transformers loads a model of text embeddings."""

from __future__ import annotations

import json
from typing import Any

POOLING_MODES = {"mean": "mean_tokens", "cls": "cls_token", "last": "lasttoken"}
MODULES = (
    ("", "Transformer"),
    ("1_Pooling", "Pooling"),
    ("2_Normalize", "Normalize"),
)


def sentence_transformers_files(
    *, dimension: int, max_length: int, pooling: str, prompts: dict[str, str]
) -> dict[str, str]:
    """Return the texts of the files, by relative path.

    `dimension`: of an embedding. `max_length`: of a text in tokens. `prompts`: prefixes of texts,
    by their name.
    """
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": path,
            "type": f"sentence_transformers.models.{name}",
        }
        for index, (path, name) in enumerate(MODULES)
    ]
    files: dict[str, Any] = {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": prompts,
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        "1_Pooling/config.json": {
            "word_embedding_dimension": dimension,
            **{
                f"pooling_mode_{mode}": mode == POOLING_MODES[pooling]
                for mode in POOLING_MODES.values()
            },
        },
        "2_Normalize/config.json": {},
    }
    return {name: json.dumps(content, indent=1) + "\n" for name, content in files.items()}
