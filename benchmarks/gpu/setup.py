"""Where the sections run, and how large their models are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class NotRun(Exception):
    """A section has nothing to run on, such as a package that is not installed; its message says
    what."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the models and of the data of all sections.

    `width`, `layers`: of the decoder on which numbers are compared. `vocabulary`, `long_tokens`: of
    the evaluation. `decoder`, `whisper`: keys of the configs of the large models; `tokens`: of one
    of their examples; `clip_seconds`: of one clip. `steps`: of a comparison; `speed_steps`: of a
    measurement of speed, of which the first `WARMUP_STEPS` are left out.
    """

    width: int
    layers: int
    vocabulary: int
    long_tokens: int
    decoder: dict[str, int]
    tokens: int
    whisper: dict[str, int]
    clip_seconds: int
    steps: int = 6
    speed_steps: int = 8


WARMUP_STEPS = 3
LLAMA_8B = {  # the shape of Llama 3 8B
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}
TINY_LLAMA = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
WHISPER_LARGE = {
    "vocab_size": 51_866,
    "num_mel_bins": 128,
    "d_model": 1280,
    "encoder_layers": 32,
    "decoder_layers": 32,
    "encoder_attention_heads": 20,
    "decoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "decoder_ffn_dim": 5120,
    "max_source_positions": 1500,
    "max_target_positions": 448,
}
ON_GPU = Sizes(
    width=512,
    layers=4,
    vocabulary=128_256,
    long_tokens=4096,
    decoder=LLAMA_8B,
    tokens=4096,
    whisper=WHISPER_LARGE,
    clip_seconds=30,
)
DRY = Sizes(
    width=32,
    layers=2,
    vocabulary=512,
    long_tokens=64,
    decoder=TINY_LLAMA,
    tokens=64,
    whisper={},
    clip_seconds=2,
    steps=4,
    speed_steps=WARMUP_STEPS + 1,
)


@dataclass(frozen=True)
class Setup:
    """Where the sections run. `is_dry`: at toy size on the CPU."""

    folder: Path
    is_dry: bool

    @property
    def sizes(self) -> Sizes:
        return DRY if self.is_dry else ON_GPU

    @property
    def wait_seconds(self) -> float:
        """How long a process of a section may take; a CPU may be shared with other jobs."""
        return 600.0 if self.is_dry else 120.0

    @property
    def device(self) -> str:
        return "cpu" if self.is_dry else "cuda"
