"""Micro-batches: complete, equally many on each rank, with little padding."""

import itertools

import numpy as np
import pytest

from dtl.data.evaluation_batch import EvaluationBatchSize
from dtl.data.micro_batches import (
    accumulation_steps,
    count_padding,
    examples_of_longest,
    form_evaluation_batches,
    split_into_micro_batches,
)
from dtl.data.padding import pad_lengths
from tests.unit.data.epochs import flatten, form_batches

SIZES = (1, 2, 7, 16, 31, 64, 101)
LAYOUTS = tuple(itertools.product((1, 2, 3, 4, 8), (1, 2, 3, 5, 16)))  # ranks, micro-batch


def split_by_rank(batch, lengths, *, ranks, **limit):
    """Return the micro-batches of each rank."""
    steps = split_into_micro_batches(batch, lengths, data_parallel_size=ranks, **limit)
    return [[step[rank] for step in steps] for rank in range(ranks)]


def uneven_lengths(examples):
    """Unsorted lengths with ties."""
    return np.array([(7 * number) % 23 + 1 for number in range(examples)])


@pytest.mark.parametrize(("ranks", "micro_batch"), LAYOUTS)
def test_micro_batches_of_all_ranks_are_the_global_batch(ranks, micro_batch):
    lengths = uneven_lengths(300)
    for size in SIZES:
        batch = form_batches(300, seed=size, epoch=0, global_batch=size)[0]
        by_rank = split_by_rank(batch, lengths, ranks=ranks, micro_batch=micro_batch)
        assert sorted(flatten(itertools.chain(*by_rank))) == sorted(batch.tolist())
        assert {len(micro_batches) for micro_batches in by_rank} == {
            -(-size // (ranks * micro_batch)) or 1
        }
        assert all(len(one) <= micro_batch for micro_batches in by_rank for one in micro_batches)


@pytest.mark.parametrize(("ranks", "micro_batch"), LAYOUTS)
def test_ranks_have_examples_of_similar_length_in_each_step(ranks, micro_batch):
    """Lengths never rise over steps, nor over the ranks of a step; sizes differ by at most one."""
    lengths = uneven_lengths(64)
    batch = form_batches(64, seed=0, epoch=0, global_batch=64)[0]
    by_rank = split_by_rank(batch, lengths, ranks=ranks, micro_batch=micro_batch)
    in_time = [micro_batches[step] for step in range(len(by_rank[0])) for micro_batches in by_rank]
    seen = [lengths[number] for number in flatten(in_time)]
    assert seen == sorted(seen, reverse=True)
    sizes = {len(one) for one in in_time}
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("max_padded_size", [24, 64, 500])
@pytest.mark.parametrize("seed", range(4))
def test_micro_batches_within_padded_size_are_complete_and_equally_many(
    ranks, max_padded_size, seed
):
    lengths = np.random.default_rng(seed).geometric(0.2, 200).clip(1, 24)
    for size in SIZES:
        batch = form_batches(200, seed=size, epoch=0, global_batch=size)[0]
        by_rank = split_by_rank(
            batch, lengths, ranks=ranks, micro_batch=1, max_padded_size=max_padded_size
        )
        assert sorted(flatten(itertools.chain(*by_rank))) == sorted(batch.tolist())
        assert len({len(micro_batches) for micro_batches in by_rank}) == 1
        in_time = [
            micro_batches[step] for step in range(len(by_rank[0])) for micro_batches in by_rank
        ]
        seen = [lengths[number] for number in flatten(in_time)]
        assert seen == sorted(seen, reverse=True)
        assert all(
            len(one) * int(pad_lengths(lengths[one]).max()) <= max_padded_size
            for one in in_time
            if len(one)
        )
        assert any(len(one) for one in in_time[-ranks:]), "no step is empty"


def test_micro_batches_within_padded_size_match_a_worked_example():
    """Lengths 20, 9, 8, 3, 2, 1 are padded to 24, 16 and four times 8. Within a padded size of 32
    they need three micro-batches, so two steps of two ranks: the smallest possible maximum is 24 in
    the first step (with 9 on the other rank) and 16 in the second."""
    lengths = np.array([3, 20, 8, 1, 9, 2])
    steps = split_into_micro_batches(
        np.arange(6), lengths, data_parallel_size=2, micro_batch=1, max_padded_size=32
    )
    assert [[one.tolist() for one in step] for step in steps] == [[[1], [4]], [[2, 0], [5, 3]]]
    # 20 and 9 alone; 8 with 3 takes 16, of which 5 are padding; 2 with 1 takes 4, of which 1 is.
    assert count_padding(steps, lengths) == (20 + 9 + 16 + 4, 5 + 1)


def smallest_maximum(widths, *, slots):
    """Try every way to split neighbors into this many runs: the smallest maximum."""
    places = range(1, len(widths))
    cuts = itertools.chain(*(itertools.combinations(places, n) for n in range(slots)))
    return min(
        max(
            (end - start) * widths[start]
            for start, end in itertools.pairwise((0, *cut, len(widths)))
        )
        for cut in cuts
    )


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_micro_batches_within_padded_size_minimize_the_largest(ranks, seed):
    lengths = np.random.default_rng(seed).geometric(0.1, 9).clip(1, 40)
    max_padded_size = 2 * int(pad_lengths(lengths).max())
    steps = split_into_micro_batches(
        np.arange(9),
        lengths,
        data_parallel_size=ranks,
        micro_batch=1,
        max_padded_size=max_padded_size,
    )
    widths = sorted(pad_lengths(lengths).tolist(), reverse=True)
    largest = max(
        len(one) * int(pad_lengths(lengths[one]).max())
        for step in steps
        for one in step
        if len(one)
    )
    assert largest == smallest_maximum(widths, slots=ranks * len(steps))
    if len(steps) > 1:
        assert smallest_maximum(widths, slots=ranks * (len(steps) - 1)) > max_padded_size, (
            "one step fewer is not enough"
        )


@pytest.mark.parametrize(
    ("examples", "ranks", "micro_batch", "steps"),
    [(16, 2, 4, 2), (16, 2, 8, 1), (17, 2, 8, 2), (1, 4, 8, 1), (0, 2, 4, 1), (100, 3, 5, 7)],
)
def test_accumulation_steps_are_as_few_as_possible(examples, ranks, micro_batch, steps):
    assert accumulation_steps(examples, data_parallel_size=ranks, micro_batch=micro_batch) == steps


@pytest.mark.parametrize("examples", SIZES)
@pytest.mark.parametrize("batch", [1, 4, 16])
def test_evaluation_has_every_example_once_longest_first(examples, batch):
    lengths = uneven_lengths(examples)
    batches = form_evaluation_batches(lengths, size=EvaluationBatchSize(batch))
    assert sorted(flatten(batches)) == list(range(examples))
    assert all(len(one) <= batch for one in batches)
    seen = [lengths[number] for number in flatten(batches)]
    assert seen == sorted(seen, reverse=True)


@pytest.mark.parametrize("padded_size", [8, 64, 1000])
def test_evaluation_batch_holds_as_many_positions_as_allowed(padded_size):
    lengths = uneven_lengths(60)
    size = EvaluationBatchSize(16, padded_size)
    batches = form_evaluation_batches(lengths, size=size)
    assert sorted(flatten(batches)) == list(range(60))
    for batch in batches:
        width = pad_lengths(lengths[batch]).max()
        assert len(batch) == 1 or (len(batch) <= 16 and len(batch) * width <= padded_size)
    assert len(batches[0]) == examples_of_longest(size, lengths) or len(batches) == 1
