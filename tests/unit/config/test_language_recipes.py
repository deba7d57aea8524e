"""The language recipes plan, with a small model of the same kind and a few rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from dtl.config.load import load_config
from dtl.config.recipes import list_recipes
from dtl.prepare import prepared_run
from tests import tiny

RECIPES = {recipe.name: recipe.path for recipe in list_recipes()}


def modernbert(folder: Path) -> Path:
    from transformers import ModernBertConfig, ModernBertModel

    made = tiny.closing_tokenizer()
    special = dict.fromkeys(("bos_token_id", "cls_token_id"), made.bos_token_id)
    config = ModernBertConfig(
        vocab_size=len(made),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=made.pad_token_id,
        eos_token_id=made.eos_token_id,
        sep_token_id=made.eos_token_id,
        **special,
    )
    ModernBertModel(config).save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def chatty(folder: Path) -> Path:
    return tiny.decoder(folder, chat=True)


def talks(file: Path) -> Path:
    """As SmolTalk has them."""
    question, answer = (
        {"role": "user", "content": "a river"},
        {"role": "assistant", "content": "yes"},
    )
    return tiny.write_rows(file, [{"messages": [question, answer]} for _ in range(2)])


def reviews(file: Path) -> Path:
    """As IMDb has them."""
    rows = [{"text": "a new ship", "label": "pos"}, {"text": "an old ship", "label": "neg"}]
    return tiny.write_rows(file, rows)


def opinions(file: Path) -> Path:
    """As Orca's pairs are."""
    row = {"system": "", "question": "a river?", "chosen": "yes", "rejected": "a stone"}
    return tiny.write_rows(file, [row] * 100)


def judged(file: Path) -> Path:
    """As UltraFeedback's binarized pairs are: conversations with a common beginning."""
    start = {"role": "user", "content": "a river"}
    ends = {"chosen": "yes", "rejected": "a stone"}
    row = {n: [start, {"role": "assistant", "content": text}] for n, text in ends.items()}
    return tiny.write_rows(file, [{**row, "score_chosen": 8.0, "score_rejected": 3.0}] * 4)


def approved(file: Path) -> Path:
    """As TRL's mixture for KTO has them."""
    question, answer = (
        [{"role": "user", "content": "a river"}],
        [{"role": "assistant", "content": "yes"}],
    )
    return tiny.write_rows(
        file, [{"prompt": question, "completion": answer, "label": bool(n % 2)} for n in range(4)]
    )


def answered(file: Path) -> Path:
    """As Natural Questions has them in pairs."""
    return tiny.write_rows(
        file, [{"query": f"a river {n}", "answer": f"a stone {n}"} for n in range(200)]
    )


def tagged(file: Path) -> Path:
    """As CoNLL-2003 has them on the hub: class numbers under `ner_tags`."""
    rows = [
        {"tokens": ["Ada", "Lovelace", "wrote"], "ner_tags": [1, 2, 0]},
        {"tokens": ["in", "London", "."], "ner_tags": [0, 5, 0]},
    ]
    return tiny.write_rows(file, rows)


def news(file: Path) -> Path:
    """As CNN/DailyMail has them."""
    return tiny.write_rows(file, [{"article": "A ship. A river.", "highlights": "Ship, river."}])


@pytest.mark.parametrize(
    ("name", "base", "data", "learns"),
    [
        ("language/names", modernbert, tagged, "all"),
        ("language/summary", tiny.t5, news, "adapters"),
        ("language/llama-8b-lora", chatty, talks, "adapters"),
        ("language/llama-70b-lora", chatty, talks, "adapters"),
        ("language/llama-70b-qlora", chatty, talks, "adapters"),
        ("language/qwen3-full", chatty, talks, "all"),
        ("language/mistral-preferences", chatty, opinions, "adapters"),
        ("language/sentiment", modernbert, reviews, "all"),
        ("language/ipo", chatty, judged, "adapters"),
        ("language/cpo", chatty, judged, "adapters"),
        ("language/kto", chatty, approved, "adapters"),
        ("language/reward", chatty, judged, "adapters"),
        ("language/embedding", modernbert, answered, "all"),
        ("language/simpo", chatty, judged, "all"),
        ("language/orpo", chatty, judged, "all"),
    ],
)
def test_a_language_recipe_plans(
    name: str, base: object, data: object, learns: str, tmp_path: Path, cache: Path
) -> None:
    model, rows = base(tmp_path / "model"), data(tmp_path / "rows.jsonl")  # type: ignore[operator]
    given = [f"model.path={model}", f"data.train={rows}"]
    if load_config(RECIPES[name]).data.eval is not None:
        given.append(f"data.eval={rows}")
    config = load_config(RECIPES[name], given)
    prepared = prepared_run.prepare_run(config)
    counts = prepared.plan.parameters
    assert (counts.frozen == 0) == (learns == "all") and counts.trainable > 0
    assert (counts.quantized.weights > 0) == (config.model.quantize is not None)
    held_out = 0 if config.data.eval else len(prepared.data.held_out)  # type: ignore[arg-type]
    assert len(prepared.data.train) == len(rows.read_text().splitlines()) - held_out
