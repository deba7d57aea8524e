"""Write docs/terminal.svg, the picture in the README, from what a real run printed.

dtl train configs/quickstart/text.yaml | python docs/make_picture.py
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

PICTURE = Path(__file__).parent / "terminal.svg"
COMMAND = "dtl train configs/quickstart/text.yaml"
SCORES = re.compile(r"^ *(adapted|unadapted):.*", re.MULTILINE)
PLAN_KEY = re.compile(r"^[a-zA-Z]+( [a-zA-Z]+)*(?=  )", re.MULTILINE)
FONT = re.compile(r"@font-face \{[^}]*\}\s*")


def picture(printed: str) -> str:
    """The output under its command, as SVG."""
    width = max(len(line) for line in printed.splitlines())
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    console.print(Text.assemble(("$ ", "green"), (COMMAND, "bold")))
    text = Text(printed.rstrip())
    text.highlight_regex(PLAN_KEY, "cyan")
    text.highlight_regex(SCORES, "bold green")
    console.print(text)
    # Fonts from another host are not shown on most pages, and are not asked for.
    return FONT.sub("", console.export_svg(title="dtl", unique_id="dtl"))


if __name__ == "__main__":
    here = f"{Path.cwd()}/"  # where the run was started is nobody's concern
    PICTURE.write_text(picture(sys.stdin.read().replace(here, "")), encoding="utf-8")
    print(f"wrote {PICTURE}")
