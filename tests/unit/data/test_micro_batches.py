"""The order of the data: each example once per epoch, independent of the layout."""

import itertools

import numpy as np
import pytest

from dtl.data.batching import Batching
from dtl.data.micro_batches import (
    accumulation_steps,
    count_padding,
    form_evaluation_batches,
    split_into_micro_batches,
)
from dtl.data.padding import pad_lengths

SIZES = (1, 2, 7, 16, 31, 64, 101)
LAYOUTS = tuple(itertools.product((1, 2, 3, 4, 8), (1, 2, 3, 5, 16)))  # ranks, micro-batch


class Philox:
    """Philox4x64-10 as published (Salmon et al. 2011, Random123), in plain Python."""

    WHOLE = 2**64

    def __init__(self, key, counter=0):
        self.key, self.counter, self.halves = key, counter, []

    def block(self):
        mixed = [self.counter, 0, 0, 0]
        key = list(self.key)
        for _ in range(10):
            high_0, low_0 = divmod(0xD2E7470EE14C6C93 * mixed[0], self.WHOLE)
            high_1, low_1 = divmod(0xCA5A826395121157 * mixed[2], self.WHOLE)
            mixed = [high_1 ^ mixed[1] ^ key[0], low_1, high_0 ^ mixed[3] ^ key[1], low_0]
            key[0] = (key[0] + 0x9E3779B97F4A7C15) % self.WHOLE
            key[1] = (key[1] + 0xBB67AE8584CAA73B) % self.WHOLE
        return mixed

    def next_32_bits(self):
        """numpy raises the counter first, then takes the lower half of each word first."""
        if not self.halves:
            self.counter += 1
            self.halves = [half for word in self.block() for half in (word % 2**32, word >> 32)]
        return self.halves.pop(0)

    def up_to(self, most):
        """Draw an integer from 0 to `most` with as few bits as possible; repeat if too large."""
        while True:
            drawn = self.next_32_bits() % 2 ** most.bit_length()
            if drawn <= most:
                return drawn


def reference_permutation(examples, seed, epoch):
    """Fisher-Yates from the last index down, with numbers from Philox."""
    numbers, philox = list(range(examples)), Philox((seed, epoch))
    for place in range(examples - 1, 0, -1):
        other = philox.up_to(place)
        numbers[place], numbers[other] = numbers[other], numbers[place]
    return numbers


def form_batches(examples, *, seed, epoch, global_batch):
    return Batching(examples, global_batch, seed).form_epoch(epoch)


def split_by_rank(batch, lengths, *, ranks, **limit):
    """Return the micro-batches of each rank."""
    steps = split_into_micro_batches(batch, lengths, data_parallel_size=ranks, **limit)
    return [[step[rank] for step in steps] for rank in range(ranks)]


def flatten(batches):
    return [int(number) for batch in batches for number in batch]


def uneven_lengths(examples):
    """Unsorted lengths with ties."""
    return np.array([(7 * number) % 23 + 1 for number in range(examples)])


def test_reference_philox_gives_the_published_numbers():
    """The known answer of Random123 for key 0, counter 0."""
    published = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert Philox((0, 0)).block() == published


@pytest.mark.parametrize(
    ("examples", "seed", "epoch"), [(2, 0, 0), (10, 0, 1), (97, 5, 3), (500, 2**32 - 1, 40)]
)
def test_order_matches_plain_python_philox(examples, seed, epoch):
    assert flatten(
        form_batches(examples, seed=seed, epoch=epoch, global_batch=4)
    ) == reference_permutation(examples, seed, epoch)


def test_order_of_two_seeds_is_that_of_the_first_release():
    """A change here changes every user's loss curve: it must be a decision, noted in CHANGELOG."""
    assert flatten(form_batches(10, seed=0, epoch=0, global_batch=3)) == [
        0,
        7,
        8,
        6,
        9,
        5,
        1,
        3,
        2,
        4,
    ]
    assert flatten(form_batches(10, seed=1, epoch=2, global_batch=3)) == [
        1,
        4,
        5,
        0,
        7,
        6,
        8,
        2,
        3,
        9,
    ]


@pytest.mark.parametrize("examples", SIZES)
@pytest.mark.parametrize("global_batch", [1, 4, 16, 200])
def test_epoch_has_every_example_once(examples, global_batch):
    batches = form_batches(examples, seed=3, epoch=2, global_batch=global_batch)
    assert sorted(flatten(batches)) == list(range(examples))
    assert len(batches) == Batching(examples, global_batch, 3).count_steps_in_epoch(2)
    assert all(len(batch) == global_batch for batch in batches[:-1])
    assert 1 <= len(batches[-1]) <= global_batch


def test_order_depends_on_seed_and_epoch_only():
    drawn = {
        (seed, epoch): tuple(flatten(form_batches(50, seed=seed, epoch=epoch, global_batch=8)))
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(set(drawn.values())) == 16
    np.random.seed(99)
    again = flatten(form_batches(50, seed=2, epoch=1, global_batch=8))
    assert tuple(again) == drawn[2, 1]


@pytest.mark.parametrize("global_batch", [1, 8, 50])
def test_batch_size_does_not_change_the_order(global_batch):
    whole = flatten(form_batches(50, seed=1, epoch=0, global_batch=50))
    assert flatten(form_batches(50, seed=1, epoch=0, global_batch=global_batch)) == whole


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
    batches = form_evaluation_batches(lengths, batch=batch)
    assert sorted(flatten(batches)) == list(range(examples))
    assert all(len(one) <= batch for one in batches)
    seen = [lengths[number] for number in flatten(batches)]
    assert seen == sorted(seen, reverse=True)
