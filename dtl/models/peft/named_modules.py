"""Check that the modules which an adapter's options name exist."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dtl.core.errors import DtlError, Fault, near, shorten_message

if TYPE_CHECKING:
    from torch import nn


def check_modules_exist(model: nn.Module, options: Mapping[str, Any]) -> None:
    """Raise DtlError with each item that matches nothing: PEFT ignores it.

    `options`: target_modules, exclude_modules, layers_to_transform and modules_to_save, where the
    strategy has them. A list has endings of names; a text is a regular expression.
    """
    names = [name for name, _ in model.named_modules() if name]
    targets = [*names, *(name for name, _ in model.named_parameters())]
    faults = [
        *_item_faults("target_modules", options.get("target_modules"), targets),
        *_item_faults("exclude_modules", options.get("exclude_modules"), targets),
        *_item_faults("modules_to_save", options.get("modules_to_save"), names),
        *_block_faults(options.get("layers_to_transform"), names),
    ]
    if faults:
        raise DtlError(*faults)


def _item_faults(
    key: str, value: str | Sequence[str] | None, names: Sequence[str]
) -> Iterator[Fault]:
    if isinstance(value, str):
        if key == "exclude_modules" and not any(re.fullmatch(value, name) for name in names):
            yield Fault(
                f"strategy.{key}",
                f"no layer has a name like '{shorten_message(value)}'",
                "correct or remove it",
            )
        return
    for item in value or ():
        if not any(name == item or name.endswith(f".{item}") for name in names):
            endings = sorted({name.rpartition(".")[2] for name in names} - {"weight", "bias"})
            known = [each for each in endings if not each.isdecimal()]
            yield Fault(
                f"strategy.{key}",
                f"no module has a name that ends with '{shorten_message(item)}'",
                near(item, known) or f"name one of: {shorten_message(', '.join(known))}",
            )


def _block_faults(blocks: Sequence[int] | None, names: Sequence[str]) -> Iterator[Fault]:
    numbers = {int(part) for name in names for part in name.split(".") if part.isdecimal()}
    for block in blocks or ():
        if block not in numbers:
            last = f"the last one is {max(numbers)}" if numbers else "the model has none"
            yield Fault(
                "strategy.layers_to_transform", f"there is no block {block}; {last}", "remove it"
            )
