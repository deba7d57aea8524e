"""Embeddings: their loss, gradient and rankings, compared with plain transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dtl.core.errors import DtlError
from dtl.data.example import EncodedExample, Skip
from dtl.data.sources.rows import Row
from dtl.tasks.embedding import Options, Plugin
from tests import tiny

ROWS = (
    {"anchor": "the old ship", "positive": "carries a letter", "negative": "sends"},
    {"anchor": "night", "positive": "finds the small stone again", "negative": None},
    {"anchor": "a house", "positive": "opens in the morning", "negative": ["breaks", "turns"]},
    {"anchor": "the garden", "positive": "turns often", "negative": []},
)


def make_batch(
    task: Plugin, rows: tuple[dict[str, Any], ...] = ROWS
) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Return the values of encoded rows, and their batch."""
    made = [Row(index, "rows.jsonl", dict(row)) for index, row in enumerate(rows)]
    encode = task.encoder(tiny.tokenizer(), task.collect_dataset_stats(made, None), None)
    values = [encode(row).values for row in made]  # type: ignore[union-attr]
    return values, task.collate(values, pad_token_id=0)


def embed(model: Any, text: str, pooling: str) -> torch.Tensor:
    """Return the embedding of one text, run alone."""
    ids = torch.tensor([tiny.tokenizer()(text)["input_ids"]])
    states = model(input_ids=ids).last_hidden_state[0]
    pooled = {"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling]
    return pooled / pooled.norm()


def expected_loss(model: Any, *, pooling: str, prefixes: tuple[str, str]) -> torch.Tensor:
    """Text by text; no two texts are the same."""
    documents = []
    for row in ROWS:
        negative = row["negative"]
        negatives = negative if isinstance(negative, list) else [negative] * bool(negative)
        documents += [row["positive"], *negatives]
    embedded = torch.stack([embed(model, prefixes[1] + str(text), pooling) for text in documents])
    total: Any = 0.0
    for row in ROWS:
        query = embed(model, prefixes[0] + str(row["anchor"]), pooling)
        logs = (embedded @ query / 0.1).log_softmax(0)
        total = total - logs[documents.index(row["positive"])]
    return total  # type: ignore[no-any-return]


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize(
    ("base", "pooling", "prefixes"),
    [
        ("encoder", "mean", ("a query ", "a text ")),
        ("encoder", "cls", ("", "")),
        ("decoder", "last", ("", "")),
    ],
)
def test_loss_and_gradient_in_micro_batches_are_those_of_plain_transformers(
    request: pytest.FixtureRequest, base: str, pooling: Any, prefixes: tuple[str, str]
) -> None:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(request.getfixturevalue(base))
    expected = expected_loss(model, pooling=pooling, prefixes=prefixes)
    expected.backward()
    expected_gradients = gradients(model)
    task = Plugin(
        Options(
            pooling=pooling,
            temperature=0.1,
            query_prefix=prefixes[0],
            document_prefix=prefixes[1],
        )
    )
    values, batch = make_batch(task)
    task.loss(model, batch).backward()
    complete_gradients = gradients(model)
    parts = [task.collate(part, pad_token_id=0) for part in (values[:3], values[3:])]
    with torch.no_grad():
        embedded = [task.global_values(model, part) for part in parts]
        shared = task.combine_global_values(
            {name: torch.cat([one[name] for one in embedded]) for name in embedded[0]}
        )
    total = 0.0
    for part, own in zip(parts, (slice(0, 3), slice(3, 4)), strict=True):
        loss = task.loss(model, {**part, **{name: value[own] for name, value in shared.items()}})
        loss.backward()
        total += float(loss.detach())
    assert total == pytest.approx(float(expected.detach()), rel=1e-5)
    atol = 1e-5 * max(float(gradient.abs().max()) for gradient in expected_gradients.values())
    for found in (complete_gradients, gradients(model)):
        assert found.keys() == expected_gradients.keys()
        for name, gradient in expected_gradients.items():
            assert torch.allclose(found[name], gradient, rtol=1e-4, atol=atol), name


def test_rows_of_equal_texts_share_their_relevant_documents(encoder: Path) -> None:
    """Of two rows with one query, each finds both documents; a document of two rows counts once."""
    from transformers import AutoModel

    rows = (
        {"anchor": "night", "positive": "a stone"},
        {"anchor": "night", "positive": "a river"},
        {"anchor": "a ship", "positive": "a river"},
    )
    task = Plugin(Options())
    model = AutoModel.from_pretrained(encoder).eval()
    with torch.no_grad():
        records = task.eval_records(model, make_batch(task, rows)[1], processor=None)
    joined = task.join_records(records)
    assert [record["recall@5"] for record in joined] == [1.0] * 3
    assert joined[0]["recall@1"] == joined[1]["recall@1"] == 0.5
    assert joined[0]["loss"] == pytest.approx(0.0, abs=1e-6), "there is no negative"
    assert all(record.keys() == joined[0].keys() for record in joined)


def test_hard_negatives_beyond_the_option_are_not_read() -> None:
    task = Plugin(Options(max_negatives=1))
    assert task.collect_dataset_stats([Row(0, "", dict(ROWS[2]))], None) == {"negatives": 1}
    values, batch = make_batch(task)
    assert batch["input_ids"].shape[:2] == (4, 3)
    assert [int(value) for value in batch["text_ids"][:, 2] == -1] == [0, 1, 0, 1]
    assert values[2]["negative_lengths"] == [len(tiny.tokenizer()("breaks")["input_ids"])]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"anchor": None}, "the column `anchor` is missing"),
        ({"positive": ["a", "b"]}, "`positive` is list"),
        ({"negative": 3}, "`negative` is neither a text nor a list of texts"),
        ({"negative": ["a", None]}, "`negative` is neither a text nor a list of texts"),
    ],
)
def test_a_row_at_fault_is_named(change: dict[str, Any], message: str) -> None:
    fault = Plugin(Options()).find_row_fault(Row(4, "rows.jsonl:5", {**ROWS[0], **change}))
    assert fault is not None and fault.location == "rows.jsonl:5"
    assert message in fault.problem and fault.fix


def test_empty_texts_are_skipped() -> None:
    encode = Plugin(Options()).encoder(tiny.tokenizer(), {"negatives": 1}, None)
    assert encode(Row(0, "", {**ROWS[0], "anchor": " "})) == Skip("empty text")
    assert encode(Row(0, "", {**ROWS[0], "negative": ""})) != Skip("empty text")
    assert encode(Row(0, "", {**ROWS[0], "negative": [""]})) == Skip("empty text")
    assert isinstance(encode(Row(0, "", dict(ROWS[0]))), EncodedExample)


def test_model_of_encoder_and_decoder_is_rejected(t5: Path) -> None:
    from transformers import AutoConfig

    with pytest.raises(DtlError, match="a t5 model has an encoder and a decoder"):
        Plugin(Options()).collect_dataset_stats([], AutoConfig.from_pretrained(t5))
