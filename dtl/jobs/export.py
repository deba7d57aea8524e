"""Export: what a run has learnt, written in another form and proven in a fresh process."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dtl.assembly.parts import assemble
from dtl.core.errors import DtlError, RunFailed
from dtl.core.units import format_bytes
from dtl.export import gguf
from dtl.export import onnx as graph
from dtl.export import quantized as quantised
from dtl.export.logit_difference import TOLERANCE, LogitDifference, compare_logits
from dtl.export.model_card import ExportSummary, write_run_card
from dtl.export.trained_model import TrainedModel, load_trained_model
from dtl.export.verify import (
    ForwardInputs,
    build_sample_inputs,
    compute_logits,
    compute_logits_in_fresh_process,
)
from dtl.export.weights import (
    SHARD_SIZE,
    build_export_metadata,
    local_state_dict,
    staging_folder,
    sync_folder,
    write_adapter,
    write_card_and_metadata,
    write_model,
)
from dtl.models.dtypes import dtype_name, torch_dtype
from dtl.models.head import head_module_names
from dtl.models.load import silence_transformers
from dtl.models.pretrained_config import load_model_config
from dtl.models.quantization import quantize
from dtl.plan.hardware import free_disk_bytes
from dtl.plan.memory import BYTES_PER_NUMBER, FP32_BYTES
from dtl.plan.memory_advice import is_disk_full
from dtl.run.folder import RunFolder

if TYPE_CHECKING:
    from torch import Tensor, nn

ExportFormat = Literal["safetensors", "onnx", "gguf"]


@dataclass(frozen=True)
class ExportRequest:
    """What is asked for. `dtype`, `to` None: chosen. `converter`: of GGUF; None: looked for."""

    merge: bool = False
    dtype: Literal["fp32", "bf16", "fp16"] | None = None
    shard_size: str = SHARD_SIZE
    target: Path | None = None
    quantize: quantised.QuantizedDtype | None = None
    format: ExportFormat = "safetensors"
    converter: Path | None = None


@dataclass(frozen=True)
class ExportPlan:
    """What is written, and where. `kind`: adapter or model; `size`: bytes on disk, about."""

    kind: str
    is_merged: bool
    dtype: str
    quantize: quantised.QuantizedDtype | None
    format: ExportFormat
    shard_size: str
    target: Path
    size_bytes: int

    @property
    def precision(self) -> str:
        """The coarsest format of its weights."""
        return self.quantize or self.dtype

    def __str__(self) -> str:
        what = "the adapter alone" if self.kind == "adapter" else "a whole model"
        what = "the adapter merged into its base" if self.is_merged else what
        form = {"safetensors": "", "onnx": ", as an ONNX graph", "gguf": ", as GGUF"}[self.format]
        return f"{what}, {self.precision}{form}"


@dataclass(frozen=True)
class ExportResult:
    """Where it lies, and how far it is from the trained model; None: that was not asked."""

    path: Path
    difference: LogitDifference | None


def export_run(
    folder: RunFolder, wanted: ExportRequest, *, say: Callable[[str], None]
) -> ExportResult:
    """Decide, open, ask, write, ask again in a fresh process, give it its name.

    Raises DtlError for what cannot be asked for, and RunFailed when the export is not what was
    trained; then nothing is left of it.
    """
    decision = plan_export(folder, wanted)
    say(f"{folder.path}: {decision}")
    with silence_transformers():
        return _export(folder, wanted, decision, say=say)


def _export(
    folder: RunFolder, wanted: ExportRequest, decision: ExportPlan, *, say: Callable[[str], None]
) -> ExportResult:
    trained = load_trained_model(folder, say=say)
    asked, rows = build_sample_inputs(trained)
    expected = compute_logits(trained.model, asked)
    model = (
        _merge_and_check(trained, asked, expected, rows) if decision.is_merged else trained.model
    )
    work = staging_folder(decision.target)
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
        written = work / "export"
        found = None
        reduced = _write_weights(model, trained, decision, wanted, work, asked, folder)
        if decision.format != "gguf":
            replies = compute_logits_in_fresh_process(written, asked, work)
            if reduced is not None:  # what is lost, fewer bits have lost, and no file
                _check_logits(
                    compute_logits(reduced, asked), replies, decision, rows, precision="fp32"
                )
            found = _check_logits(expected, replies, decision, rows, precision=decision.precision)
        saved = ExportSummary(str(decision), found)
        kind = decision.kind if decision.format == "safetensors" else decision.form
        write_card_and_metadata(written, card=_render_card(folder, trained, kind, saved), note=None)
        sync_folder(written)
        written.rename(decision.target)
    except Exception as fault:
        if is_disk_full(fault):
            raise RunFailed.of(
                str(decision.target.parent), "the disk is full", "make room, and export again"
            ) from fault
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    say(f"    {found}" if found else "    not compared: nothing here opens GGUF")
    say(f"export: {decision.target}")
    return ExportResult(decision.target, found)


def plan_export(folder: RunFolder, wanted: ExportRequest) -> ExportPlan:
    """Raises DtlError for what does not go together, for a place that is taken, for a library that
    is not there, and for a disk that is too small."""
    config, plan = folder.config, folder.plan
    if len(plan.phases) > 1 and folder.state != "finished":
        raise DtlError.of(
            str(folder.path),
            "the run has several phases and has not ended",
            f"`dtl resume {folder.path}` goes on with it",
        )
    is_adapter = assemble(config).strategies[-1].export_kind == "adapter"
    merges = is_adapter and (wanted.merge or wanted.format != "safetensors")
    kind = "adapter" if is_adapter and not merges else "model"
    _check_request(wanted, config.phases[-1].name, is_adapter=is_adapter, kind=kind)
    if wanted.format == "onnx":
        dtype = "fp32"
    elif kind == "adapter":
        dtype = wanted.dtype or "fp32"
    else:
        dtype = wanted.dtype or (_base_dtype(folder) if merges else plan.layout.dtype)
    counts = plan.parameters
    size = counts.total * BYTES_PER_NUMBER[dtype]
    if kind == "adapter":
        size = counts.trainable * (FP32_BYTES if dtype == "fp32" else BYTES_PER_NUMBER[dtype])
    if wanted.quantize or wanted.format == "gguf":
        size *= 2  # beside the model that it is made from
    target = wanted.target or folder.path / _default_folder_name(wanted, kind, merges=merges)
    if target.exists():
        raise DtlError.of(
            str(target), "is there already", "remove it yourself, or name another place with --to"
        )
    if size > (free := free_disk_bytes(str(target.parent))):
        raise DtlError.of(
            str(target.parent),
            f"{format_bytes(free)} are free, and the export takes {format_bytes(size)}",
            "make room, or name a place on another disk with --to",
        )
    return ExportPlan(
        kind, merges, dtype, wanted.quantize, wanted.format, wanted.shard_size, target, size
    )


def _check_request(wanted: ExportRequest, strategy: str, *, is_adapter: bool, kind: str) -> None:
    if wanted.merge and not is_adapter:
        raise DtlError.of(
            "--merge", f"strategy {strategy} has learnt a whole model, no adapter", "leave it out"
        )
    if wanted.quantize and kind == "adapter":
        raise DtlError.of("--quantize", "an adapter alone is not quantised", "add --merge")
    if wanted.quantize and wanted.format != "safetensors":
        raise DtlError.of(
            "--quantize",
            f"bitsandbytes' weights are safetensors, not {wanted.format}",
            "leave one of the two out; llama-quantize makes a GGUF file smaller",
        )
    if wanted.format == "onnx" and wanted.dtype not in (None, "fp32"):
        raise DtlError.of("--dtype", "an ONNX graph is written in fp32", "leave it out")
    if re.fullmatch("[1-9][0-9]*[KMGT]B", wanted.shard_size) is None:
        raise DtlError.of("--shard-size", f"'{wanted.shard_size}' is no size", "write it as 5GB")
    if wanted.quantize:
        quantised.check_package()
    if wanted.format == "onnx":
        graph.check_packages()
    if wanted.format == "gguf":
        gguf.find_converter(wanted.converter)


def _default_folder_name(wanted: ExportRequest, kind: str, *, merges: bool) -> str:
    """Of the folder in the run's: one for each thing that can be asked for."""
    if wanted.format != "safetensors":
        kind = wanted.format
    elif merges:
        kind = "merged"
    return "-".join(["export", kind, *filter(None, (wanted.dtype, wanted.quantize))])


