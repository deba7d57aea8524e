"""One label for a picture, with any convolutional or transformer model."""

# B batch, C classes, H height, W width

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from pydantic import Field

from dtl.config.record import Record
from dtl.core.errors import DtlError, Fault
from dtl.data.example import Encoded, Skip
from dtl.data.labels import label_fault, labels_of, place_of
from dtl.data.modalities.image import picture_fault, picture_of
from dtl.tasks.base import Classification, DatasetStats

if TYPE_CHECKING:
    import numpy as np
    from numpy.random import Generator
    from torch import Tensor

    from dtl.data.cache.encoded import EncodedData
    from dtl.data.sources.rows import Row

PLACES_TRIED = 10  # for a part of a picture, before the whole is taken
DUMMIES = ((64, 96, 3), (96, 64, 3))  # pictures that tell which sizes a processor makes
BLANK = (3, 1, 1)  # a picture that nobody looks at
STRETCH = (3 / 4, 4 / 3)  # of a part that is cut out, width to height
KEPT_SIDES = 2  # a picture is kept at no more than so many times the size that the model sees


class Options(Record):
    """Options of `task: image_classification`."""

    labels: tuple[str, ...] | None = Field(
        None, description="The labels in order; left out: those of the training rows, sorted."
    )
    smallest_crop: float = Field(
        0.25,
        gt=0,
        le=1,
        description="Training shows a part of each picture, cut out at random; the smallest is "
        "this share of its area, and 1 is always the whole.",
    )
    flip: bool = Field(
        True, description="Training shows half of the pictures mirrored, left to right."
    )


class Plugin(Classification):
    """Single-label classification; each picture is one target. Only training varies pictures."""

    auto_class = "AutoModelForImageClassification"
    required_columns = "`image` and `label`"
    processor_kind = "images"
    media_column = "image"
    options: Options

    def find_row_fault(self, row: Row) -> Fault | None:
        return picture_fault(row) or label_fault(row, self.options.labels)

    def collect_dataset_stats(self, rows: Iterable[Row], base_config: Any) -> DatasetStats:
        """The labels, and whether the base already has a head for exactly these."""
        channels = getattr(base_config, "num_channels", 3)
        if channels != 3:
            raise DtlError.of(
                "model.path",
                f"the model reads {channels} channels, and pictures are read as red, green, blue",
                "take a model of 3 channels",
            )
        return {"labels": labels_of(rows, base_config, self.options.labels)}

    def adapt_processor(
        self, processor: Any, dataset_stats: DatasetStats
    ) -> tuple[Any, DatasetStats]:
        """Also the size (height, width) of what the model is shown."""
        import numpy as np

        wide, high = (
            _seen(np.zeros(shape, dtype=np.uint8), processor).shape[1:] for shape in DUMMIES
        )
        if wide != high:
            raise DtlError.of(
                "model.path",
                f"its image processor gives pictures of many sizes ({_by(wide)}, {_by(high)})",
                "set do_center_crop and crop_size, or size: {height, width}, in its "
                "preprocessor_config.json",
            )
        return processor, {**dataset_stats, "size": [int(side) for side in wide]}

    def max_length(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> int:
        """Of every picture: the patches of what the model is shown."""
        height, width = dataset_stats["size"]
        patch = getattr(base_config, "patch_size", None)
        patch = patch if isinstance(patch, int) else 32
        return max(1, math.ceil(height / patch) * math.ceil(width / patch))

    def encoder(
        self, processor: Any, dataset_stats: DatasetStats, base_config: Any
    ) -> Callable[[Row], Encoded | Skip]:
        places = {label: place for place, label in enumerate(dataset_stats["labels"])}
        height, width = dataset_stats["size"]
        length = self.max_length(processor, dataset_stats, base_config)

        def encode(row: Row) -> Encoded | Skip:
            place = place_of(row, places)
            pixels = picture_of(row, longest_short_side=KEPT_SIDES * max(height, width))
            values = {"pixels": pixels.ravel(), "shape": list(pixels.shape[:2]), "labels": place}
            return Encoded(values, length, 1)

        return encode

    def transform(
        self, values: dict[str, Any], *, processor: Any, rng: Generator | None
    ) -> dict[str, Any]:
        import numpy as np

        picture_HW3 = np.reshape(values["pixels"], (*values["shape"], 3))
        if rng is not None:
            picture_HW3 = self._varied(picture_HW3, rng)
        return {"pixel_values": _seen(picture_HW3, processor), "labels": values["labels"]}

    def transform_without_input(self, values: dict[str, Any], *, processor: Any) -> dict[str, Any]:
        import numpy as np

        return {"pixel_values": np.zeros(BLANK, dtype=np.float32), "labels": values["labels"]}

    def uncacheable_reason(self, data: EncodedData, *, processor: Any) -> str | None:
        if not self.options.flip and self.options.smallest_crop == 1:
            return None
        return (
            "training shows each picture differently each time (task.flip=false and "
            "task.smallest_crop=1 show it as it is)"
        )

    def _varied(self, picture_HW3: np.ndarray, draw: Generator) -> np.ndarray:
        if self.options.smallest_crop < 1:
            picture_HW3 = _part(picture_HW3, smallest=self.options.smallest_crop, draw=draw)
        mirrored = self.options.flip and draw.random() < 0.5
        return picture_HW3[:, ::-1] if mirrored else picture_HW3

    def collate(self, examples: list[dict[str, Any]], *, pad_token_id: int) -> dict[str, Tensor]:
        import numpy as np
        import torch

        pixels = np.stack([example["pixel_values"] for example in examples])
        labels = torch.tensor([int(example["labels"]) for example in examples])
        return {"pixel_values": torch.from_numpy(pixels), "labels": labels}


def _by(size: tuple[int, ...]) -> str:
    return " x ".join(str(side) for side in size)


def _seen(picture_HW3: np.ndarray, processor: Any) -> np.ndarray:
    """What the model is shown (3, H, W), float32."""
    import numpy as np

    pixels: np.ndarray = processor(
        np.ascontiguousarray(picture_HW3), input_data_format="channels_last", return_tensors="np"
    )["pixel_values"][0]
    return np.asarray(pixels, dtype=np.float32)


def _part(picture_HW3: np.ndarray, *, smallest: float, draw: Generator) -> np.ndarray:
    """A part of random size, shape and place, as in arXiv:1409.4842; the processor brings it to the
    model's size."""
    height, width = picture_HW3.shape[:2]
    for _ in range(PLACES_TRIED):
        area = height * width * draw.uniform(smallest, 1.0)
        stretch = math.exp(draw.uniform(math.log(STRETCH[0]), math.log(STRETCH[1])))
        wide, high = round(math.sqrt(area * stretch)), round(math.sqrt(area / stretch))
        if 0 < wide <= width and 0 < high <= height:
            top, left = draw.integers(height - high + 1), draw.integers(width - wide + 1)
            return picture_HW3[top : top + high, left : left + wide]
    return picture_HW3
