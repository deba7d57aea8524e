"""The rows that a config names, encoded for its model; done once, before any process group."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np

from dtl.assembly.parts import Parts
from dtl.config.schema import Data, RunConfig, Source, Subsample, Train
from dtl.config.schema.batch_size import COUNTS_PER_UNIT, BatchSize
from dtl.core.cache_folder import cache_folder, write_cache_file
from dtl.core.errors import DtlError, Fault, near
from dtl.data.batching import Batching
from dtl.data.cache.encoded import EncodedData
from dtl.data.cache.encoder import encode_rows, wait_for_encoded_data
from dtl.data.cache.row_index import RowIndex, open_row_index
from dtl.data.cache.store import cache_key, wait_for_file
from dtl.data.cache.streamed import IndexedRows, StreamedData
from dtl.data.example import EncodedExample, Skip
from dtl.data.labels import get_label
from dtl.data.order import epoch_rng
from dtl.data.sources.rows import MAX_FAULTS_DISPLAYED, Row, RowCheck, Rows, SourceScan, open_rows
from dtl.data.subsample import draw_subsample
from dtl.models.fingerprint import fingerprint_adapter, fingerprint_model
from dtl.models.locate import locate_model
from dtl.models.peft.virtual_tokens import reserve_virtual_tokens
from dtl.models.pretrained_config import load_model_config
from dtl.models.processor import load_processor
from dtl.models.trust import check_safetensors
from dtl.tasks.base import Classification, DatasetStats, Task

MIX_SEED = 20_000_017  # of which rows of a source are read once more, or at all
HELD_OUT_SEED = 20_000_003  # of the split, so that train.seed does not change who is held out
NOTE_FORMAT = 2  # of what is noted of a pass over the rows
SKIPPED_SHOWN = 3


@dataclass(frozen=True)
class Examples:
    """Encoded data, and what the training rows said. `held_out` is None where nothing is scored."""

    train: EncodedData | StreamedData
    held_out: EncodedData | None
    dataset_stats: DatasetStats
    processor: Any
    settings: Any  # the base model's config
    sources: tuple[ReadSource, ...]  # data.train, and data.eval
    mixed: tuple[ReadSource, ...]  # what is learnt beside
    rows: tuple[tuple[str, Iterable[Row], EncodedData], ...]  # with the key that names them
    base: str  # the fingerprint of the base model
    continued: str | None  # that of the adapter that learns further
    batching: Batching  # of what is learnt
    wider: EncodedData | None = None  # what `train` is a part of, for which features are kept

    @property
    def data(self) -> dict[str, Any]:
        """What a run notes of what it began with."""
        every = (*self.sources, *self.mixed)
        return {
            "key": self.train.key,
            "examples": len(self.train),
            "skipped_rows": sum(len(source.bad) for source in every),
            "sources": {
                source.place: {"sha256": source.rows.fingerprint, "rows": source.good}
                for source in every
            },
            "base": self.base,
            "continued": self.continued,
        }

    def lines(self) -> list[str]:
        """What became of all rows, in words."""
        lines = [source.line() for source in (*self.sources, *self.mixed) if source.bad]
        lines.append(self.train.format_summary("train"))
        if self.held_out is not None:
            lines.append(self.held_out.format_summary("held out"))
        return lines

    def skipped_rows(self) -> Iterator[dict[str, str]]:
        """Every row that was read and is no example: where it stands, and why."""
        for source in (*self.sources, *self.mixed):
            for fault in source.bad:
                yield _skipped(source.place, fault.location, fault.problem)
        for place, rows, data in self.rows:
            reasons = data.skipped_rows
            for row in rows if reasons else ():
                if row.index in reasons:
                    yield _skipped(place, row.location, reasons[row.index])


@dataclass(frozen=True)
class ReadSource:
    """A source that has been read through. `place`: the config key that names it; `index`: where
    its rows stand, if they are streamed."""

    place: str
    rows: Rows
    good: int
    bad: tuple[Fault, ...]
    index: RowIndex | None = None

    def line(self) -> str:
        """How many rows at fault were skipped, and the first of them."""
        return (
            f"{self.place}: {len(self.bad)} of {self.good + len(self.bad)} rows are at fault and "
            f"skipped: {_first(self.bad)}"
        )


def prepare(
    config: RunConfig, parts: Parts, *, writes: bool = True, check: RowCheck | None = None
) -> Examples:
    """Read, survey and encode, or find it in the cache. `writes`: this process does the encoding;
    the others wait for it. `check`: says what is wrong with a row, instead of the task; what comes
    of it is cached apart from what a run reads.

    Raises DtlError for rows at fault, each with its place.
    """
    where = locate_model(config.model)  # what needs no model is found out first: it takes no time
    if not parts.is_from_random:
        check_safetensors(where)
    sources, mixed = _sources(config, parts.task, check, writes=writes)
    train, held_out = split(config, parts.task, sources, mixed)
    if held_out is not None and config.task.group_by is not None:
        _refuse_absent(held_out, config.task.group_by)
    settings = load_model_config(config.model)
    read_as = reserve_virtual_tokens(
        settings, max(strategy.num_virtual_tokens for strategy in parts.strategies)
    )
    processor = load_processor(config.model, parts.task.processor_kind)
    to_survey = train  # few rows are drawn of data whose labels are known
    if config.data.subsample is not None:
        to_survey = _mixed(config, _split(config, sources)[0], mixed)
    surveyed = _surveyed(to_survey, config, parts.task, settings, writes=writes)
    processor, dataset_stats = parts.task.adapt_processor(processor, surveyed)
    encoding = _Encoding(config, parts.task, processor, dataset_stats, read_as, check, writes)
    read: list[tuple[str, Iterable[Row], EncodedData]] = []
    learnt: EncodedData | StreamedData
    wider = None
    if (index := sources[0].index) is not None:
        learnt = encoding.streamed(sources[0].rows, index, train, sources[0].good)
    else:
        learnt = encoding.of(train, "data.train")
        read.append(("data.train", train, learnt))
        if (around := _around(config, parts, sources)) is not None:
            wider = encoding.of(around, "data.train")
    scored = None
    if held_out is not None:
        scored = encoding.of(held_out, "data.eval", config.task.group_by)
        read.append((_place_of_held_out(config.data), held_out, scored))
    former = parts.strategies[0].continue_from
    return Examples(
        train=learnt,
        held_out=scored,
        dataset_stats=dataset_stats,
        processor=processor,
        settings=settings,
        sources=sources,
        mixed=mixed,
        rows=tuple(read),
        base=fingerprint_model(config.model),
        continued=None if former is None else fingerprint_adapter(former),
        batching=_batching(config.train, parts.task, learnt, processor),
        wider=wider,
    )


@dataclass(frozen=True)
class _Encoding:
    """How rows become examples. `read_as`: the base's config; `check`, `writes`: as `prepare` was
    told."""

    config: RunConfig
    task: Task
    processor: Any
    dataset_stats: DatasetStats
    read_as: Any
    check: RowCheck | None
    writes: bool

    @cached_property
    def _processing(self) -> str:
        """Found once: a tokenizer keeps how it was last asked to cut."""
        return _fingerprint(self.processor)

    @cached_property
    def _encoder(self) -> Callable[[Row], EncodedExample | Skip]:
        return self.task.encoder(self.processor, self.dataset_stats, self.read_as)

    def key(self, rows: Rows | Part | Mixture, group_by: str | None = None) -> str:
        """Names all that the examples depend on."""
        return cache_key(
            rows=rows.fingerprint + ("/checked" if self.check else ""),
            processor=self._processing,
            base=[getattr(self.read_as, "max_position_embeddings", None)],
            task=self.config.task.training_options,
            dataset_stats=self.dataset_stats,
            **({} if group_by is None else {"group_by": group_by}),
        )

    def of(
        self, rows: Rows | Part | Mixture, place: str, group_by: str | None = None
    ) -> EncodedData:
        """From the cache, or encoded into it; where another process does that, waited for."""
        key = self.key(rows, group_by)
        if not self.writes:
            return wait_for_encoded_data(key)
        return encode_rows(rows, self._encoder, key=key, location=place, group_by=group_by)

    def streamed(
        self, rows: Rows, index: RowIndex, learnt: Rows | Part | Mixture, total: int
    ) -> StreamedData:
        """Encoded in the step that learns from them. `total`: rows that there are."""
        own = copy.deepcopy(self.processor)  # rows are encoded beside what else is done with it
        return StreamedData(
            IndexedRows(rows, index, rows.open_readers("data.train")),
            self.task.encoder(own, self.dataset_stats, self.read_as),
            key=self.key(learnt),
            max_length=self.task.max_length(self.processor, self.dataset_stats, self.read_as),
            row_numbers=_numbers(learnt, total),
        )


def _around(config: RunConfig, parts: Parts, sources: tuple[ReadSource, ...]) -> Part | None:
    """The rows of the wider draw, where features may be kept of them; rows of a mixture are
    numbered anew, and theirs are kept alone."""
    data = config.data
    may_be_kept = parts.strategies[0].cache_features is not False
    mixed = bool(data.mix) or data.train.weight != 1
    if (
        data.subsample is None
        or data.subsample.feature_cache_size is None
        or mixed
        or not may_be_kept
    ):
        return None
    rows = _split(config, sources)[0]
    return Part(
        rows,
        draw_subsample(_classes(rows, parts.task), data.subsample.cached_subsample).training_rows,
        inside=True,
    )


def _numbers(rows: Rows | Part | Mixture, total: int) -> np.ndarray | None:
    """Of the rows that are not held out; None: all."""
    if not isinstance(rows, Part):
        return None
    return np.delete(np.arange(total), sorted(rows.chosen))


def _batching(
    options: Train, task: Task, data: EncodedData | StreamedData, processor: Any
) -> Batching:
    """Raises DtlError for an example that no batch of this size can hold."""
    size = options.global_batch
    if isinstance(data, StreamedData):
        return Batching(len(data), size.limit, options.seed)
    sizes = None if size.unit == "examples" else task.example_sizes(data, processor=processor)
    if sizes is not None and sizes.max() > size.limit:
        longest = BatchSize(math.ceil(sizes.max() / COUNTS_PER_UNIT[size.unit]), size.unit)
        raise DtlError.of(
            "train.global_batch",
            f"{size} do not hold the longest example, which has {longest}",
            f"set train.global_batch to {longest} or more, or take shorter examples",
        )
    lengths = data.lengths if options.group_by_length else None
    return Batching(len(data), size.limit, options.seed, sizes=sizes, lengths=lengths)


def _sources(
    config: RunConfig, task: Task, check: RowCheck | None, *, writes: bool
) -> tuple[tuple[ReadSource, ...], tuple[ReadSource, ...]]:
    """The sources that the config names, and those that it mixes in, each read through once before
    a library is loaded, which takes seconds; faults of all first rows come first."""
    data = config.data
    named = {"data.train": data.train, "data.eval": data.eval}
    named |= {f"data.mix[{number}]": source for number, source in enumerate(data.mix)}
    opened = {
        place: _open(place, source, config, task, check)
        for place, source in named.items()
        if source is not None
    }
    accepted = [
        _indexed(place, rows, config, writes=writes)
        if place == "data.train" and data.train.streaming
        else _accepted(place, rows, rows.scan() if check else _noted(rows, config), data)
        for place, rows in opened.items()
    ]
    main = len(accepted) - len(data.mix)
    return tuple(accepted[:main]), tuple(accepted[main:])


def _indexed(place: str, rows: Rows, config: RunConfig, *, writes: bool) -> ReadSource:
    seekers = rows.open_readers(place)
    index = open_row_index(rows, seekers, key=_name_of_reading(rows, config), writes=writes)
    return replace(_accepted(place, rows, index.scan, config.data), index=index)


def _name_of_reading(rows: Rows, config: RunConfig) -> str:
    """One for the same content and task."""
    parts = [NOTE_FORMAT, rows.fingerprint, rows.files, config.task.training_options]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _open(
    place: str, source: Source, config: RunConfig, task: Task, check: RowCheck | None
) -> Rows:
    return open_rows(
        source,
        config.data.columns,
        place,
        check=check or task.find_row_fault,
        skip_invalid=config.data.on_bad_row == "skip",
        media=task.media_column,
    )


def held_out_rows(config: RunConfig, task: Task) -> tuple[ReadSource, Iterable[Row]] | None:
    """The rows that a run of this config is scored on, with the source that they are of, not
    encoded; None where nothing is scored. Raises DtlError where they cannot be read."""
    data, place = config.data, _place_of_held_out(config.data)
    if place == "data.eval" and data.eval is not None:
        rows = _open(place, data.eval, config, task, None)
        return _accepted(place, rows, _noted(rows, config), data), rows
    sources, mixed = _sources(config, task, None, writes=True)
    held_out = split(config, task, sources, mixed)[1]
    return None if held_out is None else (sources[0], held_out)


def _noted(rows: Rows, config: RunConfig) -> SourceScan:
    """What one pass finds; for the same content and task it is found once, and noted."""
    note = cache_folder() / "read" / f"{_name_of_reading(rows, config)}.json"
    if note.exists():
        noted = json.loads(note.read_text(encoding="utf-8"))
        return SourceScan(noted["valid_rows"], tuple(Fault(*fault) for fault in noted["faults"]))
    reading = rows.scan()
    write_cache_file(
        note,
        json.dumps(
            {"valid_rows": reading.valid_rows, "faults": list(map(astuple, reading.faults))}
        ),
    )
    return reading


def _surveyed(
    rows: Rows | Part | Mixture, config: RunConfig, task: Task, settings: Any, *, writes: bool
) -> DatasetStats:
    """What the rows say; of rows that are streamed it is found once, and noted."""
    if not config.data.train.streaming:
        return task.collect_dataset_stats(rows, settings)
    parts = [NOTE_FORMAT, rows.fingerprint, config.task.training_options, settings.to_dict()]
    text = json.dumps(parts, sort_keys=True, default=str)
    note = cache_folder() / "surveyed" / f"{hashlib.sha256(text.encode()).hexdigest()}.json"
    if not writes:
        wait_for_file(note)
    elif not note.exists():
        write_cache_file(note, json.dumps(task.collect_dataset_stats(rows, settings)))
    dataset_stats: DatasetStats = json.loads(note.read_text(encoding="utf-8"))
    return dataset_stats


def _accepted(place: str, rows: Rows, reading: SourceScan, data: Data) -> ReadSource:
    _refuse_bad(reading, rows.name, data)
    return ReadSource(place, rows, reading.valid_rows, reading.faults)


def _refuse_bad(reading: SourceScan, name: str, data: Data) -> None:
    """Raise DtlError for rows at fault: any, or more than may be skipped."""
    bad, total = reading.faults, reading.valid_rows + len(reading.faults)
    if bad and data.on_bad_row == "fail":
        raise DtlError(*bad[:MAX_FAULTS_DISPLAYED])
    if bad and (reading.valid_rows == 0 or len(bad) / total > data.max_bad_fraction):
        raise DtlError.of(
            "data.max_bad_fraction",
            f"{len(bad)} of {total} rows of {name} are at fault, and no more than the share "
            f"{data.max_bad_fraction:g} may be skipped: {_first(bad)}",
            "fix the rows" if reading.valid_rows == 0 else "fix the rows, or raise the share",
        )


def _place_of_held_out(data: Data) -> str:
    """The key of the source that the scored rows are of."""
    of_train = data.eval is None or (
        data.subsample is not None and data.subsample.evaluate_on == "validation"
    )
    return "data.train" if of_train else "data.eval"


def _refuse_absent(rows: Iterable[Row], column: str) -> None:
    """Raise DtlError for a column that none of the rows has."""
    seen: dict[str, None] = {}
    for row in rows:
        if column in row.fields:
            return
        seen |= dict.fromkeys(row.fields)
    raise DtlError.of(
        "task.group_by",
        f"no held-out row has a column '{column}'",
        near(column, seen) or f"the rows have {', '.join(map(repr, seen))}",
    )


def _first(bad: tuple[Fault, ...]) -> str:
    told = [f"{fault.location} ({fault.problem})" for fault in bad[:SKIPPED_SHOWN]]
    return ", ".join([*told, "..."] if len(bad) > len(told) else told)


def _skipped(source: str, place: str, reason: str) -> dict[str, str]:
    return {"source": source, "location": place, "reason": reason}


def split(
    config: RunConfig, task: Task, sources: tuple[ReadSource, ...], mixed: tuple[ReadSource, ...]
) -> tuple[Rows | Part | Mixture, Rows | Part | None]:
    """The rows to learn from and those to score on, which are none of those mixed in."""
    train, held_out = _split(config, sources)
    if config.data.subsample is not None:
        train, apart = _few(train, task, config.data.subsample)
        held_out = apart if config.data.subsample.evaluate_on == "validation" else held_out
    return _mixed(config, train, mixed), held_out


def _mixed(
    config: RunConfig, train: Rows | Part, mixed: tuple[ReadSource, ...]
) -> Rows | Part | Mixture:
    data = config.data
    if not mixed and data.train.weight == 1:
        return train
    weights = (source.weight for source in (data.train, *data.mix))
    rows = (train, *(source.rows for source in mixed))
    return Mixture(tuple(zip(rows, weights, strict=True)))


def _few(rows: Rows | Part, task: Task, draw: Subsample) -> tuple[Part, Part]:
    """The rows drawn to learn from, and those kept apart. Raises DtlError for too few of either."""
    found = draw_subsample(_classes(rows, task), draw)
    if found.largest_class is not None:
        of = "no class has" if isinstance(task, Classification) else "there are not"
        raise DtlError.of(
            "data.subsample.size",
            f"{of} {draw.size} labelled rows to learn from, but {found.largest_class} at most",
            f"set it to {found.largest_class} or less, or leave it out",
        )
    if draw.validation_fraction and not found.validation_rows:
        raise DtlError.of(
            "data.subsample.validation_fraction",
            "there are too few rows to keep any apart",
            "give more rows",
        )
    return Part(rows, found.training_rows, inside=True), Part(
        rows, found.validation_rows, inside=True
    )


def labelled(config: RunConfig, task: Task) -> dict[str, list[int]]:
    """Numbers of the rows of data.train that are not held out, by class; without classes all in
    one, which has no name. Raises DtlError for rows at fault."""
    sources, _ = _sources(config, task, None, writes=True)
    return _classes(_split(config, sources)[0], task)


def _classes(rows: Iterable[Row], task: Task) -> dict[str, list[int]]:
    classes: dict[str, list[int]] = {}
    for row in rows:
        name = get_label(row) if isinstance(task, Classification) else ""
        classes.setdefault(name, []).append(row.index)
    return classes


def _split(
    config: RunConfig, sources: tuple[ReadSource, ...]
) -> tuple[Rows | Part, Rows | Part | None]:
    train = sources[0]
    if len(sources) > 1:
        return train.rows, sources[1].rows
    if config.data.eval_fraction is None:
        return train.rows, None
    chosen = _drawn(range(train.good), config.data.eval_fraction, seed=HELD_OUT_SEED)
    return Part(train.rows, chosen, inside=False), Part(train.rows, chosen, inside=True)


def _drawn(numbers: Sequence[int], share: float, *, seed: int) -> frozenset[int]:
    """So large a share of the numbers, one at least."""
    total = len(numbers)
    shuffled = epoch_rng(seed=seed, epoch=0).permutation(total)
    return frozenset(numbers[place] for place in shuffled[: max(1, round(total * share))].tolist())


@dataclass(frozen=True)
class Part:
    """The rows of a source that are held out, or the others; or a part of these."""

    rows: Rows | Part
    chosen: frozenset[int]
    inside: bool

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((sorted(self.chosen), self.inside)).encode()).hexdigest()
        return f"{self.rows.fingerprint}/{digest}"

    def __iter__(self) -> Iterator[Row]:
        return (row for row in self.rows if (row.index in self.chosen) == self.inside)


@dataclass(frozen=True)
class Mixture:
    """Rows of several sources, each as often as its weight says, numbered as they come. Once they
    are encoded, an epoch is an epoch: every example of the mixture exactly once."""

    weighted: tuple[tuple[Rows | Part, float], ...]

    @property
    def fingerprint(self) -> str:
        parts = [[rows.fingerprint, weight] for rows, weight in self.weighted]
        return f"mixture/{hashlib.sha256(json.dumps(parts).encode()).hexdigest()}"

    def __iter__(self) -> Iterator[Row]:
        each = (_repeated(rows, weight) for rows, weight in self.weighted)
        return (replace(row, index=n) for n, row in enumerate(chain.from_iterable(each)))


def _repeated(rows: Rows | Part, weight: float) -> Iterator[Row]:
    whole, share = divmod(weight, 1)
    for _ in range(int(whole)):
        yield from rows
    if share:
        chosen = _drawn([row.index for row in rows], share, seed=MIX_SEED)
        yield from (row for row in rows if row.index in chosen)


def _fingerprint(processor: Any) -> str:
    """Of all that decides how an input is read."""
    if hasattr(processor, "feature_extractor"):
        return f"{_fingerprint(processor.feature_extractor)}/{_fingerprint(processor.tokenizer)}"
    if not hasattr(processor, "get_vocab"):
        return hashlib.sha256(processor.to_json_string().encode()).hexdigest()
    return _fingerprint_of_tokenizer(processor)


def _fingerprint_of_tokenizer(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    special: Iterable[Any] = (
        tokenizer.chat_template,
        tokenizer.special_tokens_map,
        tokenizer.model_max_length,
    )
    return hashlib.sha256(f"{vocabulary}{special}".encode()).hexdigest()
