"""The windows of each rank: the same from any start, and empty where there is nothing to do."""

from functools import partial

import pytest
import torch

from dtl.core.parallel_dims import ParallelDims
from dtl.data.batching import Batching
from dtl.data.cache.encoder import encode_rows
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
    """Example n holds its number, over and over; its first position is never learnt."""

    def encoder(row):
        length, targets = length_of(row.index), targets_of(row.index)
        labels = [IGNORED] * (length - targets) + [row.index] * targets
        return EncodedExample(
            {"input_ids": [row.index] * length, "labels": labels}, length, targets
        )

    rows = [Row(number, f"made:{number}", {}) for number in range(EXAMPLES)]
    return encode_rows(rows, encoder, key="loader", place="data.train")


def loader(data, *, rank=0, ranks=1, global_batch=8, micro_batch=3, seed=4):
    batching = Batching(len(data), global_batch, seed)
    return Loader(data, collate, batching, micro_batch, ParallelDims(ranks, rank))


def told(window):
    """All of a window as plain values."""
    batches = [
        (batch.ids, batch.targets, batch.weight, {k: v.tolist() for k, v in batch.tensors.items()})
        for batch in window.batches
    ]
    return (window.step, window.epoch, window.all_examples, window.all_targets, batches)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_run_that_starts_in_the_middle_sees_what_the_whole_run_saw(data, ranks):
    steps = 8  # three steps an epoch: the third epoch is under way
    for rank in range(ranks):
        mine = loader(data, rank=rank, ranks=ranks)
        whole = [told(window) for window in mine.windows(after_step=0, last_step=steps)]
        assert [window[0] for window in whole] == list(range(1, steps + 1))
        assert [window[1] for window in whole] == [0, 0, 0, 1, 1, 1, 2, 2]
        for start in range(steps + 1):
            fresh = loader(data, rank=rank, ranks=ranks)
            rest = [told(window) for window in fresh.windows(after_step=start, last_step=steps)]
            assert rest == whole[start:]


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_a_step_is_the_same_examples_and_targets_at_any_layout(data, ranks, micro_batch):
    for step in range(1, 7):
        alone = loader(data).window(step)
        windows = [
            loader(data, rank=rank, ranks=ranks, micro_batch=micro_batch).window(step)
            for rank in range(ranks)
        ]
        expected = sorted(number for batch in alone.batches for number in batch.ids)
        seen = [number for window in windows for batch in window.batches for number in batch.ids]
        assert sorted(seen) == expected
        targets = sum(batch.targets for window in windows for batch in window.batches)
        assert targets == sum(targets_of(number) for number in expected)
        assert {window.all_targets for window in windows} == {targets}
        assert {window.all_examples for window in windows} == {len(expected)}
        assert {window.all_length for window in windows} == {sum(map(length_of, expected))}
        assert len({len(window.batches) for window in windows}) == 1


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("micro_batch", [1, 2])
def test_batches_of_tokens_are_the_same_examples_at_any_layout(data, grouped, ranks, micro_batch):
    """Lengths go from 2 to 12, padded to 8 or 16: a micro-batch holds 16 or 32."""
    lengths = data.lengths
    batching = Batching(len(data), 40, 4, lengths, lengths if grouped else None)
    steps = batching.steps_in(3)
    loaders = [
        Loader(data, collate, batching, micro_batch, ParallelDims(ranks, rank))
        for rank in range(ranks)
    ]
    seen, together = [], 0
    for step in range(1, steps + 1):
        windows = [each.window(step) for each in loaders]
        batches = [batch for window in windows for batch in window.batches]
        ids = [number for batch in batches for number in batch.ids]
        assert sorted(ids) == sorted(windows[0].all_ids.tolist())
        assert sum(batch.targets for batch in batches) == windows[0].all_targets
        assert 0 < sum(map(length_of, ids)) == windows[0].all_length <= 40
        assert len({len(window.batches) for window in windows}) == 1
        assert all(batch.tensors["input_ids"].numel() <= 16 * micro_batch for batch in batches)
        assert {batch.weight for batch in batches if not batch.ids} <= {0.0}
        seen += ids
        together = max(together, *(len(batch.ids) for batch in batches))
    assert sorted(seen) == sorted(3 * list(range(EXAMPLES)))
    assert together > 1, "short ones share a micro-batch"
    fresh = Loader(
        data, collate, Batching(len(data), 40, 4, **batching.kept), micro_batch, ParallelDims(ranks)
    )
    assert told(fresh.window(steps)) == told(loaders[0].window(steps))


def test_an_epoch_of_windows_holds_every_example_once(data):
    for epoch in range(3):
        windows = loader(data).windows(after_step=3 * epoch, last_step=3 * epoch + 3)
        seen = [number for window in windows for batch in window.batches for number in batch.ids]
        assert sorted(seen) == list(range(EXAMPLES))


def test_a_rank_without_examples_calls_the_model_at_weight_zero(data):
    """Global batches of one example, on three ranks: two ranks of three have nothing."""
    windows = [loader(data, rank=rank, ranks=3, global_batch=1).window(1) for rank in range(3)]
    batches = [window.batches[0] for window in windows]
    assert [len(window.batches) for window in windows] == [1, 1, 1]
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
def test_every_held_out_example_is_seen_once_in_the_same_batches(data, ranks, batch):
    alone = [
        one.ids
        for one in iter_evaluation_batches(data, collate, batch=batch, parallel_dims=ParallelDims())
    ]
    dealt = [
        list(
            iter_evaluation_batches(
                data, collate, batch=batch, parallel_dims=ParallelDims(ranks, rank)
            )
        )
        for rank in range(ranks)
    ]
    assert len({len(mine) for mine in dealt}) == 1
    seen = [one.ids for mine in dealt for one in mine if one.ids]
    assert sorted(seen) == sorted(alone)
    assert sorted(number for ids in seen for number in ids) == list(range(EXAMPLES))
    assert all(
        one.weight == 0.0 and one.targets == 0 for mine in dealt for one in mine if not one.ids
    )


def test_a_fault_while_reading_ahead_reaches_the_loop(data):
    def broken(examples):
        raise ZeroDivisionError

    windows = Loader(data, broken, Batching(len(data), 8, 0), 3, ParallelDims()).windows(
        after_step=0, last_step=3
    )
    with pytest.raises(ZeroDivisionError):
        next(windows)


def test_no_steps_left_is_no_windows(data):
    assert list(loader(data).windows(after_step=5, last_step=5)) == []
