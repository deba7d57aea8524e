"""Write the tables of docs/sites.md from slurm/clusters: `python docs/make_sites_table.py`."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pydantic_core import PydanticUndefined

from dtl.backends.slurm import Container, Options, site, sites
from dtl.config.record import Record

PAGE = Path(__file__).parent / "sites.md"
TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def page(text: str) -> str:
    """The page with its tables as files and record have them."""
    tables = {"sites": _sites(), "fields": _fields(Options), "container": _fields(Container)}
    return TABLE.sub(lambda found: f"{found[1]}\n{tables[found[2]]}\n\n{found[3]}", text)


def _sites() -> str:
    rows = [_site(file, site(name)) for name, file in sites().items()]
    return _table(("site", "what it is", "GPUs a node", "launcher", "from"), rows)


def _site(file: Path, has: Options) -> tuple[str, ...]:
    pages = dict.fromkeys(page for page in has.sources.values() if page != has.documentation)
    guide = [f"[guide]({has.documentation})"] if has.documentation else []
    numbered = [f"[{number}]({page})" for number, page in enumerate(pages, start=1)]
    return (
        f"[`{file.stem}`](../slurm/clusters/{file.name})",
        has.description,
        str(has.gpus_per_node),
        has.launcher if has.container is None else f"{has.launcher}, {has.container.kind}",
        ", ".join([*guide, *numbered]) or "-",
    )


def _fields(record: type[Record]) -> str:
    rows = [
        (f"`{name}`", _default(field.default), field.description or "")
        for name, field in record.model_fields.items()
    ]
    return _table(("field", "default", "what it says"), rows)


def _default(value: object) -> str:
    if value is PydanticUndefined:
        return "required"
    return "left out" if value in (None, "", (), {}) else f"`{json.dumps(value).strip(chr(34))}`"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
