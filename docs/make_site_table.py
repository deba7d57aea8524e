"""Write the table of a site's fields into docs/slurm.md: `python docs/make_site_table.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from dtl.backends.slurm import Container, Options

PAGE = Path(__file__).parent / "slurm.md"
START, END = "<!-- fields: made by docs/make_site_table.py -->\n", "<!-- end of fields -->\n"


def page(text: str) -> str:
    """The page with its table made anew."""
    before, _, rest = text.partition(START)
    return before + START + "\n".join(["", *_rows(), "", END]) + rest.partition(END)[2]


def _rows() -> Iterator[str]:
    yield "| field | default | |"
    yield "|---|---|---|"
    for prefix, record in (("", Options), ("container.", Container)):
        for name, field in record.model_fields.items():
            yield _row(prefix + name, field)


def _row(name: str, field: FieldInfo) -> str:
    words = getattr(field.annotation, "__args__", ())
    choice = ", ".join(f"`{word}`" for word in words if isinstance(word, str))
    about = f"{field.description}: {choice}" if choice else field.description
    return f"| `{name}` | {_default(field)} | {about} |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value: Any = field.get_default(call_default_factory=True)
    return "left out" if value is None else f"`{json.dumps(value)}`"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
