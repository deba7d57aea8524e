"""Another example for each example, the same in every epoch and on every layout."""

from __future__ import annotations

from typing import Any

import numpy as np

from dtl.data.cache.encoded import EncodedData
from dtl.data.example import PARTNER

SEED = 20_000_033  # of the cycle in which each example has the next one as its partner


class Partners:
    """The values of the partner of each example, by index. Every example is the partner of one."""

    def __init__(self, data: EncodedData) -> None:
        generator = np.random.Generator(np.random.Philox(key=[SEED, len(data)]))
        cycle = generator.permutation(len(data))
        self._data = data
        self.indices = np.empty_like(cycle)
        self.indices[cycle] = np.roll(cycle, -1)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._data[self.indices[index]]


def add_partners(data: EncodedData) -> EncodedData:
    """Return the examples, each with the values of its partner under `PARTNER`."""
    return EncodedData(data.folder, **{PARTNER: Partners(data)})
