"""The memory of a GPU, by the names that Slurm has for it: its generic resources and features."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# GiB of the models of NVIDIA and AMD, by their data sheets; of an MI250X, that of a half, which
# Slurm counts as a GPU.
MODELS: dict[str, tuple[int, ...]] = {
    "gb200": (186,),
    "b200": (180,),
    "gh200": (96, 144),
    "h200": (141,),
    "h100": (80, 94, 96),
    "h800": (80,),
    "h20": (96,),
    "a100": (40, 80),
    "a800": (40, 80),
    "a6000": (48,),
    "a5000": (24,),
    "a40": (48,),
    "a30": (24,),
    "a10": (24,),
    "l40s": (48,),
    "l40": (48,),
    "l4": (24,),
    "v100s": (32,),
    "v100": (16, 32),
    "p100": (12, 16),
    "t4": (16,),
    "rtx5090": (32,),
    "rtx4090": (24,),
    "rtx3090": (24,),
    "mi300x": (192,),
    "mi300a": (128,),
    "mi250x": (64,),
    "mi250": (64,),
    "mi210": (64,),
    "mi100": (32,),
}
_SIZE = re.compile(r"(?<!\d)(\d{2,3})g(?:i?b)?(?![a-z0-9])")  # of a100_80gb, hbm80g, v100-32g
_MEMORY_FEATURE = re.compile(r"hbm|vram|gpu_?mem")  # a plain 192g may be main memory


@dataclass(frozen=True)
class GpuMemory:
    """GiB of one GPU. `alternatives`: of the same model, where the names do not say which."""

    gib: int
    alternatives: tuple[int, ...] = ()


def find_gpu_memory(types: Iterable[str], features: Iterable[str]) -> GpuMemory | None:
    """Return the memory of a GPU, the least where a model has several sizes; None: unknown.

    `types`: of the generic resource gpu, such as a100 or nvidia_h100_80gb_hbm3. `features`: of the
    node, such as hbm80g.
    """
    gpu_names = [name.lower() for name in types]
    names = [name.lower() for name in features]
    about_gpu = [name for name in names if _find_model(name) or _MEMORY_FEATURE.search(name)]
    sizes = [int(size) for name in (*gpu_names, *about_gpu) for size in _SIZE.findall(name)]
    if sizes:
        return GpuMemory(min(sizes))
    models = [model for name in (*gpu_names, *about_gpu) if (model := _find_model(name))]
    if not models:
        return None
    least, *others = MODELS[models[0]]
    return GpuMemory(least, tuple(others))


def _find_model(name: str) -> str | None:
    words = re.split(r"[_\W]+", name)
    joined = "".join(words)  # of rtx_4090
    return next(
        (model for model in MODELS if model in words or (model[0] == "r" and model in joined)), None
    )
