"""Kahneman-Tversky optimization: single responses, each desirable or undesirable."""

# B examples, N of the global batch, P responses to a prompt (here 1), T tokens

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from dtl.core.errors import Fault
from dtl.data.chat.messages import CHAT_COLUMNS
from dtl.data.chat.options import ChatOptions
from dtl.data.chat.response import (
    RESPONSE_COLUMNS,
    ResponseTokenizer,
    find_response_fault,
    preview_response,
    tokenize_response,
)
from dtl.data.example import PARTNER, EncodedExample, Skip
from dtl.data.modalities.text import limit_to_positions
from dtl.losses.preference import kto_losses
from dtl.metrics.base import EvalRecord, Metric
from dtl.metrics.preference import judgment_counts, judgment_scores
from dtl.tasks._chat import GenerativeChatTask
from dtl.tasks._preference import collate_responses, compute_log_ratios
from dtl.tasks.base import DatasetStats, Encoder, ExamplePreview, TokenSpan

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor, nn

    from dtl.data.sources.rows import Row

JUDGMENTS = {True: "desirable", False: "undesirable"}
WRITTEN_JUDGMENTS = {"true": True, "false": False, "1": True, "0": False}  # as in a CSV file
KL = "kl"  # key in a batch: the KL divergence over the global batch
MISMATCHED = "mismatched_"  # prefix in a batch: a prompt with the response of its partner


class Options(ChatOptions):
    """Options of `task: kto` (Ethayarajh et al. 2024, arXiv:2402.01306)."""

    beta: float = Field(
        0.1,
        gt=0,
        description="Strength of the penalty on the distance to the base; higher stays closer.",
    )
    desirable_weight: float = Field(
        1.0, gt=0, description="Weight of the loss of a desirable response."
    )
    undesirable_weight: float = Field(
        1.0,
        gt=0,
        description="Weight of the loss of an undesirable response. The paper advises weights with "
        "which all desirable responses count 1 to 4/3 times as much as all undesirable ones.",
    )
    max_length: int = Field(
        1024, ge=2, description="Longest prompt with a response, in tokens; the rest is truncated."
    )


