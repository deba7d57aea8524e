"""The KTO loss of the paper, compared with plain PyTorch and PEFT; its rows and scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dtl.core.errors import DtlError
from dtl.data.cache.encoder import encode_rows
from dtl.data.cache.partners import add_partners
from dtl.data.example import EncodedExample, Skip
from dtl.data.sources.rows import Row
from dtl.tasks.kto import KL, Options, Plugin
from tests import tiny
from tests.unit.tasks.test_dpo import EARLIER, HELLO, NO, YES, log_likelihood, make_adapted_model

ROWS = (
    {"prompt": "the old ship", "completion": " carries a letter", "label": True},
    {"prompt": "night", "completion": " finds the small stone again", "label": False},
    {"prompt": "a house in the morning", "completion": " opens", "label": True},
    {"prompt": "the garden", "completion": " turns often", "label": False},
)

SEEDS = {"KL above 0": 1, "clamped": 0}  # of an adapter whose KL is estimated as such


def encode(fields: dict[str, Any], tokenizer: Any = None, **options: Any) -> Any:
    encoder = Plugin(Options(**options)).encoder(tokenizer or tiny.tokenizer(), {}, None)
    return encoder(Row(4, "rows.jsonl:5", fields))


def values_with_partners() -> list[dict[str, Any]]:
    encoded = [encode(dict(row)).values for row in ROWS]
    return [{**one, "partner": encoded[(n + 1) % 4]} for n, one in enumerate(encoded)]


def log_ratio(model: Any, prompt: str, response: str) -> torch.Tensor:
    tokenizer = tiny.tokenizer()
    with torch.no_grad(), model.disable_adapter():
        base = log_likelihood(model, tokenizer, prompt, response)
    return log_likelihood(model, tokenizer, prompt, response) - base


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
def test_loss_and_gradient_are_those_of_the_formula(decoder: Path, seed: int) -> None:
    """The KL of prompts with the next row's response is over all rows, and has no gradient."""
    model = make_adapted_model(decoder)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    with torch.no_grad():
        pairs = zip(ROWS, (*ROWS[1:], ROWS[0]), strict=True)
        ratios = [log_ratio(model, row["prompt"], other["completion"]) for row, other in pairs]
    mean_ratio = float(torch.stack(ratios).mean())
    assert (mean_ratio < 0) == (seed == SEEDS["clamped"])
    kl = max(0.0, mean_ratio)
    expected: Any = 0.0
    for row in ROWS:
        distance = 0.3 * (log_ratio(model, row["prompt"], row["completion"]) - kl)
        if row["label"]:
            expected = expected + 2.0 * (1 - torch.sigmoid(distance))
        else:
            expected = expected + 1.5 * (1 - torch.sigmoid(-distance))
    expected.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()

    task = Plugin(Options(beta=0.3, desirable_weight=2.0, undesirable_weight=1.5))
    values = values_with_partners()
    with torch.no_grad():
        batch = task.collate(values, pad_token_id=0)
        found_kl = task.combine_global_values(task.global_values(model, batch))[KL]
    losses = []
    for part in (values[:1], values[1:]):  # two micro-batches of one global batch
        batch = {**task.collate(part, pad_token_id=0), KL: found_kl[: len(part)]}
        loss = task.loss(model, batch)
        loss.backward()
        losses.append(float(loss.detach()))
    assert sum(losses) == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            atol = 1e-5 * float(gradients[name].abs().max())
            assert torch.allclose(parameter.grad, gradients[name], rtol=1e-4, atol=atol), name
    with torch.no_grad():
        records = task.eval_records(
            model, task.collate(values, pad_token_id=0), processor=tiny.tokenizer()
        )
    scores = task.score(task.join_records(records), {})
    assert scores["loss"] == pytest.approx(float(expected.detach()) / 4, rel=1e-5)
    assert scores["kl"] == pytest.approx(kl, abs=1e-4)


def test_partner_is_another_row_and_each_row_is_the_partner_of_one(cache: Path) -> None:
    rows = [Row(index, "", {}) for index in range(11)]
    data = encode_rows(
        rows,
        lambda row: EncodedExample({"input_ids": [row.index]}, 1, 1),
        key="partners",
        location="data.train",
    )
    first, second = (
        [int(add_partners(data)[index]["partner"]["input_ids"][0]) for index in range(11)]
        for _ in range(2)
    )
    assert first == second
    assert sorted(first) == list(range(11))
    assert all(partner != index for index, partner in enumerate(first))
    following = np.mod(np.array(first) - np.arange(11), 11)
    assert len(set(following.tolist())) > 2, "pairs of one prompt often follow one another"


