"""A plugin by name with its options: a task, a strategy, or strategies one after another."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import (
    Discriminator,
    Field,
    SerializationInfo,
    SerializeAsAny,
    Tag,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo

from dtl.config import registry
from dtl.config.record import ConfigFault, Record, refuse, share_or_steps


class Choice(Record):
    """A plugin by name with its options; `lora` and `{name: lora, rank: 8}` are both read."""

    folder: ClassVar[registry.Folder]

    name: str = Field(description="name of the plugin")
    options: SerializeAsAny[Record] = Field(description="options of the plugin")

    @model_validator(mode="before")
    @classmethod
    def _typed_options(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, dict) or isinstance(value.get("options"), Record):
            return value
        name = value.get("name")
        if not isinstance(name, str):
            return {"name": name, "options": Record()} if "name" in value else {"options": Record()}
        if name not in registry.names(cls.folder):
            problem, fix = registry.unknown(cls.folder, name)
            refuse([ConfigFault("name", problem=problem, fix=fix)])
        given = {key: option for key, option in value.items() if key not in cls.of_all()}
        options = registry.options(cls.folder, name).model_validate(given)
        of_all = {key: value[key] for key in cls.of_all() if key in value}
        return {**of_all, "options": options}

    @model_serializer
    def _flat(self, info: SerializationInfo) -> dict[str, Any]:
        of_all = {key: getattr(self, key) for key in self.of_all()}
        return {**of_all, **self.options.model_dump(mode=info.mode)}

    @classmethod
    def of_all(cls) -> dict[str, FieldInfo]:
        """The keys that stand beside the options of every plugin of the folder; the name first."""
        return {key: field for key, field in cls.model_fields.items() if key != "options"}


class TaskChoice(Choice):
    """What is learnt."""

    folder = "tasks"

    group_by: str | None = Field(
        default=None,
        min_length=1,
        description="column of the held-out rows by whose values the score is broken down",
    )

    @property
    def learnt(self) -> dict[str, Any]:
        """The name and the options, which decide what is learnt; not how scores are told."""
        flat = self.model_dump(mode="json")
        return {key: value for key, value in flat.items() if key != "group_by"}


class StrategyChoice(Choice):
    """Which parameters learn."""

    folder = "strategies"


class Phase(Choice):
    """What learns in one part of a run that goes on from part to part."""

    folder = "strategies"

    length: float | None = Field(
        default=None,
        gt=0,
        description="how long the phase is: below 1 a share of all steps, else steps; left out: an "
        "equal part of what is left",
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        description="highest learning rate of the phase; left out: optim.learning_rate, or what is "
        "usual for the strategy",
    )

    @field_validator("length")
    @classmethod
    def _in_whole_steps(cls, length: float | None) -> float | None:
        return length if length is None else share_or_steps(length)


def _one_or_several(value: Any) -> str:
    return "phases" if isinstance(value, list | tuple) else "one"


Strategies = Annotated[
    Annotated[StrategyChoice, Tag("one")] | Annotated[tuple[Phase, ...], Tag("phases")],
    Discriminator(_one_or_several),
]
