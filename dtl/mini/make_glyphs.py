"""How `glyphs.png` was made: letters and signs drawn in matplotlib's fonts, one font a line.

`python -m dtl.mini.make_glyphs PICTURE` draws it anew (needs `dtl[mini,vision]`). Nothing else in
dtl imports this module.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtl.mini.glyphs import CELL_SIDE, FONTS, SIGNS

if TYPE_CHECKING:
    from PIL.Image import Image

DRAWING_SIDE = 64  # pixels a letter is drawn at before it is made small


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dtl.mini.make_glyphs", description=__doc__)
    parser.add_argument("picture", type=Path, help="where the PNG is written")
    picture = parser.parse_args(arguments).picture
    draw_sheet().save(picture, optimize=True)
    print(f"wrote {picture}, {picture.stat().st_size:,} bytes")
    return 0


def draw_sheet() -> "Image":
    """All signs in all fonts: a column a sign, a line a font."""
    import matplotlib
    from PIL import Image, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    drawn = Image.new("L", (CELL_SIDE * len(SIGNS), CELL_SIDE * len(FONTS)))
    for line, name in enumerate(FONTS):
        font = ImageFont.truetype(str(folder / f"{name}.ttf"), DRAWING_SIDE)
        for column, sign in enumerate(SIGNS):
            drawn.paste(_draw_glyph(sign, font), (CELL_SIDE * column, CELL_SIDE * line))
    return drawn


def _draw_glyph(sign: str, font: Any) -> "Image":
    """White on black, as large as the cell allows and in its middle."""
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
