"""Image classification: a class, labels or numbers for an image, with any model of images."""

# B batch, H height, W width

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pydantic import Field

from dtl.core.errors import DtlError, Fault
from dtl.data.example import EncodedExample, Skip
from dtl.data.modalities.image import find_image_fault, load_image
from dtl.tasks._classification import Classification, LabelOptions, target_values
from dtl.tasks.base import DatasetStats, Encoder

if TYPE_CHECKING:
    import numpy as np
    from numpy.random import Generator
    from torch import Tensor

    from dtl.data.cache.encoded import EncodedData
    from dtl.data.sources.rows import Row

CROP_ATTEMPTS = 10  # then the full image is used
PROBE_SHAPES = ((64, 96, 3), (96, 64, 3))  # images that show which sizes a processor makes
BLANK_SHAPE = (3, 1, 1)  # of an image that no model reads
ASPECT_RATIOS = (3 / 4, 4 / 3)  # of a crop, width to height
MAX_CACHED_SCALE = 2  # an image is cached at no more than so many times the model's input size


class Options(LabelOptions):
    """Options of `task: image_classification`."""

    min_crop_scale: float = Field(
        0.25,
        gt=0,
        le=1,
        description="Smallest random crop in training, as a share of the image's area; 1: no "
        "cropping.",
    )
    horizontal_flip: bool = Field(
        True, description="Mirror half of the training images, left to right."
    )


class Plugin(Classification):
    """Classification or regression of images. Only training augments them."""

    auto_class = "AutoModelForImageClassification"
    required_columns = "`image` and `label`"
    processor_kind = "image_processor"
    media_column = "image"
    options: Options

    def find_row_fault(self, row: Row) -> Fault | None:
        return find_image_fault(row) or self.head.find_fault(row)

    def collect_dataset_stats(self, rows: Iterable[Row], base_config: Any) -> DatasetStats:
        """Return the labels; in the base's own order where it has a head for exactly these."""
        channels = getattr(base_config, "num_channels", 3)
        if channels != 3:
            raise DtlError.of(
                "model.path",
                f"the model reads {channels} channels; images are read as RGB",
                "use a model with 3 channels",
            )
        return self.head.collect_stats(rows, base_config)

    def adapt_processor(
        self, processor: Any, dataset_stats: DatasetStats
    ) -> tuple[Any, DatasetStats]:
        """Return the processor, and in the stats the `size` (height, width) of its images."""
        import numpy as np

        size_of_wide, size_of_high = (
            _process(np.zeros(shape, dtype=np.uint8), processor).shape[1:] for shape in PROBE_SHAPES
        )
        if size_of_wide != size_of_high:
            raise DtlError.of(
                "model.path",
                f"its image processor makes images of several sizes ({_format_size(size_of_wide)}, "
                f"{_format_size(size_of_high)})",
                "set do_center_crop and crop_size, or size: {height, width}, in its "
                "preprocessor_config.json",
            )
        return processor, {**dataset_stats, "size": [int(side) for side in size_of_wide]}

    def max_length(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> int:
        """Return the patches of an image; all images have as many."""
        height, width = dataset_stats["size"]
        patch = getattr(base_config, "patch_size", None)
        patch = patch if isinstance(patch, int) else 32
        return max(1, math.ceil(height / patch) * math.ceil(width / patch))

    def encoder(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> Encoder:
        encode_target = self.head.target_encoder(dataset_stats)
        height, width = dataset_stats["size"]
        length = self.max_length(processor, dataset_stats, base_config)

        def encode(row: Row) -> EncodedExample | Skip:
            target = encode_target(row)
            pixels = load_image(row, max_short_side=MAX_CACHED_SCALE * max(height, width))
            values = {
                "pixels": pixels.ravel(),
                "shape": list(pixels.shape[:2]),
                **target.values,
            }
            return EncodedExample(values, length, target.count)

        return encode

    def transform(
        self, values: dict[str, Any], *, processor: Any, rng: Generator | None
    ) -> dict[str, Any]:
        import numpy as np

        image_HW3 = np.reshape(values["pixels"], (*values["shape"], 3))
        if rng is not None:
            image_HW3 = self._augment(image_HW3, rng=rng)
        return {"pixel_values": _process(image_HW3, processor), **target_values(values)}

    def transform_without_input(self, values: dict[str, Any], *, processor: Any) -> dict[str, Any]:
        import numpy as np

        blank = np.zeros(BLANK_SHAPE, dtype=np.float32)
        return {"pixel_values": blank, **target_values(values)}

    def uncacheable_reason(self, data: EncodedData, *, processor: Any) -> str | None:
        if not self.options.horizontal_flip and self.options.min_crop_scale == 1:
            return None
        return (
            "training augments images at random (task.horizontal_flip=false and "
            "task.min_crop_scale=1 turn that off)"
        )

    def _augment(self, image_HW3: np.ndarray, *, rng: Generator) -> np.ndarray:
        if self.options.min_crop_scale < 1:
            image_HW3 = _random_crop(image_HW3, min_scale=self.options.min_crop_scale, rng=rng)
        is_mirrored = self.options.horizontal_flip and rng.random() < 0.5
        return image_HW3[:, ::-1] if is_mirrored else image_HW3

    def collate(self, examples: list[dict[str, Any]], *, pad_token_id: int) -> dict[str, Tensor]:
        import numpy as np
        import torch

        pixels = np.stack([example["pixel_values"] for example in examples])
        return {"pixel_values": torch.from_numpy(pixels), **self.head.collate(examples)}


def _format_size(size: tuple[int, ...]) -> str:
    return " x ".join(str(side) for side in size)


def _process(image_HW3: np.ndarray, processor: Any) -> np.ndarray:
    """Return the processed image (3, H, W), float32."""
    import numpy as np

    pixels: np.ndarray = processor(
        np.ascontiguousarray(image_HW3), input_data_format="channels_last", return_tensors="np"
    )["pixel_values"][0]
    return np.asarray(pixels, dtype=np.float32)


def _random_crop(image_HW3: np.ndarray, *, min_scale: float, rng: Generator) -> np.ndarray:
    """Return a crop of random size, aspect ratio and position (arXiv:1409.4842); the processor
    resizes it."""
    height, width = image_HW3.shape[:2]
    for _ in range(CROP_ATTEMPTS):
        area = height * width * rng.uniform(min_scale, 1.0)
        aspect_ratio = math.exp(rng.uniform(math.log(ASPECT_RATIOS[0]), math.log(ASPECT_RATIOS[1])))
        wide, high = round(math.sqrt(area * aspect_ratio)), round(math.sqrt(area / aspect_ratio))
        if 0 < wide <= width and 0 < high <= height:
            top, left = rng.integers(height - high + 1), rng.integers(width - wide + 1)
            return image_HW3[top : top + high, left : left + wide]
    return image_HW3
