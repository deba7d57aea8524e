"""Families whose output for an example depends on padding, so on the others in its batch."""

from __future__ import annotations

from typing import Any

import numpy as np

from dtl.data.padding import pad_lengths

# What the architecture does with padded positions. Those of cpmant, sew-d and yoso are read from
# their code; for the others test_padding_dependence.py shows it.
FAMILIES = {
    "cpmant": "it counts positions from the end of the padded text",
    "data2vec-audio": "its positional convolutions read padded frames",
    "fnet": "its Fourier transform mixes padded positions into all others",
    "nystromformer": "its landmarks are means that include padded positions",
    "sew": "it pools and upsamples frames across the end of a recording",
    "sew-d": "it pools and upsamples frames across the end of a recording",
    "wav2vec2-conformer": "its convolutions read padded frames",
    "yoso": "its hashes are drawn for all positions, padded ones included",
}
GROUP_NORM = "its group norm takes statistics over padding (feat_extract_norm: group)"
EXAMPLE_ALONE = 1  # of a batch


def explain_padding_dependence(config: Any, lengths: np.ndarray) -> str | None:
    """Return why the outputs of the model of this config depend on padding; None where they do not,
    or where all examples (of these lengths, shape (N,)) are padded alike. `config`: None where it
    is unknown."""
    if config is None or len(np.unique(pad_lengths(lengths))) == 1 == len(np.unique(lengths)):
        return None
    if getattr(config, "feat_extract_norm", None) == "group":
        return GROUP_NORM
    return FAMILIES.get(getattr(config, "model_type", ""))
