"""The trials that every task passes. A new file in dtl/tasks/ needs a line in CASES."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dtl.config import registry
from dtl.data.cache.encoder import convert_to_stored_dtypes, encode_rows
from dtl.data.sources.rows import Row
from dtl.models.processor import get_pad_token_id
from dtl.models.structure.head import head_modules
from dtl.models.structure.module_kinds import batch_norms
from tests.task_bench import CASES, TRIALS, Bench, Case, make_bench, make_rows


@pytest.fixture(
    params=TRIALS, ids=lambda trial: f"{trial[0]}-{trial[1]}-{CASES[trial[0]][trial[1]].base}"
)
def trial(request) -> tuple[Case, Bench]:
    name, index = request.param
    case = CASES[name][index]
    return case, make_bench(request.getfixturevalue(case.base), name, index)


@pytest.fixture
def bench(trial) -> Bench:
    return trial[1]


def test_every_task_has_a_case():
    missing = [name for name in registry.list_names("tasks") if name not in CASES]
    assert not missing, (
        f"no trial for the tasks {missing}: add to CASES in {Path(__file__).name} a tiny model (a "
        "fixture of tests/conftest.py) and nine rows of uneven length, the longest one last"
    )


# Contracts of every task -------------------------------------------------------------------------


def test_loss_of_a_batch_is_the_sum_over_its_parts(bench):
    full = bench.loss(bench.all)
    assert full == pytest.approx(bench.loss([0, 1, 2]) + bench.loss(bench.all[3:]), rel=1e-5)
    assert full == pytest.approx(sum(bench.loss([index]) for index in bench.all), rel=1e-5)


def test_the_loss_is_one_number_in_fp32(bench):
    loss = bench.task.loss(bench.model, bench.collate([0, 1]))
    assert (loss.shape, loss.dtype, loss.requires_grad) == ((), torch.float32, True)


def test_no_example_is_longer_than_max_length(bench):
    assert 0 < max(example.length for example in bench.encoded) <= bench.longest


def test_streamed_example_equals_the_cached_one(bench, cache):
    """Bitwise, in the batch that the model reads."""
    rows = [Row(index, "", {}) for index in bench.all]
    data = encode_rows(rows, lambda row: bench.encoded[row.index], key="k", location="data.train")
    for number in bench.all:
        one, other = (
            bench.task.collate(
                [bench.task.transform(values, processor=bench.processor, rng=None)], pad_token_id=0
            )
            for values in (data[number], convert_to_stored_dtypes(bench.encoded[number].values))
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_more_padding_changes_nothing(bench):
    """Beside the longest example, the others are padded to its length; pictures are not."""
    narrow = bench.collate([0, 1])
    wide = {name: tensor[:2] for name, tensor in bench.collate([0, 1, bench.all[-1]]).items()}
    if bench.task.processor_kind in ("tokenizer", "processor"):
        assert any(wide[name].shape != tensor.shape for name, tensor in narrow.items())
    with torch.no_grad():
        losses = [bench.task.loss(bench.model, batch).item() for batch in (narrow, wide)]
        first, second = [
            bench.task.join_records(
                bench.task.eval_records(bench.model, batch, processor=bench.processor)
            )
            for batch in (narrow, wide)
        ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert other[name] == nearly(value)


def nearly(value: Any) -> Any:
    """Return what a value is compared with: numbers and lists of numbers need not be exact."""
    values = list(value.values()) if isinstance(value, dict) else value
    numbers = values if isinstance(values, list) else [values]
    is_float = bool(numbers) and all(isinstance(number, float) for number in numbers)
    return pytest.approx(value, rel=1e-5, abs=1e-6) if is_float else value


def test_number_of_targets_is_that_of_the_loss(trial):
    """A head of zeros is undecided between all classes: each target then costs log(classes)."""
    case, bench = trial
    assert all(example.targets > 0 for example in bench.encoded)
    if case.classes is None:
        return
    heads = [parameter for module in head_modules(bench.model) for parameter in module.parameters()]
    retained = [parameter.detach().clone() for parameter in heads]
    try:
        for parameter in heads:
            parameter.data.zero_()
        for index, example in enumerate(bench.encoded):
            expected = example.targets * math.log(case.classes)
            assert bench.loss([index]) == pytest.approx(expected, rel=1e-5)
    finally:
        for parameter, value in zip(heads, retained, strict=True):
            parameter.data.copy_(value)


def test_lengths_are_what_the_model_reads(bench):
    """A decoder beside the encoder reads as many tokens as it is to write."""
    if "attention_mask" not in bench.collate([0]):
        pytest.skip("the model always reads as much")
    two = getattr(bench.model.config, "is_encoder_decoder", False)
    for index, example in enumerate(bench.encoded):
        read = positions(bench.model, bench.collate([index])["attention_mask"])
        assert read + two * example.targets == example.length


def positions(model: Any, mask: torch.Tensor) -> int:
    """Of the encoder, which may read several frames as one position; Whisper also reads silence."""
    kind = model.config.model_type
    if kind == "whisper":
        return model.config.max_source_positions
    frames = mask.sum()
    if kind == "speech_to_text":
        return int(model.get_encoder()._get_feat_extract_output_lengths(frames))
    if hasattr(model, "_get_feat_extract_output_lengths"):  # of samples
        return int(model._get_feat_extract_output_lengths(frames))
    return int(frames)


def test_records_of_any_split_give_the_same_scores(bench):
    """However the examples are dealt out; and in any order, to the last digit."""
    full = bench.joined_records(bench.all)
    assert len(full) == len(bench.all)
    assert json.loads(json.dumps(full)) == full
    read = [bench.task.describe_prediction(record, bench.dataset_stats) for record in full]
    assert all(
        isinstance(text, str | None) for one in read for text in (one.expected, one.predicted)
    )
    scores = bench.task.score(full, bench.dataset_stats)
    for size in (1, 2, 5):
        parts = [bench.all[start : start + size] for start in range(0, len(bench.all), size)]
        joined = [record for part in parts for record in bench.eval_records(part)]
        joined = bench.task.join_records(joined)
        near = pytest.approx(scores, rel=1e-5, abs=1e-6)
        assert bench.task.score(joined, bench.dataset_stats) == near
    shuffled = random.Random(1).sample(full, len(full))
    assert bench.task.score(shuffled, bench.dataset_stats) == scores
    assert all(type(value) in (int, float) for value in scores.values())


def test_metric_is_one_of_the_scores(bench):
    scores = bench.task.score(bench.joined_records(bench.all), bench.dataset_stats)
    assert bench.task.metric.name in scores


def test_metric_is_a_function_of_summed_counts(bench):
    """Also of every sample of examples that a bootstrap draws, all at once."""
    records, name = bench.joined_records(bench.all), bench.task.metric.name
    counts = bench.task.metric_counts(records, bench.dataset_stats)
    assert counts.dtype == np.float64 and len(counts) == len(records)
    full = bench.task.metric_from_counts(counts.sum(0))
    assert float(full) == pytest.approx(
        bench.task.score(records, bench.dataset_stats)[name], rel=1e-9
    )
    weights = np.random.default_rng(0).multinomial(9, [1 / 9] * 9, size=(2, 3))
    values = bench.task.metric_from_counts(weights @ counts)
    assert values.shape == (2, 3)
    for value, times in zip(values.flat, weights.reshape(6, 9), strict=True):
        sample = [records[index] for index in range(9) for _ in range(times[index])]
        expected = bench.task.score(sample, bench.dataset_stats)[name]
        assert float(value) == pytest.approx(expected, rel=1e-9)


def test_rows_without_targets_get_a_prediction(trial):
    """Of a row with its answer taken out; alone or among others, it is the same one."""
    case, bench = trial
    answers = {"label", "score", "tags", "target"}
    if bench.task.media_column:
        answers.add("text")
    if not {"label", "score"} & case.rows[0].keys():  # else they are those of the completion
        answers.add("completion")
    bare = [{key: row[key] for key in row.keys() - answers} for row in case.rows]
    rows = make_rows(
        [bench.task.with_placeholder_target(fields, bench.dataset_stats) for fields in bare]
    )
    assert [bench.task.find_row_fault(row) for row in rows] == [None] * len(rows)
    encode = bench.task.prompt_encoder(bench.processor, bench.dataset_stats, bench.model.config)
    values = [encode(row).values for row in rows]

    def predict(some: list[Any]) -> list[dict[str, Any]]:
        shown = [bench.task.transform(one, processor=bench.processor, rng=None) for one in some]
        batch = bench.task.collate(shown, pad_token_id=get_pad_token_id(bench.processor) or 0)
        how = {
            "processor": bench.processor,
            "dataset_stats": bench.dataset_stats,
            "max_new_tokens": 6,
        }
        with torch.no_grad():
            return bench.task.predict(bench.model, batch, **how)

    together = predict(values)
    assert json.loads(json.dumps(together)) == together
    alone = [found for one in values for found in predict([one])]
    assert [one["predicted"] for one in alone] == [nearly(one["predicted"]) for one in together]


def test_loss_of_the_scores_is_that_of_training(bench):
    targets = sum(example.targets for example in bench.encoded)
    scores = bench.task.score(bench.joined_records(bench.all), bench.dataset_stats)
    assert scores["loss"] == pytest.approx(bench.loss(bench.all) / targets, rel=1e-5)


def test_a_few_steps_on_four_examples_overfit(bench):
    import copy

    torch.manual_seed(0)  # of dropout
    model = copy.deepcopy(bench.model).train()
    for module in batch_norms(model):
        module.eval()  # as in a run
    batch = bench.collate([0, 1, 2, 3])
    targets = sum(bench.encoded[index].targets for index in range(4))
    aligns = (
        bench.task.auto_class == "AutoModelForCTC"
    )  # for which CTC needs more and gentler steps
    is_gentle = aligns or bench.task.reads_partner  # else the KL divergence of KTO oscillates
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3 if is_gentle else 1e-2)
    losses = []
    for _ in range(240 if aligns else 80):
        loss = bench.task.loss(model, batch) / targets
        loss.backward()
        if aligns:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    with torch.no_grad():
        last = float(bench.task.loss(model.eval(), batch) / targets)
        assert last < 0.1 * losses[0]
        records = bench.task.eval_records(model.eval(), batch, processor=bench.processor)
    scores = bench.task.score(bench.task.join_records(records), bench.dataset_stats)
    assert scores.get("accuracy", 1 - scores.get("cer", 0)) > 0.95


def test_every_row_of_the_trials_is_without_fault(trial):
    case, bench = trial
    assert [bench.task.find_row_fault(row) for row in make_rows(case.rows)] == [None] * len(
        case.rows
    )
