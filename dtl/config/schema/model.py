"""The section `model`: the pretrained model that is adapted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from dtl.config.schema.base import ConfigFault, Record, check_no_url, raise_config_faults
from dtl.core.errors import near

ATTENTIONS = (
    "sdpa",
    "eager",
    "flex_attention",
    "flash_attention_2",
    "flash_attention_3",
    "flash_attention_4",
)
KERNEL_OWNER = "kernels-community/"  # of the hub; a kernel is code, and transformers trusts these
KERNEL_PATTERN = re.escape(KERNEL_OWNER) + r"[\w.-]+(@[\w.-]+)?(:\w+)?"


class Model(Record):
    """The pretrained model that is adapted."""

    path: str = Field(
        min_length=1, description="hub id, local folder, or mini:NAME for a base that dtl ships"
    )
    revision: str | None = Field(
        default=None, description="branch, tag or commit of a hub model; default: its main branch"
    )
    adapters: tuple[str, ...] = Field(
        default=(),
        description="folders of adapters (a run's export, or PEFT's) that are merged into the base "
        "before anything else, in this order",
    )
    add_tokens: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(),
        description="texts that become one token each; their rows of the embeddings start at the "
        "mean of the others and are trained",
    )
    add_special_tokens: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(),
        description="the same for tokens that generated text leaves out, such as <|tool|>",
    )
    resize_embeddings: bool = Field(
        default=False,
        description="add rows to the embeddings for tokens of the tokenizer that have none, and "
        "train them",
    )
    dtype: Literal["fp32", "bf16", "fp16"] | None = Field(
        default=None, description="number format of the weights; default: planned"
    )
    tf32: bool = Field(
        default=False,
        description="let products and convolutions of fp32 numbers on a GPU round their inputs to "
        "TF32 (10 bits of mantissa), which is several times faster; no effect in bf16 and fp16",
    )
    quantize: Literal["nf4", "int8"] | None = Field(
        default=None,
        description="store the linear layers of the base in 4 or 8 bits and train LoRA or another "
        "adapter on them (QLoRA); default: no quantization",
    )
    double_quantize: bool = Field(
        default=True, description="with nf4, quantize the scales of its blocks as well"
    )
    attention: str | None = Field(
        default=None,
        description="attention implementation of transformers: `sdpa`, `eager`, `flex_attention`, "
        "`flash_attention_2`, `_3` or `_4`, or a kernel of the hub, as "
        "`kernels-community/flash-attn2`; default: the model's own default",
    )
    trust_remote_code: bool = Field(
        default=False, description="run the Python code that comes with the model"
    )
    staging_dir: str | None = Field(
        default=None,
        min_length=1,
        description="folder on each node's own disk, such as $TMPDIR, to which one process copies "
        "the weights before all processes of the node read them; default: no copy",
    )

    _check_path = field_validator("path")(check_no_url)

    @field_validator("attention")
    @classmethod
    def _check_attention(cls, name: str | None) -> str | None:
        if name is None or name in ATTENTIONS or re.fullmatch(KERNEL_PATTERN, name):
            return name
        hint = near(name, ATTENTIONS) or f"set one of {', '.join(ATTENTIONS)}"
        raise_config_faults(
            [
                ConfigFault(
                    problem=f"'{name}' is no attention implementation of transformers",
                    fix=f"{hint}, or a kernel as {KERNEL_OWNER}NAME",
                )
            ]
        )
        return name

    @model_validator(mode="after")
    def _check_double_quantize(self) -> Self:
        if not self.double_quantize and self.quantize != "nf4":
            raise_config_faults(
                [
                    ConfigFault(
                        "double_quantize",
                        problem=f"there are no scales of nf4 with model.quantize {self.quantize}",
                        fix="set model.quantize to nf4, or remove model.double_quantize",
                    )
                ]
            )
        return self

    @model_validator(mode="after")
    def _check_adapters_are_mergeable(self) -> Self:
        if self.adapters and self.quantize is not None:
            raise_config_faults(
                [
                    ConfigFault(
                        "adapters",
                        problem="adapters cannot be merged into quantized weights",
                        fix="export the adapters merged, and set model.path to that export",
                    )
                ]
            )
        return self

    @model_validator(mode="after")
    def _check_remote_code_is_pinned(self) -> Self:
        is_pinned = re.fullmatch("[0-9a-f]{40}", self.revision or "")
        if self.trust_remote_code and not is_pinned and not Path(self.path).is_dir():
            raise_config_faults(
                [
                    ConfigFault(
                        "trust_remote_code",
                        problem=f"the newest code of '{self.path}' on the hub would be run, "
                        "whatever it is",
                        fix="set model.revision to a commit that you have read, all 40 digits",
                    )
                ]
            )
        return self
