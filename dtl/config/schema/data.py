"""The section `data`: the examples to train and to evaluate on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from dtl.config.schema.base import ConfigFault, Record, check_no_url, raise_config_faults
from dtl.config.schema.data_files import FileOptions

# The texts of a chat that a chat template may have no place for.
ChatFeature = Literal[
    "system", "content", "reasoning", "tool_calls", "tool_results", "tools", "documents"
]


class Source(FileOptions):
    """Where examples come from. A plain text is the path alone."""

    path: str = Field(
        min_length=1, description="local file or folder, hub dataset, or mini:NAME/SPLIT"
    )
    name: str | None = Field(default=None, description="configuration of a hub dataset")
    split: str | None = Field(default=None, description="split of a hub dataset, such as train")
    limit: int | None = Field(default=None, ge=1, description="examples to read; default: all")
    weight: float = Field(
        default=1.0,
        gt=0,
        le=1000,
        description="how often an epoch reads each training row: 2 is twice, 0.5 half of the rows",
    )
    streaming: bool = Field(
        default=False,
        description="of data.train: read and encode each row in the step that trains on it, "
        "instead of all of them once into the cache",
    )

    _check_path = field_validator("path")(check_no_url)

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            raise_config_faults(
                [
                    ConfigFault(
                        problem="a list is not one source",
                        fix="write one path here; further sources to train on go to data.mix",
                    )
                ]
            )
        return {"path": value} if isinstance(value, str) else value


class Subsample(Record):
    """A random subsample of data.train; with one seed, a smaller one is part of a larger one."""

    size: int | None = Field(
        default=None,
        ge=1,
        description="rows of each class if the task has classes, else rows in total; default: "
        "all that are not validation rows",
    )
    feature_cache_size: int | Literal["all"] | None = Field(
        default=None,
        description="the size, or a larger one, or all: the outputs of a frozen base are cached "
        "for a subsample of this size, and runs with smaller ones share them; default: the size",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="random seed of the subsample")
    validation_fraction: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the rows, at most 500, that no run trains on, to choose settings by; "
        "the same rows for every seed",
    )
    evaluate_on: Literal["eval", "validation"] = Field(
        default="eval",
        description="rows to evaluate on: the held-out rows, or those of validation_fraction",
    )

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        faults = []
        if self.evaluate_on == "validation" and not self.validation_fraction:
            faults.append(
                ConfigFault(
                    "evaluate_on",
                    problem="there are no validation rows",
                    fix="set data.subsample.validation_fraction, such as 0.2, or "
                    "data.subsample.evaluate_on to eval",
                )
            )
        cached = self.feature_cache_size
        if isinstance(cached, int) and (self.size is None or cached < self.size):
            size = "all" if self.size is None else self.size
            faults.append(
                ConfigFault(
                    "feature_cache_size",
                    problem=f"{cached} is smaller than data.subsample.size ({size})",
                    fix="set it to data.subsample.size or more, or to all",
                )
            )
        raise_config_faults(faults)
        return self

    @property
    def cached_subsample(self) -> Subsample:
        """The subsample whose features are cached; `feature_cache_size` is set."""
        size = None if self.feature_cache_size == "all" else self.feature_cache_size
        return self.model_copy(update={"size": size, "feature_cache_size": None})


class Data(FileOptions):
    """The examples to train and to evaluate on."""

    train: Source = Field(description="examples to train on")
    mix: tuple[Source, ...] = Field(
        default=(), description="further sources to train on, each with its weight"
    )
    eval: Source | None = Field(default=None, description="held-out examples to evaluate on")
    columns: dict[str, str] = Field(
        default_factory=dict, description="dtl's name of a column -> its name in the data"
    )
    eval_fraction: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="share of data.train that is held out to evaluate on, if data.eval is not set",
    )
    subsample: Subsample | None = Field(
        default=None, description="train on a random subsample of data.train; default: all of it"
    )
    on_bad_row: Literal["fail", "skip"] = Field(
        default="fail",
        description="what happens at an invalid row: the run stops, or the row is skipped, counted "
        "and listed in skipped_rows.jsonl",
    )
    allow_dropped: tuple[ChatFeature, ...] = Field(
        default=(),
        description="what the chat template may leave out of a chat, such as [tools]; a chat of "
        "which it leaves out something else stops the run",
    )
    max_bad_fraction: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="share of the rows of a source that may be skipped; more stop the run",
    )

    @field_validator("columns")
    @classmethod
    def _check_columns(cls, columns: dict[str, str]) -> dict[str, str]:
        raise_config_faults(
            ConfigFault(
                name,
                problem="the name of the column is empty",
                fix="fill it in, or remove the key; is it a shell variable that is not set?",
            )
            for name, column in columns.items()
            if not column
        )
        return columns

    @model_validator(mode="after")
    def _check_sections(self) -> Self:
        raise_config_faults([*self._eval_faults(), *self._streaming_faults()])
        return self

    def with_file_options(self, source: Source) -> Source:
        """Return a source that has the file options of this section where it sets none itself."""
        return source.model_copy(update={**self.file_options, **source.file_options})

    def _eval_faults(self) -> Iterator[ConfigFault]:
        if self.eval is not None and self.eval.weight != 1:
            yield ConfigFault(
                "eval",
                "weight",
                problem="every held-out row is evaluated once",
                fix="remove data.eval.weight",
            )
        if self.eval is not None and self.eval_fraction is not None:
            yield ConfigFault(
                "eval_fraction",
                problem="data.eval is set as well",
                fix="keep one of the two: remove data.eval_fraction or data.eval",
            )

    def _streaming_faults(self) -> Iterator[ConfigFault]:
        """Only data.train is streamed; its rows are neither weighted, mixed nor subsampled."""
        others = [("eval", self.eval), *(("mix", source) for source in self.mix)]
        for key, source in others:
            if source is not None and source.streaming:
                yield ConfigFault(
                    key,
                    "streaming",
                    problem="only data.train is streamed",
                    fix="remove it here",
                )
        if self.train.streaming and (self.mix or self.train.weight != 1):
            yield ConfigFault(
                "train",
                "streaming",
                problem="streamed rows are read once an epoch, and are not mixed with others",
                fix="remove data.mix and data.train.weight, and put all files into one folder, or "
                "remove streaming",
            )
        if self.train.streaming and self.subsample is not None:
            yield ConfigFault(
                "subsample",
                problem="streamed rows are not subsampled",
                fix="remove data.subsample, or data.train.streaming",
            )
