"""The step batches of each rank: the same from any start, and empty if there is nothing to do."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from dtl.core.parallel_dims import ParallelDims
from dtl.data.batching import Batching
from dtl.data.cache.encoder import encode_rows
from dtl.data.evaluation_batch import EvaluationBatchSize
from dtl.data.example import EncodedExample
from dtl.data.loader import Loader, iter_evaluation_batches, load_batch
from dtl.data.sources.rows import Row
from dtl.tasks import causal_lm

EXAMPLES = 23
IGNORED = -100
PAD = 9
collate = partial(causal_lm.Plugin(causal_lm.Options()).collate, pad_token_id=PAD)


def length_of(number):
    return 2 + (number * 5) % 11


def targets_of(number):
    return 1 + number % 2


@pytest.fixture
def data(cache):
    """Example n repeats its number n; its first position is never supervised."""

    def encoder(row):
        length, targets = length_of(row.index), targets_of(row.index)
        labels = [IGNORED] * (length - targets) + [row.index] * targets
        return EncodedExample(
            {"input_ids": [row.index] * length, "labels": labels}, length, targets
        )

    rows = [Row(number, f"made:{number}", {}) for number in range(EXAMPLES)]
    return encode_rows(rows, encoder, key="loader", location="data.train")


def create_loader(data, *, rank=0, ranks=1, global_batch=8, micro_batch=3, seed=4):
    batching = Batching(len(data), global_batch, seed)
    return Loader(data, collate, batching, micro_batch, ParallelDims(ranks, rank))


def to_plain(step_batches):
    """Return the step batches as plain values."""
    batches = [
        (batch.ids, batch.targets, batch.weight, {k: v.tolist() for k, v in batch.tensors.items()})
        for batch in step_batches.batches
    ]
    return (
        step_batches.step,
        step_batches.epoch,
        step_batches.global_examples,
        step_batches.global_targets,
        batches,
    )


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_loading_from_any_step_gives_the_same_batches(data, ranks):
    steps = 8  # three steps an epoch: the third epoch is under way
    for rank in range(ranks):
        rank_batches = create_loader(data, rank=rank, ranks=ranks)
        complete = [
            to_plain(step_batches)
            for step_batches in rank_batches.iter_steps(after_step=0, last_step=steps)
        ]
        assert [step_batches[0] for step_batches in complete] == list(range(1, steps + 1))
        assert [step_batches[1] for step_batches in complete] == [0, 0, 0, 1, 1, 1, 2, 2]
        for start in range(steps + 1):
            fresh = create_loader(data, rank=rank, ranks=ranks)
            rest = [
                to_plain(step_batches)
                for step_batches in fresh.iter_steps(after_step=start, last_step=steps)
            ]
            assert rest == complete[start:]


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_step_has_the_same_examples_on_any_layout(data, ranks, micro_batch):
    for step in range(1, 7):
        single = create_loader(data).load_step(step)
        steps_of_ranks = [
            create_loader(data, rank=rank, ranks=ranks, micro_batch=micro_batch).load_step(step)
            for rank in range(ranks)
        ]
        expected = sorted(number for batch in single.batches for number in batch.ids)
        seen = [
            number
            for step_batches in steps_of_ranks
            for batch in step_batches.batches
            for number in batch.ids
        ]
        assert sorted(seen) == expected
        targets = sum(
            batch.targets for step_batches in steps_of_ranks for batch in step_batches.batches
        )
        assert targets == sum(targets_of(number) for number in expected)
        assert {step_batches.global_targets for step_batches in steps_of_ranks} == {targets}
        assert {step_batches.global_examples for step_batches in steps_of_ranks} == {len(expected)}
        assert {step_batches.global_length for step_batches in steps_of_ranks} == {
            sum(map(length_of, expected))
        }
        assert len({len(step_batches.batches) for step_batches in steps_of_ranks}) == 1


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("micro_batch", [1, 2])
def test_token_batches_have_the_same_examples_on_any_layout(data, grouped, ranks, micro_batch):
    """Lengths go from 2 to 12, padded to 8 or 16: a micro-batch holds 16 or 32."""
    lengths = data.lengths
    batching = Batching(len(data), 40, 4, lengths, lengths if grouped else None)
    steps = batching.count_steps(3)
    loaders = [
        Loader(data, collate, batching, micro_batch, ParallelDims(ranks, rank))
        for rank in range(ranks)
    ]
    seen, together = [], 0
    for step in range(1, steps + 1):
        steps_of_ranks = [each.load_step(step) for each in loaders]
        batches = [batch for step_batches in steps_of_ranks for batch in step_batches.batches]
        ids = [number for batch in batches for number in batch.ids]
        assert sorted(ids) == sorted(steps_of_ranks[0].global_ids.tolist())
        assert sum(batch.targets for batch in batches) == steps_of_ranks[0].global_targets
        assert 0 < sum(map(length_of, ids)) == steps_of_ranks[0].global_length <= 40
        assert len({len(step_batches.batches) for step_batches in steps_of_ranks}) == 1
        assert all(batch.tensors["input_ids"].numel() <= 16 * micro_batch for batch in batches)
        assert {batch.weight for batch in batches if not batch.ids} <= {0.0}
        seen += ids
        together = max(together, *(len(batch.ids) for batch in batches))
    assert sorted(seen) == sorted(3 * list(range(EXAMPLES)))
    assert together > 1, "short examples share a micro-batch"
    fresh = Loader(
        data,
        collate,
        Batching(len(data), 40, 4, **batching.stored_arrays),
        micro_batch,
        ParallelDims(ranks),
    )
    assert to_plain(fresh.load_step(steps)) == to_plain(loaders[0].load_step(steps))


def test_steps_of_an_epoch_have_every_example_once(data):
    for epoch in range(3):
        steps_of_ranks = create_loader(data).iter_steps(
            after_step=3 * epoch, last_step=3 * epoch + 3
        )
        seen = [
            number
            for step_batches in steps_of_ranks
            for batch in step_batches.batches
            for number in batch.ids
        ]
        assert sorted(seen) == list(range(EXAMPLES))


def test_rank_without_examples_gets_a_batch_with_weight_zero(data):
    """Global batches of one example, on three ranks: two ranks of three have nothing."""
    steps_of_ranks = [
        create_loader(data, rank=rank, ranks=3, global_batch=1).load_step(1) for rank in range(3)
    ]
    batches = [step_batches.batches[0] for step_batches in steps_of_ranks]
    assert [len(step_batches.batches) for step_batches in steps_of_ranks] == [1, 1, 1]
    assert [batch.weight for batch in batches] == [1.0, 0.0, 0.0]
    assert [len(batch.ids) for batch in batches] == [1, 0, 0]
    assert [batch.targets > 0 for batch in batches] == [True, False, False]
    shortest = min(range(EXAMPLES), key=length_of)
    for batch in batches[1:]:
        assert batch.targets == 0
        assert batch.tensors["input_ids"][0, : length_of(shortest)].eq(shortest).all()
        assert batch.tensors["input_ids"].shape == (1, 8)


def test_padding_and_labels_are_exact(data):
    """Lengths 2, 7, 2 (examples 0, 1, 11) are padded to the next multiple of 8, on the right."""
    assert [length_of(number) for number in (0, 1, 11)] == [2, 7, 2]
    batch = load_batch(
        data, torch.tensor([0, 1, 11]).numpy(), lambda ids: collate([data[i] for i in ids])
    )
    no = IGNORED
    assert batch.tensors["input_ids"].tolist() == [
        [0, 0, 9, 9, 9, 9, 9, 9],
        [1, 1, 1, 1, 1, 1, 1, 9],
        [11, 11, 9, 9, 9, 9, 9, 9],
    ]
    assert batch.tensors["attention_mask"].tolist() == [
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
    ]
    assert batch.tensors["labels"].tolist() == [
        [no, 0, no, no, no, no, no, no],
        [no, no, no, no, no, 1, 1, no],
        [11, 11, no, no, no, no, no, no],
    ]
    assert (batch.targets, batch.ids, batch.weight) == (5, (0, 1, 11), 1.0)


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("batch", [1, 4, 50])
def test_evaluation_batches_do_not_depend_on_ranks(data, ranks, batch):
    single = [
        one.ids
        for one in iter_evaluation_batches(
            data, collate, size=EvaluationBatchSize(batch), parallel_dims=ParallelDims()
        )
    ]
    by_rank = [
        list(
            iter_evaluation_batches(
                data,
                collate,
                size=EvaluationBatchSize(batch),
                parallel_dims=ParallelDims(ranks, rank),
            )
        )
        for rank in range(ranks)
    ]
    assert len({len(rank_batches) for rank_batches in by_rank}) == 1
    seen = [one.ids for rank_batches in by_rank for one in rank_batches if one.ids]
    assert sorted(seen) == sorted(single)
    assert sorted(number for ids in seen for number in ids) == list(range(EXAMPLES))
    assert all(
        one.weight == 0.0 and one.targets == 0
        for rank_batches in by_rank
        for one in rank_batches
        if not one.ids
    )


def test_error_while_prefetching_is_raised(data):
    def broken(examples):
        raise ZeroDivisionError

    steps_of_ranks = Loader(data, broken, Batching(len(data), 8, 0), 3, ParallelDims()).iter_steps(
        after_step=0, last_step=3
    )
    with pytest.raises(ZeroDivisionError):
        next(steps_of_ranks)


def test_no_remaining_steps_load_nothing(data):
    assert list(create_loader(data).iter_steps(after_step=5, last_step=5)) == []


@pytest.mark.parametrize("kind", ["training", "evaluation"])
@pytest.mark.parametrize(("device", "is_pinned"), [("cpu", False), ("cuda", True)])
def test_batches_for_a_gpu_are_in_pinned_memory(data, monkeypatch, kind, device, is_pinned):
    pinned, threads = [], []
    monkeypatch.setattr(
        torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor.clone()
    )
    monkeypatch.setattr(torch.cuda, "set_device", threads.append)
    device = torch.device(device, 1) if device == "cuda" else torch.device(device)
    if kind == "training":
        loader = replace(create_loader(data), device=device)
        steps = list(loader.iter_steps(after_step=0, last_step=3))
        batches = [batch for step in steps for batch in step.batches]
        assert threads == [device] * is_pinned, "the thread that pins uses the GPU of this rank"
    else:
        batches = list(
            iter_evaluation_batches(
                data,
                collate,
                size=EvaluationBatchSize(4),
                parallel_dims=ParallelDims(),
                device=device,
            )
        )
    assert len(pinned) == is_pinned * sum(len(batch.tensors) for batch in batches)
