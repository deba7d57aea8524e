"""Export a run in another form, and compare the export with the trained model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dtl.core.errors import RunFailed
from dtl.core.files import create_staging_folder, publish_new_folder
from dtl.core.resource_errors import is_disk_full
from dtl.export import gguf, onnx
from dtl.export.folder import (
    build_export_metadata,
    seal_export,
    staging_folder,
    write_card_and_metadata,
    write_texts,
)
from dtl.export.logit_difference import TOLERANCE, LogitDifference, compare_logits
from dtl.export.model_card import ExportedRun, ExportSummary, render_run_card
from dtl.export.plan import ExportPlan, ExportRequest, plan_export
from dtl.export.quantized import QuantizedExport, write_quantized
from dtl.export.sample_inputs import SampleInputs, build_sample_inputs
from dtl.export.sample_logits import compute_logits, compute_logits_in_fresh_process
from dtl.export.trained_model import TrainedModel, load_trained_model
from dtl.export.weights import local_state_dict, write_adapter, write_model
from dtl.models.dtypes import torch_dtype
from dtl.models.load import silence_transformers
from dtl.models.quantization import quantize
from dtl.models.structure.head import head_module_names
from dtl.models.vocabulary import resized_rows
from dtl.run.folder import RunFolder

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class ExportResult:
    """The folder of an export and its difference from the trained model; None: not compared."""

    path: Path
    difference: LogitDifference | None


@dataclass(frozen=True)
class _ExportJob:
    """What the steps of an export share.

    `work_folder`: for temporary files; `written` is the folder in it that becomes the export.
    """

    folder: RunFolder
    plan: ExportPlan
    trained: TrainedModel
    samples: SampleInputs
    work_folder: Path

    @property
    def written(self) -> Path:
        return self.work_folder / "export"


def export_run(
    folder: RunFolder, request: ExportRequest, *, print_line: Callable[[str], None]
) -> ExportResult:
    """Write what a run has trained in the requested form.

    Raises DtlError where the request cannot be met, and RunFailed where the export differs from the
    trained model; then nothing of it remains.
    """
    # 1. Plan.
    plan = plan_export(folder, request)
    print_line(f"{folder.path}: {plan}")
    with silence_transformers():
        # 2. Load the trained model.
        trained = load_trained_model(folder, print_line=print_line)
        # 3. Write the export and verify it, under a temporary name.
        work_folder = staging_folder(plan.target)
        try:
            create_staging_folder(work_folder)
            samples = build_sample_inputs(trained)
            job = _ExportJob(folder, plan, trained, samples, work_folder)
            difference = _write_and_verify(job)
            # 4. Rename.
            publish_new_folder(job.written, plan.target)
        except Exception as fault:
            if is_disk_full(fault):
                raise RunFailed.of(
                    str(plan.target.parent), "the disk is full", "free some space and export again"
                ) from fault
            raise
        finally:
            shutil.rmtree(work_folder, ignore_errors=True)
    print_line(f"    {difference}" if difference else "    not compared: dtl cannot load GGUF")
    print_line(f"export: {plan.target}")
    return ExportResult(plan.target, difference)


def _write_and_verify(job: _ExportJob) -> LogitDifference | None:
    """Write everything into `job.written`; return the difference from the trained model."""
    plan, inputs = job.plan, job.samples.inputs
    expected = compute_logits(job.trained.model, inputs)
    model = _merge(job, expected) if plan.is_merged else job.trained.model
    quantized_model = _write_weights(job, model)
    difference = None
    if plan.format != "gguf":
        actual = compute_logits_in_fresh_process(job.written, inputs, job.work_folder)
        if quantized_model is not None:
            # Quantization changes the logits. Reading the files back must not change them again.
            _check_logits(job, compute_logits(quantized_model, inputs), actual, precision="fp32")
        difference = _check_logits(job, expected, actual, precision=plan.precision)
    card = _render_card(job, ExportSummary(str(plan), difference))
    write_card_and_metadata(job.written, card=card, metadata=None)
    seal_export(job.written)
    return difference


def _merge(job: _ExportJob, expected: list[Tensor]) -> nn.Module:
    """Merge the adapter into its base. Raises RunFailed where that changes the logits in fp32."""
    model = job.trained.parts.strategy.merge(job.trained.model).eval()
    difference = compare_logits(
        expected,
        compute_logits(model, job.samples.inputs),
        compared_rows=job.samples.description,
        tolerance=TOLERANCE["fp32"],
    )
    if not difference.is_within_tolerance:
        raise RunFailed.of(
            "--merge",
            f"the merged model differs from the trained model ({difference})",
            "export the adapter without --merge",
        )
    return model


def _write_weights(job: _ExportJob, model: nn.Module) -> nn.Module | None:
    """Write weights, processor and metadata; return the quantized model where there is one."""
    plan, processor = job.plan, job.trained.data.processor
    quantized_model = None
    if plan.format == "onnx":
        onnx.write_onnx(model, job.samples.inputs, job.written)
    elif plan.format == "gguf":
        source = _write_safetensors(job, model, job.work_folder / "model")
        assert plan.converter is not None
        file = job.written / f"{job.folder.config.run.name}-{plan.dtype}.gguf"
        gguf.convert_to_gguf(plan.converter, source, file, dtype=plan.dtype)
    elif plan.quantize:
        source = _write_safetensors(job, model, job.work_folder / "model")
        options = QuantizedExport(
            quantize=plan.quantize,
            head_modules=head_module_names(model),
            dtype=torch_dtype(plan.dtype),
            shard_size=plan.shard_size,
        )
        quantized_model = write_quantized(source, job.written, options, architecture=type(model))
    else:
        _write_safetensors(job, model, job.written)
    processor.save_pretrained(job.written)
    if plan.format == "safetensors":
        metadata = build_export_metadata(
            job.folder.config,
            job.trained.data.dataset_stats,
            kind=plan.kind,
            dtype=job.folder.plan.layout.dtype,
            target=plan.target,
        )
        write_card_and_metadata(job.written, card="", metadata=metadata)
        write_texts(job.written, job.trained.parts.task.export_files(model.config, processor))
    return quantized_model


def _write_safetensors(job: _ExportJob, model: nn.Module, target: Path) -> Path:
    """Write the weights and the processor as transformers and PEFT load them; return `target`."""
    plan, dtype = job.plan, torch_dtype(job.plan.dtype)
    state = local_state_dict(model, trainable_only=plan.kind == "adapter")
    if plan.kind == "adapter":
        write_adapter(model, state, target, dtype=dtype)
    else:
        write_model(model, state, target, dtype=dtype, shard_size=plan.shard_size)
    job.trained.data.processor.save_pretrained(target)
    return target


def _check_logits(
    job: _ExportJob, expected: list[Tensor], actual: list[Tensor], *, precision: str
) -> LogitDifference:
    """Return the difference. Raises RunFailed where it is larger than `precision` explains."""
    difference = compare_logits(
        expected,
        actual,
        compared_rows=job.samples.description,
        tolerance=TOLERANCE[precision],
    )
    if not difference.is_within_tolerance:
        raise RunFailed.of(
            str(job.plan.target),
            f"the export differs from the trained model ({difference})",
            "choose another --dtype or --format; the failed export was deleted",
        )
    return difference


def _render_card(job: _ExportJob, summary: ExportSummary) -> str:
    plan, trained = job.plan, job.trained
    is_adapter = plan.card_kind == "adapter"
    exported = ExportedRun(
        folder=job.folder,
        task=trained.parts.task,
        dataset_stats=trained.data.dataset_stats,
        step=trained.step,
        scores=trained.scores,
        weights=trained.weights_kind,
        embedding_rows=resized_rows(trained.model),
    )
    return render_run_card(
        exported,
        kind=plan.card_kind,
        quantization=quantize.get_quantization_kwargs(trained.model) if is_adapter else None,
        summary=summary,
    )
