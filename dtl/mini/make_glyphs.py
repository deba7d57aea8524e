"""Draws `glyphs.png`: characters and signs in matplotlib's fonts, one row per font.

`python -m dtl.mini.make_glyphs IMAGE` draws it again (needs `dtl[mini,vision]`). Nothing else in
dtl imports this module.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtl.mini.glyphs import CELL_SIDE, FONTS, SIGNS

if TYPE_CHECKING:
    from PIL.Image import Image

DRAWING_SIDE = 64  # pixels of a glyph before it is resized


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dtl.mini.make_glyphs", description=__doc__)
    parser.add_argument("image", type=Path, help="PNG file to write")
    path = parser.parse_args(arguments).image
    draw_sheet().save(path, optimize=True)
    print(f"wrote {path}, {path.stat().st_size:,} bytes")
    return 0


def draw_sheet() -> "Image":
    """Return an image of all signs in all fonts: one column per sign, one row per font."""
    import matplotlib
    from PIL import Image, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    grid = Image.new("L", (CELL_SIDE * len(SIGNS), CELL_SIDE * len(FONTS)))
    for row, name in enumerate(FONTS):
        font = ImageFont.truetype(str(folder / f"{name}.ttf"), DRAWING_SIDE)
        for column, sign in enumerate(SIGNS):
            grid.paste(_draw_glyph(sign, font), (CELL_SIDE * column, CELL_SIDE * row))
    return grid


def _draw_glyph(sign: str, font: Any) -> "Image":
    """Return a glyph in white on black, scaled to the cell and centered."""
    from PIL import Image, ImageDraw

    large = Image.new("L", (3 * DRAWING_SIDE, 3 * DRAWING_SIDE))
    ImageDraw.Draw(large).text((DRAWING_SIDE, DRAWING_SIDE // 2), sign, fill=255, font=font)
    cut = large.crop(large.getbbox())
    scale = CELL_SIDE / max(cut.size)
    width, height = (max(1, round(scale * side)) for side in cut.size)
    cell = Image.new("L", (CELL_SIDE, CELL_SIDE))
    small = cut.resize((width, height), Image.Resampling.LANCZOS)
    cell.paste(small, ((CELL_SIDE - width) // 2, (CELL_SIDE - height) // 2))
    return cell


if __name__ == "__main__":
    raise SystemExit(main())
