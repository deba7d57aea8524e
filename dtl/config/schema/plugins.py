"""The sections `task` and `strategy`: a plugin by name, with its options."""

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
from dtl.config.schema.base import (
    ConfigFault,
    Record,
    check_share_or_steps,
    raise_config_faults,
)


class PluginConfig(Record):
    """A plugin by name with its options; both `lora` and `{name: lora, rank: 8}` are accepted."""

    folder: ClassVar[registry.Folder]

    name: str = Field(description="name of the plugin")
    options: SerializeAsAny[Record] = Field(description="options of the plugin")

    @model_validator(mode="before")
    @classmethod
    def _validate_options(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, dict) or isinstance(value.get("options"), Record):
            return value
        name = value.get("name")
        if not isinstance(name, str):
            return {"name": name, "options": Record()} if "name" in value else {"options": Record()}
        if name not in registry.list_names(cls.folder):
            problem, fix = registry.describe_unknown(cls.folder, name)
            raise_config_faults([ConfigFault("name", problem=problem, fix=fix)])
        shared = cls.shared_fields()
        own = {key: option for key, option in value.items() if key not in shared}
        options = registry.load_options(cls.folder, name).model_validate(own)
        return {**{key: value[key] for key in shared if key in value}, "options": options}

    @model_serializer
    def _serialize_flat(self, info: SerializationInfo) -> dict[str, Any]:
        shared = {key: getattr(self, key) for key in self.shared_fields()}
        return {**shared, **self.options.model_dump(mode=info.mode)}

    @classmethod
    def shared_fields(cls) -> dict[str, FieldInfo]:
        """Return the keys that every plugin of the folder has besides its options, name first."""
        return {key: field for key, field in cls.model_fields.items() if key != "options"}


class TaskConfig(PluginConfig):
    """What the model learns to do."""

    folder = "tasks"

    group_by: str | None = Field(
        default=None,
        min_length=1,
        description="column of the held-out rows; the score is also given for each of its values",
    )

    @property
    def training_options(self) -> dict[str, Any]:
        """The name and the options that change what is learned; not how scores are reported."""
        flat = self.model_dump(mode="json")
        return {key: value for key, value in flat.items() if key != "group_by"}


class StrategyConfig(PluginConfig):
    """Which parameters are trained."""

    folder = "strategies"


class Phase(PluginConfig):
    """The strategy of one part of a run; the next phase continues from its weights."""

    folder = "strategies"

    length: float | None = Field(
        default=None,
        gt=0,
        description="length of the phase: below 1 a share of all steps, else steps; default: an "
        "equal part of the remaining steps",
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        le=100,
        description="highest learning rate of the phase; default: optim.learning_rate, or what is "
        "usual for the strategy",
    )

    @field_validator("length")
    @classmethod
    def _check_length(cls, length: float | None) -> float | None:
        return length if length is None else check_share_or_steps(length)


def _select_form(value: Any) -> str:
    return "phases" if isinstance(value, list | tuple) else "one"


Strategies = Annotated[
    Annotated[StrategyConfig, Tag("one")] | Annotated[tuple[Phase, ...], Tag("phases")],
    Discriminator(_select_form),
]
