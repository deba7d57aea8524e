"""What batches of like length save: `python -m benchmarks.padding`. Trains nothing; takes a second.

Lengths are drawn skewed, as those of texts are. Padding: the share of all positions that a model
reads for nothing. Work: the share of the time of all ranks in which they compute, if time goes with
positions and all wait for the slowest one. Met: the share of pairs of a batch that had shared one
in the epoch before.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np

from dtl.data.batching import Batching
from dtl.data.order import count_padding, largest_padded_size, split_into_micro_batches

EXAMPLES, SEED = 5000, 0
EXAMPLES_A_STEP, TOKENS_A_STEP, MICRO_BATCH = 32, 4096, 8
PAIRS_OF = 20  # examples of a batch that are looked at for pairs


def main() -> None:
    """Print the table."""
    drawn = np.random.default_rng(SEED).lognormal(4.5, 0.8, EXAMPLES)
    lengths = np.clip(drawn, 4, 1024).astype(np.int64)
    print(
        f"{EXAMPLES} examples of {lengths.min()} to {lengths.max()} tokens, "
        f"half of them below {int(np.median(lengths)) + 1}\n"
    )
    print("| global batch | ranks | grouped | padding | work | met |\n|---|---|---|---|---|---|")
    for ranks in (1, 2, 4):
        for row in _rows(lengths, ranks):
            print(f"| {' | '.join(row)} |")


def _rows(lengths: np.ndarray, ranks: int) -> Iterator[list[str]]:
    room = largest_padded_size(MICRO_BATCH // 4, lengths)
    for name, most, sizes, limit in (
        (f"{EXAMPLES_A_STEP} examples", EXAMPLES_A_STEP, None, None),
        (f"{TOKENS_A_STEP} tokens", TOKENS_A_STEP, lengths, room),
    ):
        for grouped in (False, True):
            batching = Batching(
                EXAMPLES, most, SEED, sizes=sizes, lengths=lengths if grouped else None
            )
            turns = [
                turn
                for batch in batching.form_epoch(0)
                for turn in split_into_micro_batches(
                    batch, lengths, data_parallel_size=ranks, micro_batch=MICRO_BATCH, room=limit
                )
            ]
            positions, empty = count_padding(turns, lengths)
            slowest = [
                max(len(one) * lengths[one].max(initial=0) for one in turn) for turn in turns
            ]
            shares = (empty / positions, positions / (ranks * sum(slowest)), _met(batching))
            told = [f"{share:.1%}" if share < 0.1 else f"{share:.0%}" for share in shares]
            yield [name, str(ranks), "yes" if grouped else "no", *told]


def _met(batching: Batching) -> float:
    before = {
        int(one): place for place, batch in enumerate(batching.form_epoch(0)) for one in batch
    }
    again = [
        before[int(one)] == before[int(other)]
        for batch in batching.form_epoch(1)
        for one, other in combinations(batch[:PAIRS_OF], 2)
    ]
    return float(np.mean(again))


if __name__ == "__main__":
    main()
