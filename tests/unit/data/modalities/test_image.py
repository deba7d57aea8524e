"""Pixels that are not finite are a fault of the row."""

import io

import numpy as np
import pytest
from PIL import Image

from dtl.data.modalities.image import find_image_fault, load_image
from dtl.data.modalities.media_files import MediaDecodeError
from dtl.data.sources.rows import Row


def tiff(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.float32)).save(file, "TIFF")
    return file.getvalue()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_pixel_that_is_not_finite_is_a_fault_of_the_row(tmp_path, value):
    pixels = np.full((8, 8), 7.0)
    assert load_image(Row(0, "rows:1", {"image": tiff(pixels)}, tmp_path)).max() == 7
    pixels[2, 3] = value
    row = Row(0, "rows:1", {"image": tiff(pixels)}, tmp_path)
    assert find_image_fault(row) is None  # only the header is read
    with pytest.raises(MediaDecodeError, match=r"rows:1: `image` cannot .* are not finite"):
        load_image(row)
