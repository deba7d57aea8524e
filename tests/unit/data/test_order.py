"""Who reads what, and when: nothing is lost, nothing is read twice, no layout decides."""

import itertools

import numpy as np
import pytest

from dtl.data.batching import Batching
from dtl.data.order import (
    accumulation_steps,
    count_padding,
    form_evaluation_batches,
    pad_lengths,
    split_into_micro_batches,
)

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
        """A whole number from 0 to `most`: as many bits as it takes, drawn anew while too large."""
        while True:
            drawn = self.next_32_bits() % 2 ** most.bit_length()
            if drawn <= most:
                return drawn


def shuffled(examples, seed, epoch):
    """Fisher-Yates from the last place down, drawn from Philox."""
    numbers, draw = list(range(examples)), Philox((seed, epoch))
    for place in range(examples - 1, 0, -1):
        other = draw.up_to(place)
        numbers[place], numbers[other] = numbers[other], numbers[place]
    return numbers


def order(examples, *, seed, epoch, global_batch):
    return Batching(examples, global_batch, seed).epoch(epoch)


def dealt(batch, lengths, *, ranks, **limit):
    """What each rank runs."""
    turns = split_into_micro_batches(batch, lengths, data_parallel_size=ranks, **limit)
    return [[turn[rank] for turn in turns] for rank in range(ranks)]


def joined(batches):
    return [int(number) for batch in batches for number in batch]


def uneven_lengths(examples):
    """Lengths with ties, in no order."""
    return np.array([(7 * number) % 23 + 1 for number in range(examples)])


def test_the_reference_generator_gives_the_published_numbers():
    """The known answer of Random123 for key 0, counter 0."""
    published = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert Philox((0, 0)).block() == published


@pytest.mark.parametrize(
    ("examples", "seed", "epoch"), [(2, 0, 0), (10, 0, 1), (97, 5, 3), (500, 2**32 - 1, 40)]
)
def test_the_order_is_what_plain_python_draws(examples, seed, epoch):
    assert joined(order(examples, seed=seed, epoch=epoch, global_batch=4)) == shuffled(
        examples, seed, epoch
    )


def test_the_order_of_two_seeds_and_epochs_is_as_it_was_in_the_first_release():
    """A change here changes every user's loss curve: it must be a decision, told in CHANGELOG."""
    assert joined(order(10, seed=0, epoch=0, global_batch=3)) == [0, 7, 8, 6, 9, 5, 1, 3, 2, 4]
    assert joined(order(10, seed=1, epoch=2, global_batch=3)) == [1, 4, 5, 0, 7, 6, 8, 2, 3, 9]


@pytest.mark.parametrize("examples", SIZES)
@pytest.mark.parametrize("global_batch", [1, 4, 16, 200])
def test_an_epoch_holds_every_example_once(examples, global_batch):
    batches = order(examples, seed=3, epoch=2, global_batch=global_batch)
    assert sorted(joined(batches)) == list(range(examples))
    assert len(batches) == Batching(examples, global_batch, 3).steps_of(2)
    assert all(len(batch) == global_batch for batch in batches[:-1])
    assert 1 <= len(batches[-1]) <= global_batch


