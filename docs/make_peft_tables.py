"""Write the tables of docs/peft.md from the strategies: `python docs/make_peft_tables.py`."""

from __future__ import annotations

import re
from pathlib import Path

from dtl.config import registry
from dtl.models.peft.compatibility import COMPATIBILITY, MODEL_KIND_EXAMPLES

PAGE = Path(__file__).parent / "peft.md"
TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
COMPARISON = "PEFT's comparison of methods (Llama-3.2-3B, MetaMathQA)"
SOURCES = {
    "lora": "as QLoRA for models to 13 B (arXiv:2305.14314)",
    "adalora": "AdaLoRA on MNLI (arXiv:2303.10512)",
    "ia3": "T-Few (arXiv:2205.05638)",
    "vera": "VeRA's instruction tuning (arXiv:2310.11454)",
    "p_tuning": "PEFT's guide to p-tuning",
    **dict.fromkeys(("oft", "loha", "lokr", "prompt_tuning", "prefix_tuning"), COMPARISON),
}


def page(text: str) -> str:
    """The page with its tables as the code has them."""
    tables = {"compatibility": _compatibility_table(), "learning_rates": _learning_rate_table()}
    return TABLE.sub(lambda found: f"{found[1]}\n{tables[found[2]]}\n\n{found[3]}", text)


def _compatibility_table() -> str:
    rows = [
        (
            f"{kind} ({example})",
            *("yes" if kind in COMPATIBILITY[method].kinds else "-" for method in COMPATIBILITY),
        )
        for kind, example in MODEL_KIND_EXAMPLES.items()
    ]
    rows.append(
        ("highest ZeRO stage", *(str(entry.max_zero_stage) for entry in COMPATIBILITY.values()))
    )
    rows.append(
        ("merges into the weights", *(_yes(entry.can_merge) for entry in COMPATIBILITY.values()))
    )
    rows.append(
        (
            "recomputed activations",
            *(_yes(entry.supports_gradient_checkpointing) for entry in COMPATIBILITY.values()),
        )
    )
    return _table(("", *(f"`{method}`" for method in COMPATIBILITY)), rows)


def _learning_rate_table() -> str:
    rows = [
        (
            f"`{method}`",
            registry.read_summary("strategies", method),
            f"{registry.load('strategies', method).Plugin.learning_rate:g}",
            SOURCES[method],
        )
        for method in COMPATIBILITY
    ]
    return _table(("strategy", "what it does", "learning rate", "from"), rows)


def _yes(claim: bool) -> str:
    return "yes" if claim else "-"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
