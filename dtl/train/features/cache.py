"""The cached features of a run: the outputs of its frozen base, on which the head is trained."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from dtl.assembly.parts import Parts
from dtl.core.errors import DtlError, RunFailed
from dtl.data.cache.encoded import EncodedData
from dtl.data.cache.feature_cache import (
    BuildState,
    FeatureCache,
    FeatureSubset,
    claim_build,
    create_staging_folder,
    feature_cache_folder,
    finalize_feature_cache,
    remove_staging_folder,
)
from dtl.data.micro_batches import examples_of_longest
from dtl.engine.base import Engine
from dtl.plan.feature_cache import LOCATION
from dtl.prepare.prepared_data import PreparedData
from dtl.run.folder import RunFolder
from dtl.train.features.extraction import FeatureExtractor, FeaturesUnsupported, write_part
from dtl.train.features.split import find_common_split_point
from dtl.train.features.task import FEATURES, SplitPoint, make_feature_task

POLL_SECONDS = 1.0  # while another run extracts the features


@torch.no_grad()
def use_cached_features(extractor: FeatureExtractor) -> tuple[Parts, PreparedData]:
    """Return the parts and the examples of a run that trains only the head, on cached features of
    the base. Where that is not possible, print why and return the same parts and examples.

    Every rank must call. Raises DtlError where the config requires it and it is not possible.
    """
    parts, data, engine = extractor.parts, extractor.data, extractor.engine
    engine.unwrapped_model.eval()
    try:
        split = find_common_split_point(extractor)
        wider = data.feature_cache_data or extractor.train
        train = _add_features(extractor.train, _load_or_extract(extractor, split, wider))
        held_out = data.held_out
        if held_out is not None:
            held_out = _add_features(held_out, _load_or_extract(extractor, split, held_out))
    except FeaturesUnsupported as unsupported:
        if parts.strategy.cache_features:
            raise DtlError.of(
                LOCATION, str(unsupported), "remove it: the run trains the same"
            ) from unsupported
        extractor.print_line(f"no feature cache: {unsupported}")
        return parts, data
    task = make_feature_task(parts.task, split)
    return replace(parts, task=task), replace(data, train=train, held_out=held_out)


@dataclass(frozen=True)
class _CachedFeatures:
    """Features, and the examples that they belong to."""

    features: FeatureCache
    data: EncodedData


def _add_features(data: EncodedData, cached: _CachedFeatures) -> EncodedData:
    """Return the examples with their features, which are cached for these or for a superset of
    their rows."""
    if data.key == cached.data.key:
        return EncodedData(data.folder, **{FEATURES: cached.features})
    # The examples of one row stand together, in the same order.
    first = np.searchsorted(data.rows, data.rows)
    indices = np.searchsorted(cached.data.rows, data.rows) + np.arange(len(data.rows)) - first
    if not np.array_equal(cached.data.rows[indices], data.rows):
        raise RuntimeError("a row of the subsample is not in the larger subsample")
    return EncodedData(data.folder, **{FEATURES: FeatureSubset(cached.features, indices)})


def _load_or_extract(
    extractor: FeatureExtractor, split: SplitPoint, data: EncodedData
) -> _CachedFeatures:
    """Return the features of these examples, from the cache, or extracted by all ranks. While
    another run extracts the same, wait for it. Raises FeaturesUnsupported where the disk is too
    small."""
    engine, folder = extractor.engine, _cache_folder(extractor, split, data)
    with ExitStack() as lock:
        is_cached = _wait_for_other_run(extractor, folder, lock)
        if not is_cached:
            _extract_all(extractor, split, data, folder)
    _check_shared_folder(folder, engine)
    action = "read from" if is_cached else "extracted and cached in"
    extractor.print_line(f"features of {len(data)} examples: {action} {folder}")
    return _CachedFeatures(FeatureCache(folder), data)


def _wait_for_other_run(extractor: FeatureExtractor, folder: Path, lock: ExitStack) -> bool:
    """Return whether the features are cached. Where they are not, no other run extracts them until
    `lock` is closed."""
    engine, has_waited = extractor.engine, False
    while True:
        state: BuildState = engine.broadcast_object(
            claim_build(folder, lock) if engine.is_main_process else ""
        )
        if state != "other_run":
            return state == "ready"
        if not has_waited:
            extractor.print_line(f"features: waiting for another run that extracts them ({folder})")
        has_waited = True
        extractor.check_stop("features, waiting for another run that extracts them")
        time.sleep(POLL_SECONDS)


def _extract_all(
    extractor: FeatureExtractor, split: SplitPoint, data: EncodedData, folder: Path
) -> None:
    """Extract the features on all ranks, and give the complete folder its name."""
    engine, writer = extractor.engine, str(RunFolder.from_config(extractor.config).path.absolute())
    staged = Path(
        engine.broadcast_object(
            str(create_staging_folder(folder, writer=writer)) if engine.is_main_process else ""
        )
    )
    try:
        _check_shared_folder(staged, engine)
        written = write_part(extractor, split, data, staged)
        parts = engine.all_gather_object([written])
        if engine.is_main_process:
            finalize_feature_cache(staged, folder, split.fields, parts, examples=len(data))
        engine.barrier()
    except BaseException:
        if engine.is_main_process:
            remove_staging_folder(staged)
        raise


def _check_shared_folder(folder: Path, engine: Engine) -> None:
    """Raise RunFailed on all ranks where one of them does not see the folder of rank 0."""
    if not all(engine.all_gather_object([folder.exists()])):
        raise RunFailed.of(
            str(folder),
            "not all processes of this run see the cache of rank 0",
            "set DTL_CACHE to a folder that all nodes share, or strategy.cache_features to false",
        )


def _cache_folder(extractor: FeatureExtractor, split: SplitPoint, data: EncodedData) -> Path:
    """Return the cache folder, named by everything that the features depend on."""
    layout, engine = extractor.plan.layout, extractor.engine
    model_config = engine.unwrapped_model.config
    return feature_cache_folder(
        base=extractor.data.base_fingerprint,
        data=data.key,
        head=[extractor.parts.task.auto_class, split.base, repr(split.fields)],
        settings=extractor.parts.task.head_config(extractor.data.dataset_stats),
        attention=model_config._attn_implementation,  # type: ignore[union-attr]
        dtype=[layout.dtype, engine.uses_autocast, layout.device],
        batch=examples_of_longest(extractor.plan.layout.evaluation_batch, data.lengths),
        libraries=[version("torch"), version("transformers")],
    )
