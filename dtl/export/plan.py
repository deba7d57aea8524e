"""Decide what `dtl export` writes, and check it before anything is loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dtl.assembly.parts import assemble
from dtl.core.errors import DtlError
from dtl.core.units import format_bytes
from dtl.export import gguf, onnx, quantized
from dtl.export.quantized import QuantizedDtype
from dtl.export.weights import SHARD_SIZE
from dtl.models.dtypes import dtype_name
from dtl.models.pretrained_config import load_model_config
from dtl.plan.hardware import free_disk_bytes
from dtl.plan.memory import BYTES_PER_NUMBER
from dtl.run.folder import RunFolder

ExportFormat = Literal["safetensors", "onnx", "gguf"]
FORMAT_SUFFIXES = {"safetensors": "", "onnx": ", as an ONNX graph", "gguf": ", as GGUF"}


@dataclass(frozen=True)
class ExportRequest:
    """The options of `dtl export`.

    `dtype`, `target` None: chosen by the plan. `converter`: of GGUF; None: searched for.
    """

    merge: bool = False
    dtype: Literal["fp32", "bf16", "fp16"] | None = None
    shard_size: str = SHARD_SIZE
    target: Path | None = None
    quantize: QuantizedDtype | None = None
    format: ExportFormat = "safetensors"
    converter: Path | None = None


@dataclass(frozen=True)
class ExportPlan:
    """What is written, and to which folder.

    `kind`: adapter or model. `is_merged`: whether an adapter is merged into its base. `dtype`: of
    all weights that are not quantized. `size_bytes`: approximate size on disk.
    """

    kind: str
    is_merged: bool
    dtype: str
    quantize: QuantizedDtype | None
    format: ExportFormat
    shard_size: str
    converter: Path | None
    target: Path
    size_bytes: int

    @property
    def precision(self) -> str:
        """The format with the fewest bits among its weights."""
        return self.quantize or self.dtype

    @property
    def card_kind(self) -> str:
        """The kind of export in the model card: adapter, model, onnx or gguf."""
        return self.kind if self.format == "safetensors" else self.format

    def __str__(self) -> str:
        content = "the adapter only" if self.kind == "adapter" else "a complete model"
        if self.is_merged:
            content = "the adapter merged into the base"
        return f"{content}, {self.precision}{FORMAT_SUFFIXES[self.format]}"


def plan_export(folder: RunFolder, request: ExportRequest) -> ExportPlan:
    """Return the plan of an export.

    Raises DtlError where options contradict each other, the target exists, a package is missing or
    the disk is too small.
    """
    config = folder.config
    if len(folder.plan.phases) > 1 and folder.state != "finished":
        raise DtlError.of(
            str(folder.path),
            "the run has several phases and is not finished",
            f"continue the run with `dtl resume {folder.path}`",
        )
    is_adapter = assemble(config).strategies[-1].export_kind == "adapter"
    is_merged = is_adapter and (request.merge or request.format != "safetensors")
    kind = "adapter" if is_adapter and not is_merged else "model"
    _check_request(request, config.phases[-1].name, is_adapter=is_adapter, kind=kind)
    converter = gguf.find_converter(request.converter) if request.format == "gguf" else None
    dtype = _choose_dtype(folder, request, kind, is_merged=is_merged)
    target = request.target or folder.path / _default_folder_name(
        request, kind, is_merged=is_merged
    )
    size_bytes = _estimate_bytes(folder, request, kind, dtype)
    _check_target(target, size_bytes)
    return ExportPlan(
        kind=kind,
        is_merged=is_merged,
        dtype=dtype,
        quantize=request.quantize,
        format=request.format,
        shard_size=request.shard_size,
        converter=converter,
        target=target,
        size_bytes=size_bytes,
    )


def _check_request(request: ExportRequest, strategy: str, *, is_adapter: bool, kind: str) -> None:
    if request.merge and not is_adapter:
        raise DtlError.of(
            "--merge",
            f"strategy {strategy} trains the model itself and has no adapter",
            "remove --merge",
        )
    if request.quantize and kind == "adapter":
        raise DtlError.of(
            "--quantize", "an adapter cannot be quantized without its base", "add --merge"
        )
    if request.quantize and request.format != "safetensors":
        raise DtlError.of(
            "--quantize",
            f"bitsandbytes weights are stored as safetensors, not as {request.format}",
            "remove one of the two options; llama-quantize makes a GGUF file smaller",
        )
    if request.format == "onnx" and request.dtype not in (None, "fp32"):
        raise DtlError.of("--dtype", "an ONNX graph is written in fp32", "remove --dtype")
    if re.fullmatch("[1-9][0-9]*[KMGT]B", request.shard_size) is None:
        raise DtlError.of(
            "--shard-size", f"'{request.shard_size}' is not a size", "write it like 5GB"
        )
    if request.quantize:
        quantized.check_package()
    if request.format == "onnx":
        onnx.check_packages()


def _choose_dtype(folder: RunFolder, request: ExportRequest, kind: str, *, is_merged: bool) -> str:
    """Return the dtype: the requested one, else fp32 for an adapter, the base's for a merged model,
    and the run's for a trained model."""
    if request.format == "onnx":
        return "fp32"
    if request.dtype is not None:
        return request.dtype
    if kind == "adapter":
        return "fp32"
    return _base_dtype(folder) if is_merged else folder.plan.layout.dtype


def _base_dtype(folder: RunFolder) -> str:
    """Return the dtype of the base's files; fp32 where its config has none."""
    return dtype_name(load_model_config(folder.config.model).dtype) or "fp32"


def _estimate_bytes(folder: RunFolder, request: ExportRequest, kind: str, dtype: str) -> int:
    counts = folder.plan.parameters
    numbers = counts.trainable if kind == "adapter" else counts.total
    has_intermediate_model = request.quantize is not None or request.format == "gguf"
    return numbers * BYTES_PER_NUMBER[dtype] * (2 if has_intermediate_model else 1)


def _default_folder_name(request: ExportRequest, kind: str, *, is_merged: bool) -> str:
    """Return a name in the run folder that differs for different options."""
    if request.format != "safetensors":
        kind = request.format
    elif is_merged:
        kind = "merged"
    return "-".join(["export", kind, *filter(None, (request.dtype, request.quantize))])


def _check_target(target: Path, size_bytes: int) -> None:
    if target.exists():
        raise DtlError.of(
            str(target), "the folder exists already", "remove it, or choose another one with --to"
        )
    if size_bytes > (free := free_disk_bytes(str(target.parent))):
        raise DtlError.of(
            str(target.parent),
            f"the disk is too small (export {format_bytes(size_bytes)}, free {format_bytes(free)})",
            "free some space, or choose a folder on another disk with --to",
        )
