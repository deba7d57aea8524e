"""What the speech models of transformers share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

# Layers left out at random: each rank would leave out others, and wait for the rest forever.
NO_LAYERDROP = ("layerdrop", "encoder_layerdrop", "decoder_layerdrop")
MASK_EMBEDDING = "masked_spec_embed"  # has no gradient in a batch in which nothing is masked


def disable_layerdrop(base: Any) -> dict[str, float]:
    """Settings under which every layer takes part in every step."""
    return {name: 0.0 for name in NO_LAYERDROP if hasattr(base, name)}


def disable_spec_augment(base: Any) -> dict[str, bool]:
    """Settings under which the model masks nothing of its own accord: it would draw other spans on
    each layout."""
    return {"apply_spec_augment": False} if hasattr(base, "apply_spec_augment") else {}


def find_feature_encoder(model: nn.Module) -> nn.Module | None:
    """The convolutions that turn samples into frames; None where the model reads spectrograms."""
    base = getattr(model, getattr(model, "base_model_prefix", ""), model)
    found = getattr(base, "feature_extractor", None)
    return found if found is not None and hasattr(found, "conv_layers") else None


def always_frozen_parameters(model: nn.Module, *, random_init: bool) -> Iterable[nn.Parameter]:
    """The feature encoder, unless it is new, and what would have no gradient in some steps."""
    encoder = find_feature_encoder(model)
    if encoder is not None and not random_init:
        encoder._requires_grad = False  # type: ignore[assignment]
        yield from encoder.parameters()
    for name, parameter in model.named_parameters():
        if name.endswith(MASK_EMBEDDING):
            yield parameter


def count_frames(samples: int, base: Any) -> int:
    """Frames that the feature encoder makes of so many samples; of a spectrogram, one every 20 ms
    at 16 kHz."""
    if not hasattr(base, "conv_kernel"):
        return max(1, samples // 320)
    for kernel, stride in zip(base.conv_kernel, base.conv_stride, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples


def min_samples(frames: int, base: Any) -> int:
    """The fewest samples of which the feature encoder makes so many frames."""
    if not hasattr(base, "conv_kernel"):
        return 1
    for kernel, stride in reversed(list(zip(base.conv_kernel, base.conv_stride, strict=True))):
        frames = (frames - 1) * stride + kernel
    return frames


def count_input_frames(samples: int, base: Any, extractor: Any) -> int:
    """Frames that the model's layers read of so many samples: those of the feature encoder, or
    those of the extractor, which sees 25 ms every 10 ms and stacks a few into one."""
    if hasattr(base, "conv_kernel"):
        return max(0, count_frames(samples, base))
    rate = extractor.sampling_rate
    windows = (samples - rate // 40) // (rate // 100) + 1
    return max(0, int(windows // extractor.stride))


def count_ctc_frames(frames: int, base: Any) -> int:
    """Frames that have scores: an adapter after the layers makes fewer of them."""
    if getattr(base, "add_adapter", False):
        kernel, stride = base.adapter_kernel_size, base.adapter_stride
        for _ in range(base.num_adapter_layers):
            frames = (frames + 2 * (kernel // 2) - kernel) // stride + 1
    return frames
