"""The encoders of speech models: LayerDrop, SpecAugment, numbers of frames."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

# LayerDrop skips layers at random: each rank would skip others, and wait for the rest forever.
LAYERDROP_KEYS = ("layerdrop", "encoder_layerdrop", "decoder_layerdrop")
MASK_EMBEDDING = "masked_spec_embed"  # has no gradient in a batch in which nothing is masked


def get_layerdrop_overrides(base: Any) -> dict[str, float]:
    """Return the changes to a model's config that disable LayerDrop."""
    return {name: 0.0 for name in LAYERDROP_KEYS if hasattr(base, name)}


def get_spec_augment_overrides(base: Any) -> dict[str, bool]:
    """Return the changes to a model's config that disable its own SpecAugment, which would draw
    other spans on each layout."""
    return {"apply_spec_augment": False} if hasattr(base, "apply_spec_augment") else {}


def find_feature_encoder(model: nn.Module) -> nn.Module | None:
    """Return the convolutions from samples to frames; None if the model reads spectrograms."""
    base = getattr(model, getattr(model, "base_model_prefix", ""), model)
    encoder = getattr(base, "feature_extractor", None)
    return encoder if encoder is not None and hasattr(encoder, "conv_layers") else None


def always_frozen_parameters(model: nn.Module, *, random_init: bool) -> Iterable[nn.Parameter]:
    """Yield the parameters of a pretrained feature encoder, and the mask embedding, which has no
    gradient in some steps."""
    encoder = find_feature_encoder(model)
    if encoder is not None and not random_init:
        encoder._requires_grad = False  # type: ignore[assignment]
        yield from encoder.parameters()
    for name, parameter in model.named_parameters():
        if name.endswith(MASK_EMBEDDING):
            yield parameter


def count_frames(samples: int, base: Any) -> int:
    """Return the frames of the feature encoder for a number of samples; for a spectrogram, one
    frame per 20 ms at 16 kHz."""
    if not hasattr(base, "conv_kernel"):
        return max(1, samples // 320)
    for kernel, stride in zip(base.conv_kernel, base.conv_stride, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples


def min_samples(frames: int, base: Any) -> int:
    """Return the fewest samples for which the feature encoder has this number of frames."""
    if not hasattr(base, "conv_kernel"):
        return 1
    for kernel, stride in reversed(list(zip(base.conv_kernel, base.conv_stride, strict=True))):
        frames = (frames - 1) * stride + kernel
    return frames


def count_input_frames(samples: int, base: Any, extractor: Any) -> int:
    """Return the frames that the model's layers read for a number of samples.

    They come from the feature encoder, or from the extractor, which has windows of 25 ms every
    10 ms and stacks `stride` of them into a frame.
    """
    if hasattr(base, "conv_kernel"):
        return max(0, count_frames(samples, base))
    rate = extractor.sampling_rate
    windows = (samples - rate // 40) // (rate // 100) + 1
    return max(0, int(windows // extractor.stride))


def count_ctc_frames(frames: int, base: Any) -> int:
    """Return the frames with logits: convolutions after the layers reduce their number."""
    if getattr(base, "add_adapter", False):
        kernel, stride = base.adapter_kernel_size, base.adapter_stride
        for _ in range(base.num_adapter_layers):
            frames = (frames + 2 * (kernel // 2) - kernel) // stride + 1
    return frames
