"""Preferences: of two answers to a prompt, the better one becomes more likely."""

# B pairs, P the two answers of a pair (chosen, rejected), T tokens, V vocabulary

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from dtl.config.record import Record
from dtl.data.encoded import Encoded, Skip
from dtl.data.source import Row
from dtl.errors import Fault
from dtl.models.anatomy import unwrapped
from dtl.tasks import IGNORED, Facts, Lesson, Outcome, Part, Task, mask, not_text, pad, text_of

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor, nn

COLUMNS = ("prompt", "chosen", "rejected")


class Options(Record):
    """Options of `task: dpo` (Rafailov et al. 2023, arXiv:2305.18290)."""

    beta: float = Field(
        0.1, gt=0, description="How near the model stays to the base: higher is nearer."
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="Share of the pairs that are taken to be the wrong way round.",
    )
    max_length: int = Field(
        1024, ge=2, description="Longest prompt with an answer, in tokens; the rest is cut off."
    )


class Plugin(Task):
    """-log sigmoid(beta (log-ratio of chosen - log-ratio of rejected)); a pair is one target.

    The log-ratio is that of the model to the base, which is the model with its adapter set aside.
    """

    head = "AutoModelForCausalLM"
    reads = "`prompt`, `chosen` and `rejected`"
    best = "accuracy"
    needs_base = True
    limits: ClassVar = {"max_length": ("chosen", "rejected")}
    options: Options

    def check(self, row: Row) -> Fault | None:
        return next((fault for name in COLUMNS if (fault := not_text(row, name))), None)

    def lesson(self, row: Row) -> Lesson:
        texts = [str(row.fields[column]) for column in COLUMNS]
        return Lesson("\n".join(texts), texts[1])

    def parts(self, values: dict[str, Any]) -> list[Part]:
        """The prompt, the chosen answer, the rejected answer."""
        start = int(values["prompt"])
        answers = [Part(list(values[name][start:]), True) for name in ("chosen", "rejected")]
        return [Part(list(values["chosen"][:start]), False), *answers]

    def survey(self, rows: Iterable[Row], base: Any) -> Facts:
        return {}

    def head_settings(self, facts: Facts) -> dict[str, Any]:
        return {}

    def encoder(self, processor: Any, facts: Facts, base: Any) -> Callable[[Row], Encoded | Skip]:
        positions = getattr(base, "max_position_embeddings", None) or 2**31
        limit = min(self.options.max_length, positions)

        def encode(row: Row) -> Encoded | Skip:
            prompt, chosen, rejected = (text_of(row, name, tokens=limit) for name in COLUMNS)
            if chosen == rejected:
                return Skip("both answers are the same")
            start = _tokens(processor, prompt, opens=True)
            answers = [_tokens(processor, text, closes=True) for text in (chosen, rejected)]
            if not start or len(start) >= limit:
                return Skip("no prompt" if not start else "no answer left after truncation")
            both = [(start + answer)[:limit] for answer in answers]
            values = {"chosen": both[0], "rejected": both[1], "prompt": len(start)}
            return Encoded(values, len(both[0]) + len(both[1]), 1)

        return encode

    def collate(self, examples: list[dict[str, Any]], *, padding: int) -> dict[str, Tensor]:
        both = [example[name] for example in examples for name in ("chosen", "rejected")]
        starts = [int(example["prompt"]) for example in examples for _ in range(2)]
        labels = [
            [IGNORED] * start + list(row[start:]) for start, row in zip(starts, both, strict=True)
        ]
        flat = {
            "input_ids": pad(both, value=padding),
            "attention_mask": mask(both),
            "labels": pad(labels, value=IGNORED),
        }
        return {name: tensor.view(len(examples), 2, -1) for name, tensor in flat.items()}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return self._losses(self._rewards(model, batch)).sum()

    def outcomes(
        self, model: nn.Module, batch: dict[str, Tensor], *, processor: Any
    ) -> list[Outcome]:
        rewards_BP = self._rewards(model, batch)
        return [
            {"loss": loss, "chosen_reward": chosen, "rejected_reward": rejected}
            for loss, (chosen, rejected) in zip(
                self._losses(rewards_BP).tolist(), rewards_BP.tolist(), strict=True
            )
        ]

    def score(self, outcomes: list[Outcome], facts: Facts) -> dict[str, float]:
        """Share of pairs whose chosen answer has the higher reward, and by how much on average."""
        pairs = [(outcome["chosen_reward"], outcome["rejected_reward"]) for outcome in outcomes]
        return {
            "loss": math.fsum(outcome["loss"] for outcome in outcomes) / len(outcomes),
            "accuracy": sum(chosen > rejected for chosen, rejected in pairs) / len(pairs),
            "margin": math.fsum(chosen - rejected for chosen, rejected in pairs) / len(pairs),
            "chosen_reward": math.fsum(chosen for chosen, _ in pairs) / len(pairs),
            "rejected_reward": math.fsum(rejected for _, rejected in pairs) / len(pairs),
        }

    def answered(self, fields: dict[str, Any], facts: Facts) -> dict[str, Any]:
        return fields

    def predict(
        self,
        model: nn.Module,
        batch: dict[str, Tensor],
        *,
        processor: Any,
        facts: Facts,
        longest: int | None,
    ) -> list[dict[str, Any]]:
        """Which of the two answers the model prefers, as training counts it."""
        return [
            {
                "predicted": "chosen" if chosen > rejected else "rejected",
                "margin": chosen - rejected,
            }
            for chosen, rejected in self._rewards(model, batch).tolist()
        ]

    def counts(self, outcomes: list[Outcome], facts: Facts) -> ndarray:
        import numpy as np

        right = [outcome["chosen_reward"] > outcome["rejected_reward"] for outcome in outcomes]
        return np.array([(hit, 1) for hit in right], dtype=np.float64)

    def value_of(self, sums: ndarray) -> ndarray:
        return sums[..., 0] / sums[..., 1]

    def _rewards(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """beta times the log-ratio of each answer (B, P), in fp32."""
        with _as_base(model):
            of_base_BP = _log_likelihoods(model, batch)
        return self.options.beta * (_log_likelihoods(model, batch) - of_base_BP)

    def _losses(self, rewards_BP: Tensor) -> Tensor:
        """Of each pair (B,)."""
        from torch.nn.functional import logsigmoid

        margins_B = rewards_BP[:, 0] - rewards_BP[:, 1]
        wrong = self.options.label_smoothing
        return -(1 - wrong) * logsigmoid(margins_B) - wrong * logsigmoid(-margins_B)


def _log_likelihoods(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Of each answer after its prompt (B, P), summed over its tokens, in fp32."""
    from torch.nn.functional import cross_entropy

    labels_BPT = batch["labels"]
    logits = model(
        input_ids=batch["input_ids"].flatten(0, 1),
        attention_mask=batch["attention_mask"].flatten(0, 1),
        use_cache=False,
    ).logits[:, :-1]
    losses = cross_entropy(
        logits.flatten(0, 1).float(),
        labels_BPT[..., 1:].flatten(),
        ignore_index=IGNORED,
        reduction="none",
    )
    return -losses.view(*labels_BPT.shape[:2], -1).sum(-1)


@contextmanager
def _as_base(model: nn.Module) -> Iterator[None]:
    """The base as it was: without adapter, gradient and dropout."""
    import torch

    inner: Any = unwrapped(model)
    modes = [(module, module.training) for module in inner.modules()]
    inner.eval()
    try:
        with torch.no_grad(), inner.disable_adapter():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _tokens(tokenizer: Any, text: str, *, opens: bool = False, closes: bool = False) -> list[int]:
    """Tokens of a prompt, with the start token where the tokenizer itself puts one, or of an
    answer, with its end."""
    tokens = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    if opens and start is not None and tokenizer("a")["input_ids"][:1] == [start]:
        tokens = [start, *tokens]
    return [*tokens, end] if closes and end is not None else tokens
