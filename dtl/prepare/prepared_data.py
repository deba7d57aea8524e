"""The data of a run, read and encoded once before any process group exists."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtl.assembly.parts import Parts
from dtl.config.schema import RunConfig
from dtl.core.checksums import DamagedFolder
from dtl.data.batching import Batching
from dtl.data.cache.encoded import EncodedData
from dtl.data.cache.streamed import StreamedData
from dtl.data.sources.rows import Row, RowCheck
from dtl.models.fingerprint import fingerprint_adapter, fingerprint_model
from dtl.models.locate import locate_model
from dtl.models.peft.save_load import verify_export
from dtl.models.peft.virtual_tokens import reserve_virtual_tokens
from dtl.models.pretrained_config import load_model_config
from dtl.models.processor import load_processor
from dtl.models.trust import check_safetensors
from dtl.prepare.dataset_stats import collect_stats
from dtl.prepare.encoding import RowEncoding, make_batching
from dtl.prepare.expanded_rows import format_unread_keys
from dtl.prepare.sources import ScannedSource, SourceReader, scan_sources
from dtl.prepare.splits import RowSplit, held_out_key, select_cached_subsample, split_rows
from dtl.prepare.token_ids import check_processor
from dtl.tasks.base import DatasetStats


@dataclass(frozen=True)
class EncodedRows:
    """Rows and their examples; `key`: the config key that names them."""

    key: str
    rows: Iterable[Row]
    data: EncodedData


@dataclass(frozen=True)
class PreparedData:
    """The encoded examples of a run, and what was found out about its rows.

    `held_out`: None if nothing is evaluated. `model_config`: the base's. `sources`: data.train and
    data.eval; `mixed_sources`: those of data.mix. `encoded`: what is encoded now, not streamed.
    `base_fingerprint`, `adapter_fingerprint`: of the base, and of the adapter whose training is
    continued. `feature_cache_data`: the larger subsample that `train` is part of, whose features
    are cached.
    """

    train: EncodedData | StreamedData
    held_out: EncodedData | None
    dataset_stats: DatasetStats
    processor: Any
    model_config: Any
    sources: tuple[ScannedSource, ...]
    mixed_sources: tuple[ScannedSource, ...]
    encoded: tuple[EncodedRows, ...]
    base_fingerprint: str
    adapter_fingerprint: str | None
    batching: Batching
    feature_cache_data: EncodedData | None = None

    @property
    def all_sources(self) -> tuple[ScannedSource, ...]:
        """Return data.train, data.eval and those of data.mix."""
        return (*self.sources, *self.mixed_sources)

    def to_record(self) -> dict[str, Any]:
        """Return what run.json stores of data and base, so that a resumed run can compare them."""
        return {
            "key": self.train.key,
            "examples": len(self.train),
            "skipped_rows": sum(len(source.faults) for source in self.all_sources),
            "sources": {
                source.key: {"sha256": source.rows.fingerprint, "rows": source.valid_rows}
                for source in self.all_sources
            },
            "base": self.base_fingerprint,
            "adapter": self.adapter_fingerprint,
        }

    def format_lines(self) -> list[str]:
        """Return lines with the number of examples and of skipped rows."""
        lines = [source.format_skipped() for source in self.all_sources if source.faults]
        lines.append(self.train.format_summary("train"))
        if self.held_out is not None:
            lines.append(self.held_out.format_summary("held out"))
        for each in self.encoded:
            if (unread := format_unread_keys(each.data.row_notes)) is not None:
                lines.append(f"{each.key}: {unread}")
        return lines

    def iter_skipped_rows(self) -> Iterator[dict[str, str]]:
        """Yield source, location and reason of every row that is not an example."""
        for source in self.all_sources:
            for fault in source.faults:
                yield _skipped_row(source.key, fault.location, fault.problem)
        for each in self.encoded:
            reasons = each.data.skipped_rows
            for row in each.rows if reasons else ():
                if row.index in reasons:
                    yield _skipped_row(each.key, row.location, reasons[row.index])


def _skipped_row(source: str, location: str, reason: str) -> dict[str, str]:
    return {"source": source, "location": location, "reason": reason}


def prepare_data(
    config: RunConfig, parts: Parts, *, writes: bool = True, check: RowCheck | None = None
) -> PreparedData:
    """Read, check and encode the rows of a config, or take them from the cache.

    `writes`: this process encodes; the others wait for it. `check`: finds the fault of a row
    instead of the task; its results are cached apart from those of runs. Raises DtlError for
    invalid rows, each with its location.
    """
    try:
        return _prepare_data(config, parts, writes, check)
    except DamagedFolder as damage:  # of the cache, which has been removed
        print(damage.faults[0].problem, file=sys.stderr, flush=True)
        return _prepare_data(config, parts, writes, check)


def _prepare_data(
    config: RunConfig, parts: Parts, writes: bool, check: RowCheck | None
) -> PreparedData:
    # 1. What needs no model, because that takes no time: files, invalid rows, splits.
    model_files = locate_model(config.model)
    if not parts.is_from_random:
        check_safetensors(model_files)
        if writes:
            verify_export(Path(model_files))  # nothing where dtl has not written it
    reader = SourceReader(config, parts.task, check, writes)
    sources, mixed_sources = scan_sources(reader)
    split = split_rows(config, parts.task, sources, mixed_sources)
    # 2. The base's config and its tokenizer or feature extractor.
    model_config = load_model_config(config.model)
    usable_config = reserve_virtual_tokens(
        model_config, max(strategy.num_virtual_tokens for strategy in parts.strategies)
    )
    processor = load_processor(config.model, parts.task.processor_kind)
    check_processor(config.model, parts.task, processor, model_config)
    stats = collect_stats(reader, split.labeled, model_config)
    processor, stats = parts.task.adapt_processor(processor, stats)
    # 3. The examples.
    encoding = RowEncoding(
        config, parts.task, processor, stats, usable_config, check is not None, writes
    )
    train, held_out, encoded = _encode(encoding, sources, split)
    cached_rows = None
    if sources[0].index is None and parts.strategies[0].cache_features is not False:
        cached_rows = select_cached_subsample(config, parts.task, sources)
    adapter = parts.strategies[0].continue_from
    return PreparedData(
        train=train,
        held_out=held_out,
        dataset_stats=stats,
        processor=processor,
        model_config=model_config,
        sources=sources,
        mixed_sources=mixed_sources,
        encoded=encoded,
        base_fingerprint=fingerprint_model(config.model),
        adapter_fingerprint=None if adapter is None else fingerprint_adapter(adapter),
        batching=make_batching(config.train, parts.task, train, processor),
        feature_cache_data=(
            None if cached_rows is None else encoding.encode(cached_rows, "data.train")
        ),
    )


def _encode(
    encoding: RowEncoding, sources: tuple[ScannedSource, ...], split: RowSplit
) -> tuple[EncodedData | StreamedData, EncodedData | None, tuple[EncodedRows, ...]]:
    """Return the examples to train and to evaluate on, and those of them that are encoded now."""
    encoded: list[EncodedRows] = []
    train: EncodedData | StreamedData
    if sources[0].index is not None:
        train = encoding.stream(sources[0], split.train)
    else:
        train = encoding.encode(split.train, "data.train")
        encoded.append(EncodedRows("data.train", split.train, train))
    held_out = None
    if split.held_out is not None:
        config = encoding.config
        held_out = encoding.encode(split.held_out, "data.eval", config.task.group_by)
        encoded.append(EncodedRows(held_out_key(config.data), split.held_out, held_out))
    return train, held_out, tuple(encoded)
