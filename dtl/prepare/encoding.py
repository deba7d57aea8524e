"""Encode rows into examples, or take them from the cache; form batches of them."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np

from dtl.config.schema import BatchSize, RunConfig, Train
from dtl.config.schema.batch_size import COUNTS_PER_UNIT
from dtl.core.errors import DtlError, Fault, InvalidRowError
from dtl.data.batching import Batching
from dtl.data.cache.encoded import EncodedData
from dtl.data.cache.encoder import encode_rows, wait_for_encoded_data
from dtl.data.cache.partners import add_partners
from dtl.data.cache.store import cache_key
from dtl.data.cache.streamed import IndexedRows, StreamedData
from dtl.data.example import EncodedExample, Skip
from dtl.data.invalid_rows import count_invalid, invalid_problems, skip_invalid
from dtl.data.sources.rows import MAX_FAULTS_DISPLAYED, Row, Rows
from dtl.prepare.expanded_rows import ExpandedRows, StreamEncoder, check_nothing_is_dropped
from dtl.prepare.row_sets import Mixture, RowSubset
from dtl.prepare.sources import ScannedSource
from dtl.prepare.token_ids import checking_token_ids, find_embedding_rows
from dtl.tasks.base import DatasetStats, Task


@dataclass(frozen=True)
class RowEncoding:
    """How rows become examples.

    `model_config`: the base's, with room for virtual tokens. `is_checked`: another check than the
    task's decides which rows are valid. `writes`: this process encodes; the others wait for it.
    """

    config: RunConfig
    task: Task
    processor: Any
    dataset_stats: DatasetStats
    model_config: Any
    is_checked: bool
    writes: bool

    @cached_property
    def _processor_fingerprint(self) -> str:
        """Computed once: a tokenizer stores its last truncation settings."""
        return fingerprint_processor(self.processor)

    @cached_property
    def _encoder(self) -> Callable[[Row], EncodedExample | Skip]:
        encode = self._make_encoder(self.processor)
        return skip_invalid(encode) if self._skips_invalid else encode

    @property
    def _skips_invalid(self) -> bool:
        return self.config.data.on_bad_row == "skip"

    def _make_encoder(self, processor: Any) -> Callable[[Row], EncodedExample | Skip]:
        encode = self.task.encoder(processor, self.dataset_stats, self.model_config)
        rows = find_embedding_rows(self.config.model, self.task, processor, self.model_config)
        return checking_token_ids(encode, self.task, processor, rows=rows)

    def encode(
        self, rows: Rows | RowSubset | Mixture, key: str, group_by: str | None = None
    ) -> EncodedData:
        """Return the examples of the rows; `key`: the config key that names them."""
        name = self._cache_key(rows, group_by)
        if self.writes:
            expanded = ExpandedRows(rows, self.task, self.processor)
            data = encode_rows(
                expanded,
                self._encoder,
                key=name,
                location=key,
                group_by=group_by,
                accept=lambda made: self._check_invalid(made, expanded, key),
            )
            check_nothing_is_dropped(data, self.config)
        else:
            data = wait_for_encoded_data(name)
        return add_partners(data) if self.task.reads_partner else data

    def _check_invalid(self, data: EncodedData, rows: ExpandedRows, key: str) -> None:
        """Raise DtlError where more rows than may be skipped are invalid; the cache may have been
        written by a command that skips them all."""
        summary, share = data.summary, self.config.data.max_bad_fraction
        count = count_invalid(summary.skipped)
        if count and not self._skips_invalid:
            raise DtlError(*islice(self._find_invalid(data, rows), MAX_FAULTS_DISPLAYED))
        if count > share * summary.rows:
            first = next(self._find_invalid(data, rows))
            raise DtlError.of(
                "data.max_bad_fraction",
                f"{count} of {summary.rows} rows of {key} are invalid, and the share that may be "
                f"skipped is {share:g}: {first.location} ({first.problem})",
                "fix the rows, or raise the share",
            )

    def _find_invalid(self, data: EncodedData, rows: ExpandedRows) -> Iterator[Fault]:
        """Yield the faults of the rows that were found to be invalid when they were encoded."""
        encode = self._make_encoder(self.processor)
        reasons = data.skipped_rows
        for row in rows:
            if invalid_problems([reasons.get(row.index, "")]):
                try:
                    encode(row)
                except InvalidRowError as error:
                    yield from error.faults

    def stream(self, source: ScannedSource, train: Rows | RowSubset | Mixture) -> StreamedData:
        """Return examples that are encoded in the step that trains on them."""
        assert source.index is not None
        if self.task.reads_partner:
            raise DtlError.of(
                "data.train.streaming",
                f"task {self.config.task.name} reads each row beside another one, which streamed "
                "rows do not have",
                "remove streaming, so that the rows are encoded before the start",
            )
        processor = copy.deepcopy(self.processor)  # rows are encoded while the other one is used
        encoder = StreamEncoder(self.config, self.task, processor, self._make_encoder(processor))
        return StreamedData(
            IndexedRows(source.rows, source.index, source.rows.open_readers(source.key)),
            skip_invalid(encoder) if self._skips_invalid else encoder,
            key=self._cache_key(train),
            max_length=self.task.max_length(self.processor, self.dataset_stats, self.model_config),
            row_numbers=_row_numbers(train, source.valid_rows),
        )

    def _cache_key(self, rows: Rows | RowSubset | Mixture, group_by: str | None = None) -> str:
        """Return a hash of everything that the examples depend on."""
        return cache_key(
            rows=rows.fingerprint + ("/checked" if self.is_checked else ""),
            processor=self._processor_fingerprint,
            base=[getattr(self.model_config, "max_position_embeddings", None)],
            task=self.config.task.training_options,
            dataset_stats=self.dataset_stats,
            **({} if group_by is None else {"group_by": group_by}),
        )


def _row_numbers(rows: Rows | RowSubset | Mixture, total: int) -> np.ndarray | None:
    """Return the indices of the rows that are not held out; None: all of them."""
    if not isinstance(rows, RowSubset):
        return None
    return np.delete(np.arange(total), sorted(rows.indices))


def make_batching(
    options: Train, task: Task, data: EncodedData | StreamedData, processor: Any
) -> Batching:
    """Return how batches are formed. Raises DtlError for an example larger than a global batch."""
    size = options.global_batch
    if isinstance(data, StreamedData):
        return Batching(len(data), size.limit, options.seed)
    sizes = None if size.unit == "examples" else task.example_sizes(data, processor=processor)
    if sizes is not None and sizes.max() > size.limit:
        largest = BatchSize(math.ceil(sizes.max() / COUNTS_PER_UNIT[size.unit]), size.unit)
        raise DtlError.of(
            "train.global_batch",
            f"the longest example has {largest}, more than a global batch of {size}",
            f"set train.global_batch to {largest} or more, or use shorter examples",
        )
    lengths = data.lengths if options.group_by_length else None
    return Batching(len(data), size.limit, options.seed, sizes=sizes, lengths=lengths)


def fingerprint_processor(processor: Any) -> str:
    """Return a hash of everything that decides how a tokenizer or feature extractor works."""
    if hasattr(processor, "feature_extractor"):
        extractor = fingerprint_processor(processor.feature_extractor)
        return f"{extractor}/{fingerprint_processor(processor.tokenizer)}"
    if not hasattr(processor, "get_vocab"):
        return hashlib.sha256(processor.to_json_string().encode()).hexdigest()
    return _fingerprint_tokenizer(processor)


def _fingerprint_tokenizer(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    special: Iterable[Any] = (
        tokenizer.chat_template,
        tokenizer.special_tokens_map,
        tokenizer.model_max_length,
    )
    return hashlib.sha256(f"{vocabulary}{special}".encode()).hexdigest()