def _base_dtype(folder: RunFolder) -> str:
    """As its files are; fp32 where they do not say."""
    stored = load_model_config(folder.config.model).dtype
    return dtype_name(stored) or "fp32"


def _merge_and_check(
    trained: TrainedModel, asked: list[ForwardInputs], expected: list[Tensor], rows: str
) -> nn.Module:
    """The adapter in its base; in fp32 that must be the same function. Raises RunFailed."""
    model = trained.parts.strategy.merge(trained.model).eval()
    found = compare_logits(
        expected, compute_logits(model, asked), rows=rows, allowed=TOLERANCE["fp32"]
    )
    if not found.is_within_tolerance:
        raise RunFailed.of(
            "--merge", f"the merged model is another function ({found})", "export the adapter alone"
        )
    return model


def _write_weights(
    model: nn.Module,
    trained: TrainedModel,
    decision: ExportPlan,
    wanted: ExportRequest,
    work: Path,
    asked: list[ForwardInputs],
    folder: RunFolder,
) -> nn.Module | None:
    """Into work/export; what that is made from lies beside it. The model as it is written, where
    that is in fewer bits."""
    written, dtype = work / "export", torch_dtype(decision.dtype)
    note = build_export_metadata(
        folder.config,
        trained.examples.dataset_stats,
        kind=decision.kind,
        dtype=folder.plan.layout.dtype,
    )
    if decision.format == "onnx":
        graph.write_onnx(model, asked, written)
        trained.examples.processor.save_pretrained(written)
        return None
    first = work / "model" if decision.quantize or decision.format == "gguf" else written
    state = local_state_dict(model, learning_only=decision.kind == "adapter")
    if decision.kind == "adapter":
        write_adapter(model, state, first, dtype=dtype)
    else:
        write_model(model, state, first, dtype=dtype, shard_size=decision.shard_size)
    trained.examples.processor.save_pretrained(first)
    reduced = None
    if decision.quantize:
        reduced = quantised.write_quantized(
            first,
            written,
            bits=decision.quantize,
            architecture=type(model),
            heads=head_module_names(model),
            dtype=dtype,
            shard_size=decision.shard_size,
        )
        trained.examples.processor.save_pretrained(written)
    if decision.format == "gguf":
        converter = gguf.find_converter(wanted.converter)
        name = f"{folder.config.run.name}-{decision.dtype}.gguf"
        gguf.convert_to_gguf(converter, first, written / name, dtype=decision.dtype)
        trained.examples.processor.save_pretrained(written)
        return None
    write_card_and_metadata(written, card="", note=note)
    return reduced


def _check_logits(
    expected: list[Tensor],
    replies: list[Tensor],
    decision: ExportPlan,
    rows: str,
    *,
    precision: str,
) -> LogitDifference:
    """Raises RunFailed where the export is too far from what it should answer."""
    found = compare_logits(expected, replies, rows=rows, allowed=TOLERANCE[precision])
    if not found.is_within_tolerance:
        raise RunFailed.of(
            str(decision.target),
            f"what was written is not what was trained ({found})",
            "nothing is kept; take another --dtype or form",
        )
    return found


def _render_card(folder: RunFolder, trained: TrainedModel, kind: str, saved: ExportSummary) -> str:
    return write_run_card(
        folder,
        trained.parts.task,
        trained.examples.dataset_stats,
        kind=kind,
        scores=trained.scores,
        step=trained.step,
        weights=trained.weights_kind,
        quantized=quantize.get_quantization_kwargs(trained.model) if kind == "adapter" else None,
        saved=saved,
    )
