"""How `glyphs.png` was made: letters and signs drawn in matplotlib's fonts, one font a line.

`python -m dtl.mini.make_glyphs PICTURE` draws it anew (needs `dtl[mini,vision]`). Nothing else in
dtl imports this module.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtl.mini.glyphs import CELL, FONTS, SIGNS

if TYPE_CHECKING:
    from PIL.Image import Image

SIZE = 64  # pixels a letter is drawn at before it is made small


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dtl.mini.make_glyphs", description=__doc__)
    parser.add_argument("picture", type=Path, help="where the PNG is written")
    picture = parser.parse_args(arguments).picture
    sheet().save(picture, optimize=True)
    print(f"wrote {picture}, {picture.stat().st_size:,} bytes")
    return 0


def sheet() -> "Image":
    """All signs in all fonts: a column a sign, a line a font."""
    import matplotlib
    from PIL import Image, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    drawn = Image.new("L", (CELL * len(SIGNS), CELL * len(FONTS)))
    for line, name in enumerate(FONTS):
        font = ImageFont.truetype(str(folder / f"{name}.ttf"), SIZE)
        for column, sign in enumerate(SIGNS):
            drawn.paste(_glyph(sign, font), (CELL * column, CELL * line))
    return drawn


def _glyph(sign: str, font: Any) -> "Image":
    """White on black, as large as the cell allows and in its middle."""
    from PIL import Image, ImageDraw

    large = Image.new("L", (3 * SIZE, 3 * SIZE))
    ImageDraw.Draw(large).text((SIZE, SIZE // 2), sign, fill=255, font=font)
    cut = large.crop(large.getbbox())
    scale = CELL / max(cut.size)
    width, height = (max(1, round(scale * side)) for side in cut.size)
    cell = Image.new("L", (CELL, CELL))
    small = cut.resize((width, height), Image.Resampling.LANCZOS)
    cell.paste(small, ((CELL - width) // 2, (CELL - height) // 2))
    return cell


if __name__ == "__main__":
    raise SystemExit(main())
