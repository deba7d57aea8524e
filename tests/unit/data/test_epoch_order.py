"""The order of an epoch: each example once, by seed and epoch alone."""

import numpy as np
import pytest

from dtl.data.batching import Batching
from tests.unit.data.epochs import flatten, form_batches

SIZES = (1, 2, 7, 16, 31, 64, 101)


class Philox:
    """Philox4x64-10 as published (Salmon et al. 2011, Random123), in plain Python."""

    FULL = 2**64

    def __init__(self, key, counter=0):
        self.key, self.counter, self.halves = key, counter, []

    def block(self):
        mixed = [self.counter, 0, 0, 0]
        key = list(self.key)
        for _ in range(10):
            high_0, low_0 = divmod(0xD2E7470EE14C6C93 * mixed[0], self.FULL)
            high_1, low_1 = divmod(0xCA5A826395121157 * mixed[2], self.FULL)
            mixed = [high_1 ^ mixed[1] ^ key[0], low_1, high_0 ^ mixed[3] ^ key[1], low_0]
            key[0] = (key[0] + 0x9E3779B97F4A7C15) % self.FULL
            key[1] = (key[1] + 0xBB67AE8584CAA73B) % self.FULL
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
    full = flatten(form_batches(50, seed=1, epoch=0, global_batch=50))
    assert flatten(form_batches(50, seed=1, epoch=0, global_batch=global_batch)) == full