class Plugin(GenerativeChatTask):
    """weight x (1 - sigmoid(+-beta (log-ratio - KL))); a response is one target.

    The log-ratio is that of the model to the base, which is the model with its adapter disabled.
    The KL divergence is estimated from prompts with the responses of other rows, over the global
    batch: in a run the same on every layout.
    """

    auto_class = "AutoModelForCausalLM"
    predicts_tokens = True
    packs_examples = True
    required_columns = "`prompt`, `completion` and `label` (true: desirable)"
    row_kind = "labeled"
    metric = Metric("accuracy")
    compares_with_base = True
    truncation_options: ClassVar = {"max_length": ("input_ids",)}
    supervises_eos = True
    reads_global_batch = True
    reads_partner = True
    options: Options

    def find_row_fault(self, row: Row) -> Fault | None:
        return find_response_fault(row) or _find_judgment_fault(row)

    def preview(self, row: Row) -> ExamplePreview:
        return ExamplePreview(*preview_response(row), labels=(JUDGMENTS[_get_judgment(row)],))

    def read_columns(self, fields: Mapping[str, Any]) -> frozenset[str]:
        return frozenset((*RESPONSE_COLUMNS, "label", *CHAT_COLUMNS))

    def token_spans(self, values: dict[str, Any]) -> list[TokenSpan]:
        tokens, start = list(values["input_ids"]), int(values["start"])
        return [TokenSpan(tokens[:start], False), TokenSpan(tokens[start:], True)]

    def max_length(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> int:
        return limit_to_positions(self.options.max_length, base_config)

    def encoder(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> Encoder:
        limit = self.max_length(processor, dataset_stats, base_config)

        responses = ResponseTokenizer(processor, self.options, limit)

        def encode(row: Row) -> EncodedExample | Skip:
            response = tokenize_response(row, responses)
            if isinstance(response, Skip):
                return response
            values = {
                "input_ids": response.tokens,
                "start": response.start,
                "max_response": limit - response.start,
                "desirable": int(_get_judgment(row)),
            }
            length = len(response.tokens)
            return EncodedExample(values, length, 1, response.dropped, response.notes)

        return encode

    def collate(self, examples: list[dict[str, Any]], *, pad_token_id: int) -> dict[str, Tensor]:
        """Return the responses, and each prompt with the response of its partner, if it has one."""
        import torch

        starts = [int(example["start"]) for example in examples]
        responses = [example["input_ids"] for example in examples]
        batch = collate_responses(responses, starts, pad_token_id=pad_token_id)
        if PARTNER in examples[0]:
            mismatched = list(map(_mismatch, examples))
            other = collate_responses(mismatched, starts, pad_token_id=pad_token_id)
            batch |= {MISMATCHED + name: tensor for name, tensor in other.items()}
        batch["desirable"] = torch.tensor([int(example["desirable"]) for example in examples])
        return batch

    def global_values(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the log-ratio of each prompt with the response of its partner (B,), fp32."""
        mismatched = {
            name.removeprefix(MISMATCHED): tensor
            for name, tensor in batch.items()
            if name.startswith(MISMATCHED)
        }
        return {KL: _log_ratios(model, mismatched)}

    def combine_global_values(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the mean log-ratio, for each example (N,)."""
        return {KL: values[KL].mean().expand(len(values[KL]))}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        import torch

        if KL not in batch:
            with torch.no_grad():
                shared = self.combine_global_values(self.global_values(model, batch))
            batch = {**batch, **shared}
        is_desirable_B = batch["desirable"].bool()
        losses_B = self._losses(_log_ratios(model, batch), is_desirable_B, batch[KL])
        return losses_B.sum()

    def _losses(self, log_ratios_B: Tensor, is_desirable_B: Tensor, kl_B: Tensor) -> Tensor:
        """Return the weighted loss of each example (B,)."""
        import torch

        options = self.options
        losses_B = kto_losses(log_ratios_B, is_desirable_B, beta=options.beta, kl_B=kl_B)
        weights_B = torch.where(
            is_desirable_B, options.desirable_weight, options.undesirable_weight
        )
        return weights_B * losses_B

    def eval_records(
        self, model: nn.Module, batch: dict[str, Tensor], *, processor: Any
    ) -> list[EvalRecord]:
        columns = {
            "log_ratio": _log_ratios(model, batch).tolist(),
            KL: self.global_values(model, batch)[KL].tolist(),
            "desirable": batch["desirable"].tolist(),
        }
        return [
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]

    def join_records(self, records: list[EvalRecord]) -> list[EvalRecord]:
        """Return the records with reward and loss; the KL divergence is over all of them."""
        import math

        import torch

        log_ratios_N = torch.tensor([record["log_ratio"] for record in records]).double()
        is_desirable_N = torch.tensor([bool(record["desirable"]) for record in records])
        mean_kl = math.fsum(record[KL] for record in records) / len(records)
        losses_N = self._losses(
            log_ratios_N, is_desirable_N, torch.full_like(log_ratios_N, mean_kl)
        )
        return [
            {**record, "reward": self.options.beta * record["log_ratio"], "loss": loss}
            for record, loss in zip(records, losses_N.tolist(), strict=True)
        ]

    def score(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> dict[str, float]:
        return judgment_scores(records)

    def with_placeholder_target(
        self, fields: dict[str, Any], dataset_stats: DatasetStats
    ) -> dict[str, Any]:
        return {**fields, "label": True}

    def predict(
        self,
        model: nn.Module,
        batch: dict[str, Tensor],
        *,
        processor: Any,
        dataset_stats: DatasetStats,
        max_new_tokens: int | None,
    ) -> list[dict[str, Any]]:
        """Return whether a response has a reward above 0, and the reward."""
        rewards_B = self.options.beta * _log_ratios(model, batch)
        return [
            {"predicted": JUDGMENTS[reward > 0], "reward": reward} for reward in rewards_B.tolist()
        ]

    def metric_counts(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> ndarray:
        return judgment_counts(records)

    def metric_from_counts(self, counts: ndarray) -> ndarray:
        return counts[..., 0] / counts[..., 1]


def _log_ratios(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the log-ratio of model to base of each response (B,), fp32."""
    single = {name: batch[name][:, None] for name in ("input_ids", "attention_mask", "labels")}
    return compute_log_ratios(model, single)[:, 0]


def _mismatch(values: dict[str, Any]) -> list[int]:
    """Return the prompt of an example with the response of its partner."""
    partner = values[PARTNER]
    response = list(partner["input_ids"][int(partner["start"]) :])
    prompt = list(values["input_ids"][: int(values["start"])])
    return prompt + response[: int(values["max_response"])]


def _get_judgment(row: Row) -> bool:
    """Return whether the response of a row that has passed find_row_fault is desirable."""
    return WRITTEN_JUDGMENTS[str(row.fields["label"]).lower()]


def _find_judgment_fault(row: Row) -> Fault | None:
    label = row.fields.get("label")
    if isinstance(label, bool | int | str) and str(label).lower() in WRITTEN_JUDGMENTS:
        return None
    return Fault(
        row.location,
        "the column `label` is missing"
        if label is None
        else f"`label` is {label!r}, neither true nor false",
        "write true for a desirable response and false for an undesirable one, or map the column "
        "in data.columns: {label: ...}",
    )
