"""Write the tables of docs/slurm.md and docs/sites.md: `python docs/make_site_tables.py`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from dtl.backends.slurm import Container, Options
from dtl.cluster.sites import list_sites, read_site

PAGES = tuple(Path(__file__).parent / name for name in ("slurm.md", "sites.md"))
TABLE = re.compile(
    r"(<!-- (fields|sites): made by [\w/.]+ -->\n).*?(<!-- end of \2 -->)", re.DOTALL
)


def page(text: str) -> str:
    """Return the page with its tables replaced."""
    tables = {"fields": _fields, "sites": _sites}
    rendered = {name: "\n".join(rows()) for name, rows in tables.items()}
    return TABLE.sub(lambda match: f"{match[1]}\n{rendered[match[2]]}\n\n{match[3]}", text)


def _sites() -> Iterator[str]:
    yield "| site | cluster | GPUs per node | launcher | sources |"
    yield "|---|---|---|---|---|"
    for name in list_sites():
        site = read_site(name)
        pages = dict.fromkeys(page for page in site.sources.values() if page != site.documentation)
        guide = [f"[guide]({site.documentation})"] if site.documentation else []
        numbered = [f"[{number}]({page})" for number, page in enumerate(pages, start=1)]
        launcher = site.launcher if site.container is None else site.container.kind
        yield (
            f"| [`{name}`](../slurm/clusters/{name}.yaml) | {site.description} | "
            f"{site.gpus_per_node} | {launcher} | {', '.join([*guide, *numbered]) or '-'} |"
        )


def _fields() -> Iterator[str]:
    yield "| field | default | meaning |"
    yield "|---|---|---|"
    for prefix, record in (("", Options), ("container.", Container)):
        for name, field in record.model_fields.items():
            yield _row(prefix + name, field)


def _row(name: str, field: FieldInfo) -> str:
    words = getattr(field.annotation, "__args__", ())
    choice = ", ".join(f"`{word}`" for word in words if isinstance(word, str))
    meaning = f"{field.description}: {choice}" if choice else field.description
    return f"| `{name}` | {_default(field)} | {meaning} |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value: Any = field.get_default(call_default_factory=True)
    return "none" if value is None else f"`{json.dumps(value)}`"


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
