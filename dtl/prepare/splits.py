"""Which rows a run trains on, and which it evaluates on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dtl.config.schema import Data, RunConfig, Subsample
from dtl.core.errors import DtlError, near
from dtl.data.sources.rows import Row, Rows
from dtl.data.subsample import draw_subsample
from dtl.prepare.row_sets import Mixture, RowSubset, sample_share
from dtl.prepare.sources import ScannedSource, SourceReader, scan_sources
from dtl.tasks.base import Task

HELD_OUT_SEED = 20_000_003  # fixed, so that train.seed does not change which rows are held out


@dataclass(frozen=True)
class RowSplit:
    """The rows to train on and, unless None, to evaluate on.

    `labeled`: the rows whose labels are known, which are more than `train` if only a subsample is
    trained on.
    """

    train: Rows | RowSubset | Mixture
    held_out: Rows | RowSubset | None
    labeled: Rows | RowSubset | Mixture


def split_rows(
    config: RunConfig,
    task: Task,
    sources: tuple[ScannedSource, ...],
    mixed_sources: tuple[ScannedSource, ...],
) -> RowSplit:
    """Return the split of a config. No row of data.mix is held out. Raises DtlError."""
    available, held_out = _hold_out(config, sources)
    train, subsample = available, config.data.subsample
    if subsample is not None:
        train, validation = _draw_subsample(available, task, subsample)
        held_out = validation if subsample.evaluate_on == "validation" else held_out
    split = RowSplit(
        train=_mix(config, train, mixed_sources),
        held_out=held_out,
        labeled=_mix(config, available, mixed_sources),
    )
    if held_out is not None and config.task.group_by is not None:
        _check_has_column(held_out, config.task.group_by)
    return split


def select_cached_subsample(
    config: RunConfig, task: Task, sources: tuple[ScannedSource, ...]
) -> RowSubset | None:
    """Return the larger subsample whose features are cached; None if there is none.

    A mixture has indices of its own, so that its features are cached for itself alone.
    """
    data = config.data
    is_mixture = bool(data.mix) or data.train.weight != 1
    if data.subsample is None or data.subsample.feature_cache_size is None or is_mixture:
        return None
    rows = _hold_out(config, sources)[0]
    drawn = draw_subsample(group_by_class(rows, task), data.subsample.cached_subsample)
    return RowSubset(rows, drawn.training_rows, include=True)


def find_held_out_rows(config: RunConfig, task: Task) -> tuple[ScannedSource, Iterable[Row]] | None:
    """Return the rows that a run is evaluated on, and their source; None if there are none.

    Raises DtlError if they cannot be read.
    """
    reader = SourceReader(config, task)
    if held_out_key(config.data) == "data.eval" and config.data.eval is not None:
        source = reader.scan("data.eval", reader.open("data.eval", config.data.eval))
        return source, source.rows
    sources, mixed_sources = scan_sources(reader)
    held_out = split_rows(config, task, sources, mixed_sources).held_out
    return None if held_out is None else (sources[0], held_out)


def find_class_rows(config: RunConfig, task: Task) -> dict[str, list[int]]:
    """Return the indices of the rows of data.train that are not held out, by class.

    Without classes, all of them are in one class with the name "". Raises DtlError for invalid
    rows.
    """
    sources, _ = scan_sources(SourceReader(config, task))
    return group_by_class(_hold_out(config, sources)[0], task)


def group_by_class(rows: Iterable[Row], task: Task) -> dict[str, list[int]]:
    """Return the indices of rows by class; "" without classes."""
    classes: dict[str, list[int]] = {}
    for row in rows:
        classes.setdefault(task.get_class(row), []).append(row.index)
    return classes


def held_out_key(data: Data) -> str:
    """Return the config key of the source that the held-out rows are part of."""
    subsample = data.subsample
    is_validation = subsample is not None and subsample.evaluate_on == "validation"
    return "data.train" if data.eval is None or is_validation else "data.eval"


def _hold_out(
    config: RunConfig, sources: tuple[ScannedSource, ...]
) -> tuple[Rows | RowSubset, Rows | RowSubset | None]:
    train = sources[0]
    if len(sources) > 1:
        return train.rows, sources[1].rows
    if config.data.eval_fraction is None:
        return train.rows, None
    share, rows = config.data.eval_fraction, train.valid_rows
    indices = sample_share(range(rows), share, seed=HELD_OUT_SEED)
    if len(indices) >= rows:
        raise DtlError.of(
            "data.eval_fraction",
            f"{share} of {rows} rows leaves none to train on",
            "write a smaller share, such as 0.1, or set data.eval",
        )
    return (
        RowSubset(train.rows, indices, include=False),
        RowSubset(train.rows, indices, include=True),
    )


def _draw_subsample(
    rows: Rows | RowSubset, task: Task, options: Subsample
) -> tuple[RowSubset, RowSubset]:
    """Return training and validation rows. Raises DtlError if there are too few of either."""
    drawn = draw_subsample(group_by_class(rows, task), options)
    if drawn.largest_class is not None:
        subject = "no class has" if task.has_classes else "there are not"
        raise DtlError.of(
            "data.subsample.size",
            f"{subject} {options.size} labeled rows to train on, but at most {drawn.largest_class}",
            f"set it to {drawn.largest_class} or less, or leave it out",
        )
    if options.validation_fraction and not drawn.validation_rows:
        raise DtlError.of(
            "data.subsample.validation_fraction",
            "there are too few rows for validation rows",
            "give more rows",
        )
    return (
        RowSubset(rows, drawn.training_rows, include=True),
        RowSubset(rows, drawn.validation_rows, include=True),
    )


def _mix(
    config: RunConfig, train: Rows | RowSubset, mixed_sources: tuple[ScannedSource, ...]
) -> Rows | RowSubset | Mixture:
    data = config.data
    if not mixed_sources and data.train.weight == 1:
        return train
    weights = (source.weight for source in (data.train, *data.mix))
    rows = (train, *(source.rows for source in mixed_sources))
    return Mixture(tuple(zip(rows, weights, strict=True)))


def _check_has_column(rows: Iterable[Row], column: str) -> None:
    """Raise DtlError for a column that no row has."""
    columns: dict[str, None] = {}
    for row in rows:
        if column in row.fields:
            return
        columns |= dict.fromkeys(row.fields)
    raise DtlError.of(
        "task.group_by",
        f"no held-out row has a column '{column}'",
        near(column, columns) or f"the rows have {', '.join(map(repr, columns))}",
    )
