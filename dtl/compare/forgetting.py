"""Measures forgetting: the score on source data before and after training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dtl.assembly.parts import assemble
from dtl.config.schema import Data, RunConfig, Source
from dtl.evaluation.evaluate import Evaluation
from dtl.evaluation.scoring import why_unscored
from dtl.export.load_export import load_export
from dtl.jobs.evaluate import score_base, score_run
from dtl.models.peft.merge import merge_adapter
from dtl.models.structure.head import head_parameters
from dtl.models.structure.module_kinds import adapted_layers
from dtl.prepare.prepared_data import prepare_data
from dtl.run.folder import RunFolder

if TYPE_CHECKING:
    from torch import nn


def score_source(
    config: RunConfig,
    source: Source,
    run: RunFolder | None,
    *,
    out: Path | None,
    print_line: Callable[[str], None],
) -> Evaluation:
    """Return the evaluation on `source` of the base, or of a run's model. `config`: with the same
    base and any strategy.

    If the task has a new head, the trained body is scored with the head of the base. Raises
    DtlError if the base has no head for these rows.
    """
    all_data = config.data.model_copy(update={"subsample": None})
    config = config.model_copy(update={"data": all_data})
    if _uses_pretrained_head(config):
        if run is not None:
            return score_run(run, source, ["task.group_by=null"], out=out, print_line=print_line)
        data = all_data.model_copy(update={"eval": source, "eval_fraction": None})
        return score_base(_without_groups(config, data), out=out, print_line=print_line)
    data = all_data.model_copy(
        update={"train": source, "mix": (), "eval": source, "eval_fraction": None}
    )
    change = None if run is None else _make_body_loader(run.path)
    return score_base(_without_groups(config, data), out=out, print_line=print_line, change=change)


def _without_groups(config: RunConfig, data: Data) -> RunConfig:
    """Return the config for other rows, which may have no groups."""
    task = config.task.model_copy(update={"group_by": None})
    return config.model_copy(update={"data": data, "task": task})


def _uses_pretrained_head(config: RunConfig) -> bool:
    """Return whether the pretrained head of the base fits the task."""
    parts = assemble(config)
    return why_unscored(parts, prepare_data(config, parts)) is None


def _make_body_loader(run: Path) -> Callable[[nn.Module], None]:
    def load_body(base: nn.Module) -> None:
        """Copy the trained body of the run into the base."""
        import torch

        model = load_export(run).model
        if adapted_layers(model):
            model = merge_adapter(model)
        heads = head_parameters(base)
        body = {name: value for name, value in model.state_dict().items() if name not in heads}
        base_state = base.state_dict()
        missing = base_state.keys() - body.keys() - heads
        assert not missing, f"the run lacks {sorted(missing)}"
        with torch.no_grad():
            for name in base_state.keys() - heads:
                base_state[name].copy_(body[name])

    return load_body
