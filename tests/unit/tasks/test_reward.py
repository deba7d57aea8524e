"""Reward models: losses, rows and predictions, compared with plain transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dtl.data.example import EncodedExample, Skip
from dtl.data.sources.rows import Row
from dtl.tasks.reward import Options, Plugin
from tests import tiny
from tests.unit.tasks.test_dpo import EARLIER, NO, ROWS, YES

SCORED = (
    {"prompt": "the old ship", "completion": " carries a letter", "score": 2.5},
    {"prompt": "night", "completion": " finds the small stone again", "score": -1},
    {"prompt": "a house", "completion": " opens", "score": "0.5"},
)


def make_model(folder: Path) -> Any:
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    torch.nn.init.normal_(model.score.weight, std=0.5)
    return model


def reward(model: Any, text: str) -> torch.Tensor:
    """Return the reward of one text with its end, run alone."""
    tokenizer = tiny.tokenizer()
    ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
    logits: torch.Tensor = model(input_ids=ids).logits
    return logits[0, 0]


def encode(fields: dict[str, Any], tokenizer: Any = None, **options: Any) -> Any:
    encoder = Plugin(Options(**options)).encoder(tokenizer or tiny.tokenizer(), {}, None)
    return encoder(Row(4, "rows.jsonl:5", fields))


def test_pairwise_loss_and_gradient_are_those_of_the_formula(decoder: Path) -> None:
    rows = [{**row, "margin": margin} for row, margin in zip(ROWS, (0.5, None, "2"), strict=True)]
    model, expected = make_model(decoder), torch.zeros(())
    for row in rows:
        chosen, rejected = (
            reward(model, str(row["prompt"]) + str(row[name])) for name in ("chosen", "rejected")
        )
        margin = float(row["margin"] or 0)
        expected = expected - torch.sigmoid(chosen - rejected - margin).log()
        expected = expected + 0.3 * (chosen + rejected) ** 2
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    task = Plugin(Options(center_rewards_coefficient=0.3))
    values = [encode(row).values for row in rows]
    loss = task.loss(model, task.collate(values, pad_token_id=0))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, parameter in model.named_parameters():
        atol = 1e-5 * float(gradients[name].abs().max())
        assert torch.allclose(parameter.grad, gradients[name], rtol=1e-4, atol=atol), name


def test_scalar_loss_is_the_squared_error(decoder: Path) -> None:
    model, task = make_model(decoder).eval(), Plugin(Options(objective="scalar"))
    with torch.no_grad():
        rewards = [float(reward(model, f"{r['prompt']}{r['completion']}")) for r in SCORED]
        values = [encode(dict(row), objective="scalar").values for row in SCORED]
        batch = task.collate(values, pad_token_id=0)
        loss = float(task.loss(model, batch))
        scores = task.score(task.eval_records(model, batch, processor=None), {})
    errors = [
        (value - float(row["score"])) ** 2 for value, row in zip(rewards, SCORED, strict=True)
    ]
    assert loss == pytest.approx(sum(errors), rel=1e-5)
    assert scores["loss"] == pytest.approx(sum(errors) / 3, rel=1e-5)
    expected = np.corrcoef(rewards, [float(row["score"]) for row in SCORED])[0, 1]
    assert scores["pearson"] == pytest.approx(expected, rel=1e-5)


def test_predictions_of_completions_and_pairs_may_share_a_batch(decoder: Path) -> None:
    model, task, tokenizer = make_model(decoder).eval(), Plugin(Options()), tiny.tokenizer()
    completion = {"prompt": "night", "completion": " opens"}
    fields = [task.with_placeholder_target(row, {}) for row in (completion, dict(ROWS[0]))]
    rows = [Row(index, "", row) for index, row in enumerate(fields)]
    assert [task.find_row_fault(row) for row in rows] == [None, None]
    encode_input = task.prompt_encoder(tokenizer, {}, None)
    values = [encode_input(row).values for row in rows]  # type: ignore[union-attr]
    with torch.no_grad():
        single, pair = task.predict(
            model,
            task.collate(values, pad_token_id=0),
            processor=tokenizer,
            dataset_stats={},
            max_new_tokens=None,
        )
        expected = float(reward(model, "night opens"))
        chosen, rejected = (
            float(reward(model, ROWS[0]["prompt"] + ROWS[0][name]))
            for name in ("chosen", "rejected")
        )
    assert single == {"predicted": pytest.approx(expected, rel=1e-4)}
    assert pair["predicted"] == ("chosen" if chosen > rejected else "rejected")
    assert pair["chosen_reward"] == pytest.approx(chosen, rel=1e-4)


def test_chat_pairs_are_encoded_as_those_of_dpo() -> None:
    from dtl.tasks import dpo

    tokenizer = tiny.tokenizer(chat=True)
    pair = {"prompt": EARLIER, "chosen": [YES], "rejected": [NO]}
    expected = dpo.Plugin(dpo.Options()).encoder(tokenizer, {}, None)(Row(0, "", pair))
    found = encode(pair, tokenizer)
    assert isinstance(expected, EncodedExample)
    for name in ("chosen", "rejected"):
        assert found.values[name] == expected.values[name]


def test_text_pair_needs_no_prompt() -> None:
    row = {"chosen": "the river", "rejected": "a stone"}
    assert Plugin(Options()).find_row_fault(Row(0, "", row)) is None
    tokenizer = tiny.tokenizer()
    assert tokenizer.decode(encode(row).values["chosen"]) == "the river</s>"


@pytest.mark.parametrize(
    ("fields", "options", "reason"),
    [
        ({**ROWS[0], "rejected": ROWS[0]["chosen"]}, {}, "both responses are the same"),
        ({**ROWS[0]}, {"max_length": 2}, "both responses are the same"),
        (
            {"prompt": EARLIER, "chosen": [YES], "rejected": [NO]},
            {"max_length": 4},
            "no response left after truncation",
        ),
    ],
)
def test_pair_without_a_preference_is_skipped(
    fields: dict[str, Any], options: dict[str, int], reason: str
) -> None:
    found = encode(fields, tiny.tokenizer(chat=True), **options)
    assert isinstance(found, Skip) and found.reason.startswith(reason)


@pytest.mark.parametrize(
    ("objective", "change", "message"),
    [
        ("pairwise", {"margin": "much"}, "`margin` is 'much', not a number"),
        ("pairwise", {"margin": float("nan")}, "`margin` is nan, not a number"),
        ("pairwise", {"chosen": None}, "the column `chosen` is missing"),
        ("scalar", {"score": None}, "the column `score` is missing"),
        ("scalar", {"score": True}, "`score` is True, not a number"),
        ("scalar", {"completion": None}, "the column `completion` is missing"),
    ],
)
def test_a_row_at_fault_is_named(objective: Any, change: dict[str, Any], message: str) -> None:
    fields = {**(ROWS if objective == "pairwise" else SCORED)[0], **change}
    fault = Plugin(Options(objective=objective)).find_row_fault(Row(4, "rows.jsonl:5", fields))
    assert fault is not None and fault.location == "rows.jsonl:5"
    assert message in fault.problem and fault.fix


def test_only_a_base_with_one_label_has_a_reward_head(decoder: Path) -> None:
    from transformers import AutoConfig

    task, config = Plugin(Options()), AutoConfig.from_pretrained(decoder)
    assert task.collect_dataset_stats([], config) == {"new_head": True}
    config.architectures, config.num_labels = ["LlamaForSequenceClassification"], 2
    assert task.collect_dataset_stats([], config) == {"new_head": True}
    config.num_labels = 1
    assert task.collect_dataset_stats([], config) == {"new_head": False}
