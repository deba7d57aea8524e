"""What a frozen base makes of the examples is kept on disk, and the head learns from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dtl.assembly.parts import Parts
from dtl.config.schema import RunConfig
from dtl.core.errors import DtlError, RunFailed
from dtl.core.units import format_bytes
from dtl.data.cache import features
from dtl.data.cache.encoded import EncodedData
from dtl.data.cache.features import Features, Part, PartWriter, same_extent
from dtl.data.loader import Collate
from dtl.engine.base import Engine
from dtl.models.anatomy import unwrapped
from dtl.models.head_input import (
    base_name,
    form_of,
    giving,
    leaves_of,
    watched,
    what_is_read,
    why_inseparable,
)
from dtl.models.load import padding_token
from dtl.plan.feature_cache import PLACE
from dtl.plan.hardware import disk_free
from dtl.prepare.dataset import Examples
from dtl.run.folder import RunFolder
from dtl.train.from_features import FEATURES, Cut, field_of, from_features, parts_of

if TYPE_CHECKING:
    from torch import Tensor

    from dtl.plan.records import Plan

LOOKED_AT = 4  # examples of different lengths, that tell what the head reads
NEAR = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 1e-2}  # what batches of other sizes may differ by
ROOM = 0.9  # share of the disk that may be taken
LOOK_AGAIN = 1.0  # seconds, while another run makes the features


@dataclass(frozen=True)
class Source:
    """What runs the base: `pause` is a safe point, called on all ranks before each batch."""

    config: RunConfig
    plan: Plan
    parts: Parts
    examples: Examples
    engine: Engine
    collate: Collate
    pause: Callable[[str], None]
    say: Callable[[str], None]

    @property
    def train(self) -> EncodedData:
        data = self.examples.train
        assert isinstance(data, EncodedData), "the plan keeps no features of rows that are streamed"
        return data

    def shown(self, data: EncodedData, ids: Sequence[int]) -> dict[str, Tensor]:
        """These examples as a batch on the device."""
        task, processor = self.parts.task, self.examples.processor
        batch = self.collate([task.transform(data[i], processor=processor, rng=None) for i in ids])
        return self.engine.to_device(batch)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        with self.engine.forward():
            return self.parts.task.loss(self.engine.model, batch)

    def output(self, cut: Cut, batch: dict[str, Tensor]) -> dict[str, list[Part]]:
        """What the base makes of a batch, by field."""
        with watched(unwrapped(self.engine.model).get_submodule(cut.base)) as seen:
            self.loss(batch)
        leaves, mask_BT = leaves_of(seen[0]), batch.get("attention_mask")
        return {field.name: parts_of(leaves[field.name], field, mask_BT) for field in cut.fields}


@torch.no_grad()
def learnt_from_features(source: Source) -> tuple[Parts, Examples]:
    """The parts and the examples of a run whose head learns alone, from what the base was seen to
    make of each example; the same parts and examples where that cannot be, which is told.

    Raises DtlError where it was asked for and cannot be. Every rank must call.
    """
    parts, examples, engine = source.parts, source.examples, source.engine
    engine.plain_model.eval()
    try:
        cut = _agreed_cut(source)
        train = _beside(source.train, _kept(source, cut, examples.wider or source.train))
        held_out = examples.held_out
        if held_out is not None:
            held_out = _beside(held_out, _kept(source, cut, held_out))
    except Unfit as unfit:
        if parts.strategy.caches_features:
            raise DtlError.of(PLACE, str(unfit), "remove it: the run learns the same") from unfit
        source.say(f"no feature cache: {unfit}")
        return parts, examples
    task = from_features(parts.task, cut)
    return replace(parts, task=task), replace(examples, train=train, held_out=held_out)


class Unfit(Exception):
    """Why the head cannot learn from features; the same on every rank."""


def _agreed_cut(source: Source) -> Cut:
    """One for all ranks, which see the same."""
    cut, fault = None, None
    try:
        cut = find_cut(source)
    except Unfit as unfit:
        fault = str(unfit)
    faults = [found for found in source.engine.all_gather_object([fault]) if found]
    if cut is None or faults:
        raise Unfit(faults[0])
    return replace(cut, fields=source.engine.broadcast_object(cut.fields))


def find_cut(source: Source) -> Cut:
    """Where the model is cut, seen in a few examples of different lengths. Raises Unfit where the
    head gives another answer from what was kept."""
    engine, data, dtype = source.engine, source.train, source.plan.layout.dtype
    model = unwrapped(engine.model)
    name = base_name(model)
    if name is None or (fault := why_inseparable(model)):
        raise Unfit(fault if name else "the base is in several modules")
    base = model.get_submodule(name)
    by_length = np.argsort(data.lengths, kind="stable")
    ids = sorted(set(by_length[np.linspace(0, len(data) - 1, LOOKED_AT).astype(int)].tolist()))
    batch = source.shown(data, ids)
    with watched(base) as seen:
        expected = source.loss(batch)
    form = form_of(seen[0]) if len(seen) == 1 else None
    if form is None:
        raise Unfit(f"{type(base).__name__} does not give one output with names for a batch")

    def head(output: Any) -> Tensor:
        with giving(base, output):
            return source.loss(batch)

    leaves = leaves_of(seen[0])
    read = what_is_read(leaves, form, head, mask_BT=batch.get("attention_mask"))
    fields = [field_of(part, leaves[part], positions=where) for part, where in read.items()]
    cut = Cut(name, form, tuple(fields))
    alone = [_joined(source.output(cut, source.shown(data, [number])), 0) for number in ids]
    beside = {
        field.name: parts_of(leaves[field.name], field, batch.get("attention_mask"))
        for field in cut.fields
    }
    for place, parts in enumerate(alone):
        if not _near(parts, _joined(beside, place), within=NEAR[dtype]):
            raise Unfit("what the base makes of an example depends on those beside it in a batch")
    task, processor = from_features(source.parts.task, cut), source.examples.processor
    padding = padding_token(processor) or 0
    examples = [
        task.transform({**data[number], FEATURES: parts}, processor=processor, rng=None)
        for number, parts in zip(ids, alone, strict=True)
    ]
    with engine.forward():
        found = task.loss(
            engine.model, engine.to_device(task.collate(examples, pad_token_id=padding))
        )
    if not torch.allclose(found, expected, rtol=NEAR[dtype], atol=NEAR[dtype]):
        raise Unfit(f"from features the loss is {found:.6g}, and {expected:.6g} from the examples")
    return cut


def _joined(by_field: dict[str, list[Part]], place: int) -> dict[str, Part]:
    return {name: parts[place] for name, parts in by_field.items()}


def _near(one: dict[str, Part], other: dict[str, Part], *, within: float) -> bool:
    """Relative to their size; of an example in a longer batch, what is padding is left out."""
    for name, part in one.items():
        short, long = (_floats(each.values) for each in (part, other[name]))
        long = long[: len(short)]
        if np.linalg.norm(short - long) > within * np.linalg.norm(long):
            return False
    return True


def _floats(values: np.ndarray) -> np.ndarray:
    """In fp64, also those that are kept as the bits of a bfloat16."""
    if values.dtype == np.int16:
        return torch.from_numpy(values.copy()).view(torch.bfloat16).double().numpy()
    return values.astype(np.float64)


def _beside(data: EncodedData, kept: _Kept) -> EncodedData:
    """The examples and beside them their features, which are kept for these or for more of the
    same rows."""
    if data.key == kept.data.key:
        return EncodedData(data.folder, **{FEATURES: kept.features})
    places = np.searchsorted(kept.data.rows, data.rows)
    if not np.array_equal(kept.data.rows[places], data.rows):
        raise RuntimeError("a row of a draw is not in the wider draw")
    return EncodedData(data.folder, **{FEATURES: features.Chosen(kept.features, places)})


@dataclass(frozen=True)
class _Kept:
    """Features, and the examples that they are of."""

    features: Features
    data: EncodedData


def _kept(source: Source, cut: Cut, data: EncodedData) -> _Kept:
    """The features of these examples: found, or made by all ranks, unless another run makes the
    same, which is waited for. Raises Unfit where the disk is too small for them."""
    engine, folder = source.engine, _folder(source, cut, data)
    with ExitStack() as turn:
        there = _await_turn(source, folder, turn)
        if not there:
            _make(source, cut, data, folder)
    _refuse_unseen(folder, engine)
    how = "kept" if there else "made, and kept"
    source.say(f"features of {len(data)} examples: {how} in {folder}")
    return _Kept(Features(folder), data)


def _await_turn(source: Source, folder: Path, held: ExitStack) -> bool:
    """Whether they are there. Where they are not, no other run makes them until `held` is
    closed."""
    engine, waited = source.engine, False
    while True:
        turn = engine.broadcast_object(features.take_turn(folder, held) if engine.is_first else "")
        if turn != "another's":
            return turn == "made"
        if not waited:
            source.say(f"features: another run makes them now, which is waited for ({folder})")
        waited = True
        source.pause("features, waiting for another run that makes them")
        time.sleep(LOOK_AGAIN)


def _make(source: Source, cut: Cut, data: EncodedData, folder: Path) -> None:
    engine, writer = source.engine, str(RunFolder.of(source.config).path.absolute())
    staged = Path(
        engine.broadcast_object(
            str(features.stage(folder, writer=writer)) if engine.is_first else ""
        )
    )
    try:
        _refuse_unseen(staged, engine)
        places = _write(source, cut, data, staged)
        every = engine.all_gather_object([places])
        if engine.is_first:
            features.finish(staged, folder, cut.fields, every, examples=len(data))
        engine.barrier()
    except BaseException:
        if engine.is_first:
            features.discard(staged)
        raise


def _refuse_unseen(folder: Path, engine: Engine) -> None:
    """Raise RunFailed on all ranks where one of them does not see what rank 0 has made."""
    if not all(engine.all_gather_object([folder.exists()])):
        raise RunFailed.of(
            str(folder),
            "the processes of this run do not all see the cache of the first one",
            "set DTL_CACHE to a folder that all nodes share, or strategy.cache_features to false",
        )


def _write(source: Source, cut: Cut, data: EncodedData, staged: Path) -> features.Places:
    """This rank's part. Batches are formed before they are dealt out, so that what is written is
    the same on any layout."""
    engine, batch = source.engine, source.config.train.evaluation_batch
    batches = same_extent(source.parts.task.padded_lengths(data), batch=batch)
    turns = -(-len(batches) // engine.ranks)
    with PartWriter(staged, cut.fields, part=engine.rank) as writer:
        for turn in range(turns):
            source.pause(f"features, batch {turn + 1} of {turns}")
            place = turn * engine.ranks + engine.rank
            ids = batches[min(place, len(batches) - 1)]
            found = source.output(cut, source.shown(data, ids.tolist()))
            if turn == 0:
                _refuse_too_large(source, found, data, ids)
            for row, number in enumerate(ids.tolist() if place < len(batches) else []):
                writer.add(number, _joined(found, row))
    return writer.places


def _refuse_too_large(
    source: Source, found: dict[str, list[Part]], data: EncodedData, ids: np.ndarray
) -> None:
    """Raise Unfit where all examples would not fit the disk, judged by the first, longest ones."""
    held = sum(part.values.nbytes for parts in found.values() for part in parts)
    grows = any(len(part.values) > 1 for parts in found.values() for part in parts)
    ratio = data.lengths.sum() / data.lengths[ids].sum() if grows else len(data) / len(ids)
    wanted, free = source.engine.broadcast_object((held * ratio, disk_free(str(features.home()))))
    if wanted > ROOM * free:
        raise Unfit(
            f"features would take {format_bytes(int(wanted))}, of {format_bytes(free)} that are "
            f"free in {features.home()}"
        )


def _folder(source: Source, cut: Cut, data: EncodedData) -> Path:
    """Named by all that features depend on."""
    layout, settings = source.plan.layout, source.engine.plain_model.config
    return features.features_folder(
        base=source.examples.base,
        data=data.key,
        head=[source.parts.task.auto_class, cut.base, repr(cut.fields)],
        settings=source.parts.task.head_config(source.examples.facts),
        attention=settings._attn_implementation,  # type: ignore[union-attr]
        dtype=[layout.dtype, layout.dtype != "fp32" and layout.zero > 0, layout.device],
        batch=source.config.train.evaluation_batch,
        libraries=[version("torch"), version("transformers")],
    )
