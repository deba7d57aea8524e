"""The config of a pretrained model, and the class that builds the model from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dtl.config.schema import Model
from dtl.core.errors import DtlError
from dtl.models.load_errors import translate_load_errors
from dtl.models.locate import locate_model
from dtl.models.trust import LOCATION, check_no_remote_code

if TYPE_CHECKING:
    pass


def load_model_config(model: Model) -> Any:
    """The model's own config (transformers' PretrainedConfig). Reads no weights."""
    from transformers import AutoConfig, PretrainedConfig

    where = locate_model(model)
    with translate_load_errors(model, "config"):
        check_no_remote_code(where, model)
        written, _ = PretrainedConfig.get_config_dict(where, revision=model.revision)
        if written.get("model_type") == "timm_wrapper":
            raise DtlError.of(
                LOCATION,
                f"{model.path} is a model of timm, whose files dtl does not read",
                "take one that transformers itself knows, such as microsoft/resnet-50, "
                "facebook/convnext-tiny-224 or google/vit-base-patch16-224",
            )
        return AutoConfig.from_pretrained(
            where, revision=model.revision, trust_remote_code=model.trust_remote_code
        )


def load_changed_config(model: Model, changes: dict[str, Any]) -> Any:
    settings = load_model_config(model)
    for name, value in changes.items():
        setattr(settings, name, value)
    return settings


def get_auto_class(head: str, model: Model) -> Any:
    import transformers

    auto = getattr(transformers, head)
    settings = load_model_config(model)
    if not model.trust_remote_code and type(settings) not in auto._model_mapping:
        raise DtlError.of(
            LOCATION,
            f"{model.path} is a {settings.model_type} model, which has no {head} form",
            "take a model made for the task, or another task",
        )
    return auto