def test_seeds_and_epochs_differ_and_can_be_repeated():
    drawn = {
        (seed, epoch): tuple(joined(order(50, seed=seed, epoch=epoch, global_batch=8)))
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(set(drawn.values())) == 16
    np.random.seed(99)
    again = joined(order(50, seed=2, epoch=1, global_batch=8))
    assert tuple(again) == drawn[2, 1]


@pytest.mark.parametrize("global_batch", [1, 8, 50])
def test_the_batch_size_cuts_the_order_but_does_not_change_it(global_batch):
    whole = joined(order(50, seed=1, epoch=0, global_batch=50))
    assert joined(order(50, seed=1, epoch=0, global_batch=global_batch)) == whole


@pytest.mark.parametrize(("ranks", "micro_batch"), LAYOUTS)
def test_the_shares_of_all_ranks_are_the_global_batch(ranks, micro_batch):
    lengths = uneven_lengths(300)
    for size in SIZES:
        batch = order(300, seed=size, epoch=0, global_batch=size)[0]
        shares = dealt(batch, lengths, ranks=ranks, micro_batch=micro_batch)
        assert sorted(joined(itertools.chain(*shares))) == sorted(batch.tolist())
        assert {len(mine) for mine in shares} == {-(-size // (ranks * micro_batch)) or 1}
        assert all(len(one) <= micro_batch for mine in shares for one in mine)


@pytest.mark.parametrize(("ranks", "micro_batch"), LAYOUTS)
def test_at_one_moment_the_ranks_have_examples_of_like_length(ranks, micro_batch):
    """Over turns and, within a turn, over ranks, lengths never rise; numbers differ by one."""
    lengths = uneven_lengths(64)
    batch = order(64, seed=0, epoch=0, global_batch=64)[0]
    shares = dealt(batch, lengths, ranks=ranks, micro_batch=micro_batch)
    in_time = [mine[turn] for turn in range(len(shares[0])) for mine in shares]
    seen = [lengths[number] for number in joined(in_time)]
    assert seen == sorted(seen, reverse=True)
    sizes = {len(one) for one in in_time}
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("room", [24, 64, 500])
@pytest.mark.parametrize("seed", range(4))
def test_by_room_every_rank_has_as_many_micro_batches_and_none_is_larger(ranks, room, seed):
    lengths = np.random.default_rng(seed).geometric(0.2, 200).clip(1, 24)
    for size in SIZES:
        batch = order(200, seed=size, epoch=0, global_batch=size)[0]
        shares = dealt(batch, lengths, ranks=ranks, micro_batch=1, room=room)
        assert sorted(joined(itertools.chain(*shares))) == sorted(batch.tolist())
        assert len({len(mine) for mine in shares}) == 1
        in_time = [mine[turn] for turn in range(len(shares[0])) for mine in shares]
        seen = [lengths[number] for number in joined(in_time)]
        assert seen == sorted(seen, reverse=True)
        assert all(
            len(one) * int(pad_lengths(lengths[one]).max()) <= room for one in in_time if len(one)
        )
        assert any(len(one) for one in in_time[-ranks:]), "no turn without examples"


def test_by_room_by_hand():
    """Lengths 20, 9, 8, 3, 2, 1 pad to 24, 16 and four times 8. In room for 32 they take three
    micro-batches, so two turns of two ranks: the least of the first is 24, with 9 beside it, and of
    the second 16."""
    lengths = np.array([3, 20, 8, 1, 9, 2])
    turns = split_into_micro_batches(
        np.arange(6), lengths, data_parallel_size=2, micro_batch=1, room=32
    )
    assert [[one.tolist() for one in turn] for turn in turns] == [[[1], [4]], [[2, 0], [5, 3]]]
    # 20 and 9 alone; 8 beside 3 holds 16, of which 5 are empty; 2 beside 1 holds 4, and 1 is.
    assert count_padding(turns, lengths) == (20 + 9 + 16 + 4, 5 + 1)


def least_for_the_slowest(widths, *, slots):
    """By trying every way to cut neighbours into so many runs: the least of the largest."""
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
def test_by_room_the_slowest_rank_has_as_little_as_any_cut_gives_it(ranks, seed):
    lengths = np.random.default_rng(seed).geometric(0.1, 9).clip(1, 40)
    room = 2 * int(pad_lengths(lengths).max())
    turns = split_into_micro_batches(
        np.arange(9), lengths, data_parallel_size=ranks, micro_batch=1, room=room
    )
    widths = sorted(pad_lengths(lengths).tolist(), reverse=True)
    largest = max(
        len(one) * int(pad_lengths(lengths[one]).max())
        for turn in turns
        for one in turn
        if len(one)
    )
    assert largest == least_for_the_slowest(widths, slots=ranks * len(turns))
    if len(turns) > 1:
        assert least_for_the_slowest(widths, slots=ranks * (len(turns) - 1)) > room, "no turn spare"


@pytest.mark.parametrize(
    ("examples", "ranks", "micro_batch", "turns"),
    [(16, 2, 4, 2), (16, 2, 8, 1), (17, 2, 8, 2), (1, 4, 8, 1), (0, 2, 4, 1), (100, 3, 5, 7)],
)
def test_accumulation_is_the_fewest_turns_that_hold_the_batch(examples, ranks, micro_batch, turns):
    assert accumulation_steps(examples, data_parallel_size=ranks, micro_batch=micro_batch) == turns


@pytest.mark.parametrize("examples", SIZES)
@pytest.mark.parametrize("batch", [1, 4, 16])
def test_evaluation_holds_every_example_once_longest_first(examples, batch):
    lengths = uneven_lengths(examples)
    batches = form_evaluation_batches(lengths, batch=batch)
    assert sorted(joined(batches)) == list(range(examples))
    assert all(len(one) <= batch for one in batches)
    seen = [lengths[number] for number in joined(batches)]
    assert seen == sorted(seen, reverse=True)
