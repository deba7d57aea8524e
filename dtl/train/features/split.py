"""The split point of a model between its frozen base and its head, found on a few examples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dtl.data.cache.feature_cache import CachedFeature
from dtl.models.processor import get_pad_token_id
from dtl.models.structure.head_input import (
    describe_output,
    find_base_name,
    find_inseparable_reason,
    find_read_tensors,
    flatten_output,
    record_outputs,
    replace_output,
)
from dtl.models.structure.wrappers import unwrap
from dtl.train.features.extraction import FeatureExtractor, FeaturesUnsupported, select_example
from dtl.train.features.task import (
    FEATURES,
    SplitPoint,
    describe_field,
    make_feature_task,
    split_field,
)

PROBE_EXAMPLES = 4  # of different lengths
# Relative difference allowed between batches of different sizes.
TOLERANCES = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 1e-2}


def find_common_split_point(extractor: FeatureExtractor) -> SplitPoint:
    """Return the split point, the same on every rank. Every rank must call.

    Raises FeaturesUnsupported.
    """
    split, fault = None, None
    try:
        split = find_split_point(extractor)
    except FeaturesUnsupported as unsupported:
        fault = str(unsupported)
    faults = [each for each in extractor.engine.all_gather_object([fault]) if each]
    if split is None or faults:
        raise FeaturesUnsupported(faults[0])
    return replace(split, fields=extractor.engine.broadcast_object(split.fields))


def find_split_point(extractor: FeatureExtractor) -> SplitPoint:
    """Return where the model is split, observed on a few examples of different lengths.

    Raises FeaturesUnsupported where the head's loss from cached features is another one.
    """
    model, data = unwrap(extractor.engine.model), extractor.train
    name = find_base_name(model)
    if name is None or (fault := find_inseparable_reason(model)):
        raise FeaturesUnsupported(fault if name else "the base is in several modules")
    base = model.get_submodule(name)
    by_length = np.argsort(data.lengths, kind="stable")
    probes = by_length[np.linspace(0, len(data) - 1, PROBE_EXAMPLES).astype(int)]
    ids = sorted(set(probes.tolist()))
    batch = extractor.collate_examples(data, ids)
    with record_outputs(base) as outputs:
        expected = extractor.loss(batch)
    form = describe_output(outputs[0]) if len(outputs) == 1 else None
    if form is None:
        raise FeaturesUnsupported(
            f"{type(base).__name__} does not return one output with names for a batch"
        )

    def head(output: Any) -> Tensor:
        with replace_output(base, output):
            return extractor.loss(batch)

    leaves, mask_BT = flatten_output(outputs[0]), batch.get("attention_mask")
    read = find_read_tensors(leaves, form, head, mask_BT=mask_BT)
    fields = [describe_field(part, leaves[part], positions=where) for part, where in read.items()]
    split = SplitPoint(name, form, tuple(fields))
    batched = {
        field.name: split_field(leaves[field.name], field, mask_BT) for field in split.fields
    }
    single = _check_independence(extractor, split, ids, batched)
    _check_loss(extractor, split, ids, single, expected)
    return split


def _check_independence(
    extractor: FeatureExtractor,
    split: SplitPoint,
    ids: list[int],
    batched: dict[str, list[CachedFeature]],
) -> list[dict[str, CachedFeature]]:
    """Return the features of examples that are extracted one by one. Raise FeaturesUnsupported
    where those from a batch are different."""
    data, tolerance = extractor.train, TOLERANCES[extractor.plan.layout.dtype]
    single = [
        select_example(extractor.extract(split, extractor.collate_examples(data, [number])), 0)
        for number in ids
    ]
    for index, parts in enumerate(single):
        if not _is_close(parts, select_example(batched, index), tolerance=tolerance):
            raise FeaturesUnsupported(
                "the base's output for an example depends on the others in its batch"
            )
    return single


def _check_loss(
    extractor: FeatureExtractor,
    split: SplitPoint,
    ids: list[int],
    single: list[dict[str, CachedFeature]],
    expected: Tensor,
) -> None:
    """Raise FeaturesUnsupported where the loss from features is not the one from the examples."""
    engine, data, processor = extractor.engine, extractor.train, extractor.data.processor
    task = make_feature_task(extractor.parts.task, split)
    examples = [
        task.transform({**data[number], FEATURES: parts}, processor=processor, rng=None)
        for number, parts in zip(ids, single, strict=True)
    ]
    batch = engine.to_device(task.collate(examples, pad_token_id=get_pad_token_id(processor) or 0))
    with engine.autocast():
        loss = task.loss(engine.model, batch)
    tolerance = TOLERANCES[extractor.plan.layout.dtype]
    if not torch.allclose(loss, expected, rtol=tolerance, atol=tolerance):
        raise FeaturesUnsupported(
            f"the loss is {loss:.6g} from features and {expected:.6g} from the examples"
        )


def _is_close(
    one: dict[str, CachedFeature], other: dict[str, CachedFeature], *, tolerance: float
) -> bool:
    """Compare relative to the norm; padding of the other, in a longer batch, is ignored."""
    for name, part in one.items():
        short, long = (_to_float64(each.values) for each in (part, other[name]))
        long = long[: len(short)]
        if np.linalg.norm(short - long) > tolerance * np.linalg.norm(long):
            return False
    return True


def _to_float64(values: np.ndarray) -> np.ndarray:
    """Convert to fp64, also values that are stored as the bits of a bfloat16."""
    if values.dtype == np.int16:
        return torch.from_numpy(values.copy()).view(torch.bfloat16).double().numpy()
    return values.astype(np.float64)
