"""Measure what batches of similar length save: `python -m benchmarks.padding`. No training.

Lengths are drawn from a skewed distribution, like those of texts. Padding: the share of padding in
all positions. Utilization: the share of the time in which the ranks compute, if time is
proportional to positions and all ranks wait for the slowest. Repeated: the share of pairs in a
batch that were in one batch in the epoch before, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np

from dtl.data.batching import Batching
from dtl.data.micro_batches import count_padding, largest_padded_size, split_into_micro_batches

EXAMPLES, SEED = 5000, 0
EXAMPLES_PER_STEP, TOKENS_PER_STEP, MICRO_BATCH = 32, 4096, 8
PAIRED_EXAMPLES = 20  # examples of a batch whose pairs are counted


def main() -> None:
    """Print the table."""
    sampled = np.random.default_rng(SEED).lognormal(4.5, 0.8, EXAMPLES)
    lengths = np.clip(sampled, 4, 1024).astype(np.int64)
    print(
        f"{EXAMPLES} examples of {lengths.min()} to {lengths.max()} tokens, "
        f"half of them below {int(np.median(lengths)) + 1}\n"
    )
    print(
        "| global batch | ranks | grouped | padding | utilization | repeated |\n"
        "|---|---|---|---|---|---|"
    )
    for ranks in (1, 2, 4):
        for row in _rows(lengths, ranks):
            print(f"| {' | '.join(row)} |")


def _rows(lengths: np.ndarray, ranks: int) -> Iterator[list[str]]:
    max_padded_size = largest_padded_size(MICRO_BATCH // 4, lengths)
    for name, most, sizes, limit in (
        (f"{EXAMPLES_PER_STEP} examples", EXAMPLES_PER_STEP, None, None),
        (f"{TOKENS_PER_STEP} tokens", TOKENS_PER_STEP, lengths, max_padded_size),
    ):
        for grouped in (False, True):
            batching = Batching(
                EXAMPLES, most, SEED, sizes=sizes, lengths=lengths if grouped else None
            )
            steps = [
                step
                for batch in batching.form_epoch(0)
                for step in split_into_micro_batches(
                    batch,
                    lengths,
                    data_parallel_size=ranks,
                    micro_batch=MICRO_BATCH,
                    max_padded_size=limit,
                )
            ]
            positions, padding = count_padding(steps, lengths)
            slowest = [
                max(len(one) * lengths[one].max(initial=0) for one in step) for step in steps
            ]
            shares = (
                padding / positions,
                positions / (ranks * sum(slowest)),
                _repeated_pairs(batching),
            )
            formatted = [f"{share:.1%}" if share < 0.1 else f"{share:.0%}" for share in shares]
            yield [name, str(ranks), "yes" if grouped else "no", *formatted]


def _repeated_pairs(batching: Batching) -> float:
    """Return the share of pairs that shared a batch in the first two epochs."""
    before = {
        int(one): index for index, batch in enumerate(batching.form_epoch(0)) for one in batch
    }
    is_repeated = [
        before[int(one)] == before[int(other)]
        for batch in batching.form_epoch(1)
        for one, other in combinations(batch[:PAIRED_EXAMPLES], 2)
    ]
    return float(np.mean(is_repeated))


if __name__ == "__main__":
    main()
