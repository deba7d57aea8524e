"""The config of a pretrained model, and the class that builds the model from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dtl.config.schema import Model
from dtl.core.errors import DtlError
from dtl.models.load_errors import translate_load_errors
from dtl.models.locate import locate_model
from dtl.models.trust import LOCATION, check_no_remote_code


@dataclass(frozen=True)
class HeadConfig:
    """The auto class of transformers that gives a model its head, such as `AutoModelForCTC`, and
    changes to the model's config, such as the number of labels."""

    auto_class: str
    config_changes: dict[str, Any]


def load_model_config(model: Model) -> Any:
    """Return the model's own config (`PretrainedConfig`). Reads no weights."""
    from transformers import AutoConfig, PretrainedConfig

    where = locate_model(model)
    with translate_load_errors(model, "config"):
        check_no_remote_code(where, model)
        written, _ = PretrainedConfig.get_config_dict(where, revision=model.revision)
        if written.get("model_type") == "timm_wrapper":
            raise DtlError.of(
                LOCATION,
                f"{model.path} is a timm model, and dtl does not read timm's files",
                "take a model of transformers, such as microsoft/resnet-50, "
                "facebook/convnext-tiny-224 or google/vit-base-patch16-224",
            )
        return AutoConfig.from_pretrained(
            where, revision=model.revision, trust_remote_code=model.trust_remote_code
        )


def load_changed_config(model: Model, head: HeadConfig) -> Any:
    """Return the model's config with the changes that give it the head."""
    config = load_model_config(model)
    for name, value in head.config_changes.items():
        setattr(config, name, value)
    return config


def get_auto_class(model: Model, head: HeadConfig) -> Any:
    """Return the auto class. Raises DtlError if it has no class for this model type."""
    import transformers

    auto_class = getattr(transformers, head.auto_class)
    config = load_model_config(model)
    if not model.trust_remote_code and type(config) not in auto_class._model_mapping:
        raise DtlError.of(
            LOCATION,
            f"{model.path} is a {config.model_type} model, which has no {head.auto_class} class",
            "take a model made for the task, or another task",
        )
    return auto_class


def get_class_arguments(model: Model, head: HeadConfig) -> dict[str, Any]:
    """Return the arguments with which the auto class builds the model.

    A model without a head has no pooling layer either: nothing would read it.
    """
    import inspect

    from transformers import AutoModel

    config = load_model_config(model)
    if head.auto_class != "AutoModel" or type(config) not in AutoModel._model_mapping:
        return {}
    classes = AutoModel._model_mapping[type(config)]
    first = classes[0] if isinstance(classes, tuple) else classes
    has_pooler = "add_pooling_layer" in inspect.signature(first.__init__).parameters
    return {"add_pooling_layer": False} if has_pooler else {}