def test_mismatched_response_is_truncated_to_the_limit() -> None:
    tokenizer = tiny.tokenizer()
    short = {"prompt": "night", "completion": " opens", "label": True}
    long = {"prompt": "a", "completion": " follows" * 20, "label": False}
    limit = 12
    one, other = (encode(row, tokenizer, max_length=limit).values for row in (short, long))
    batch = Plugin(Options()).collate([{**one, "partner": other}], pad_token_id=0)
    assert int(batch["mismatched_attention_mask"].sum()) == limit
    start = one["start"]
    tokens = batch["mismatched_input_ids"][0, :limit].tolist()
    assert tokens[:start] == one["input_ids"][:start]
    response = other["input_ids"][other["start"] :]
    assert tokens[start:] == response[: limit - start]


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": EARLIER, "completion": [YES]},
        {"prompt": EARLIER, "completion": YES["content"]},
        {"completion": [*EARLIER, YES]},
        {"prompt": EARLIER, "completion": [*EARLIER, YES]},
    ],
    ids=["explicit", "completion as text", "implicit", "prompt repeated"],
)
def test_a_chat_completion_is_encoded_as_the_chosen_response_of_a_pair(
    fields: dict[str, Any],
) -> None:
    from dtl.tasks import dpo

    tokenizer = tiny.tokenizer(chat=True)
    pair = {"prompt": EARLIER, "chosen": [YES], "rejected": [NO]}
    expected = dpo.Plugin(dpo.Options()).encoder(tokenizer, {}, None)(Row(0, "", pair)).values  # type: ignore[union-attr]
    row = Row(4, "rows.jsonl:5", {**fields, "label": True})
    assert Plugin(Options()).find_row_fault(row) is None
    assert Plugin(Options()).preview(row).target == YES["content"]
    found = encode(row.fields, tokenizer).values
    assert found["input_ids"] == expected["chosen"]
    assert found["start"] == expected["prompt"][0]


@pytest.mark.parametrize(
    ("label", "is_desirable"),
    [(True, 1), (False, 0), (1, 1), (0, 0), ("true", 1), ("False", 0), ("1", 1)],
)
def test_labels_of_every_carrier_are_read(label: Any, is_desirable: int) -> None:
    row = {**ROWS[0], "label": label}
    assert Plugin(Options()).find_row_fault(Row(0, "", row)) is None
    assert encode(row).values["desirable"] == is_desirable


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": None}, "the column `label` is missing"),
        ({"label": "good"}, "`label` is 'good', neither true nor false"),
        ({"label": 0.7}, "`label` is 0.7, neither true nor false"),
        ({"label": 2}, "`label` is 2, neither true nor false"),
        ({"completion": None}, "the column `completion` is missing"),
        ({"completion": [YES]}, "`completion` has messages and `prompt` a text"),
        ({"prompt": [HELLO], "completion": [HELLO]}, "(it has none)"),
        ({"prompt": None, "completion": [YES, HELLO]}, "(it has user)"),
    ],
)
def test_a_row_at_fault_is_named(change: dict[str, Any], message: str) -> None:
    fault = Plugin(Options()).find_row_fault(Row(4, "rows.jsonl:5", {**ROWS[0], **change}))
    assert fault is not None and fault.location == "rows.jsonl:5"
    assert message in fault.problem and fault.fix


@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        ({"prompt": ""}, {}, "no prompt"),
        ({"prompt": None, "completion": [YES]}, {}, "no prompt"),
        ({}, {"max_length": 2}, "no response left after truncation"),
    ],
)
def test_a_row_without_a_response_is_skipped(
    change: dict[str, Any], options: dict[str, int], reason: str
) -> None:
    assert encode({**ROWS[0], **change}, tiny.tokenizer(chat=True), **options) == Skip(reason)


def test_scores_by_hand() -> None:
    rewards = {1: (1.0, -0.5), 0: (-1.0, 0.5, 0.0)}
    records = [
        {"loss": 0.5, "reward": reward, "kl": -2.0, "desirable": flag}
        for flag, many in rewards.items()
        for reward in many
    ]
    assert Plugin(Options()).score(records, {}) == pytest.approx(
        {
            "loss": 0.5,
            "accuracy": 3 / 5,
            "kl": 0.0,
            "desirable_reward": 0.25,
            "undesirable_reward": -1 / 6,
            "margin": 0.25 + 1 / 6,
        }
    )


def test_streamed_rows_are_rejected(decoder: Path, tmp_path: Path, cache: Path) -> None:
    from dtl.config.schema import RunConfig
    from dtl.prepare.prepared_run import prepare_run

    data = tiny.write_rows(tmp_path / "rows.jsonl", list(ROWS))
    config = RunConfig.model_validate(
        {
            "run": {"name": "x"},
            "model": {"path": str(decoder)},
            "task": "kto",
            "strategy": "lora",
            "data": {"train": {"path": str(data), "streaming": True}},
            "train": {"steps": 1, "global_batch": 2},
        }
    )
    with pytest.raises(DtlError, match=r"data\.train\.streaming: task kto reads each row beside"):
        prepare_run(config)
