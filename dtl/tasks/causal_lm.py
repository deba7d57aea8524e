"""Language modelling: chat messages, prompt and completion, or plain text."""

# B batch, T tokens, V vocabulary

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from dtl.config.schema import Record
from dtl.data.encoded import Encoded, Skip
from dtl.data.source import Row
from dtl.errors import DtlError
from dtl.tasks import IGNORED, Facts, Outcome, Task, mask, pad, text_of

if TYPE_CHECKING:
    from torch import Tensor, nn

NOTHING_LEFT = "no target left after truncation"


class Options(Record):
    """Options of `task: causal_lm`."""

    max_length: int = Field(
        512, ge=2, description="Longest example in tokens; the rest is cut off."
    )
    learn: Literal["completion", "all"] = Field(
        "completion",
        description="Which tokens of a prompt/completion or chat row are learnt: the completion "
        "(the assistant's turns) or all. Plain text is always learnt whole.",
    )
    end_token: bool = Field(
        True, description="Close plain text and completions with the end-of-sequence token, learnt."
    )


class Plugin(Task):
    """Next-token prediction; the loss counts each learnt token once."""

    head = "AutoModelForCausalLM"
    reads = "`messages` (role, content), or `prompt` and `completion`, or `text`"
    best = "-perplexity"
    options: Options

    def survey(self, rows: Iterable[Row], base: Any) -> Facts:
        return {}

    def head_settings(self, facts: Facts) -> dict[str, Any]:
        return {}

    def encoder(self, processor: Any, facts: Facts, base: Any) -> Callable[[Row], Encoded | Skip]:
        limit = min(
            self.options.max_length, getattr(base, "max_position_embeddings", None) or 2**31
        )

        def encode(row: Row) -> Encoded | Skip:
            tokens, learnt = self._tokens(row, processor)
            if not tokens:
                return Skip("empty text")
            labels = [
                token if counts else IGNORED for token, counts in zip(tokens, learnt, strict=True)
            ]
            tokens, labels = tokens[:limit], labels[:limit]
            targets = sum(label != IGNORED for label in labels[1:])
            if targets == 0:
                return Skip(NOTHING_LEFT)
            return Encoded({"input_ids": tokens, "labels": labels}, len(tokens), targets)

        return encode

    def _tokens(self, row: Row, tokenizer: Any) -> tuple[list[int], list[bool]]:
        """Token ids of a row, and whether each is learnt."""
        fields = row.fields
        if fields.get("messages") is not None:
            return self._chat(row, tokenizer)
        start = [tokenizer.bos_token_id] if _opens_with_start(tokenizer) else []
        end = [tokenizer.eos_token_id] if self._closes(tokenizer) else []
        if fields.get("prompt") is not None and fields.get("completion") is not None:
            prompt = start + _ids(tokenizer, text_of(row, "prompt"))
            completion = _ids(tokenizer, text_of(row, "completion")) + end
            return prompt + completion, [self.options.learn == "all"] * len(prompt) + [True] * len(
                completion
            )
        if fields.get("text") is not None:
            body = _ids(tokenizer, text_of(row, "text"))
            tokens = start + body + end if body else []
            return tokens, [True] * len(tokens)
        raise DtlError.of(
            row.place,
            f"the row has {', '.join(map(repr, fields)) or 'nothing'}; the task reads {self.reads}",
            "name them in data.columns, for example `columns: {text: body}`",
        )

    def _closes(self, tokenizer: Any) -> bool:
        return self.options.end_token and tokenizer.eos_token_id is not None

    def _chat(self, row: Row, tokenizer: Any) -> tuple[list[int], list[bool]]:
        """Render the turns by the model's own template; learn what each assistant turn adds."""
        if not getattr(tokenizer, "chat_template", None):
            raise DtlError.of(
                row.place,
                "the row holds chat `messages`, but the model's tokenizer has no chat template",
                "take an instruction-tuned model, or data with `prompt` and `completion`",
            )
        messages = _messages(row)
        whole = _render(tokenizer, messages, row)
        tokens = _ids(tokenizer, whole)
        if self.options.learn == "all":
            return tokens, [True] * len(tokens)
        spans = _assistant_spans(tokenizer, messages, whole, row)
        encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        learnt = [
            any(start < end_of_span and end > start_of_span for start_of_span, end_of_span in spans)
            for start, end in encoded["offset_mapping"]
        ]
        return list(encoded["input_ids"]), learnt

    def collate(self, examples: list[dict[str, Any]], *, padding: int) -> dict[str, Tensor]:
        inputs = [example["input_ids"] for example in examples]
        return {
            "input_ids": pad(inputs, value=padding),
            "attention_mask": mask(inputs),
            "labels": pad([example["labels"] for example in examples], value=IGNORED),
        }

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return _losses(model, batch)[0].sum()

    def outcomes(
        self, model: nn.Module, batch: dict[str, Tensor], *, processor: Any
    ) -> list[Outcome]:
        losses_BT, logits_BTV = _losses(model, batch)
        labels_BT = batch["labels"][:, 1:]
        hits_BT = logits_BTV.argmax(-1) == labels_BT
        targets_B = (labels_BT != IGNORED).sum(1)
        return [
            {"loss": loss, "targets": targets, "hits": hits}
            for loss, targets, hits in zip(
                losses_BT.double().sum(1).tolist(),
                targets_B.tolist(),
                hits_BT.sum(1).tolist(),
                strict=True,
            )
        ]

    def score(self, outcomes: list[Outcome], facts: Facts) -> dict[str, float]:
        """Loss a token (nats), perplexity = exp(loss), share of tokens guessed right."""
        targets = sum(outcome["targets"] for outcome in outcomes)
        loss = math.fsum(outcome["loss"] for outcome in outcomes) / targets
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "accuracy": sum(outcome["hits"] for outcome in outcomes) / targets,
        }


def _losses(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Loss of each next token (B, T-1), 0 where it is not counted, and the logits (B, T-1, V)."""
    from torch.nn.functional import cross_entropy

    logits_BTV = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    ).logits[:, :-1]
    labels_BT = batch["labels"][:, 1:]
    losses_BT = cross_entropy(
        logits_BTV.flatten(0, 1).float(),
        labels_BT.flatten(),
        ignore_index=IGNORED,
        reduction="none",
    ).view(labels_BT.shape)
    return losses_BT, logits_BTV


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _opens_with_start(tokenizer: Any) -> bool:
    """Whether this tokenizer itself puts the start token before a text, as in pretraining."""
    if tokenizer.bos_token_id is None:
        return False
    return list(tokenizer("a")["input_ids"])[:1] == [tokenizer.bos_token_id]


def _messages(row: Row) -> list[dict[str, Any]]:
    messages: Any = row.fields["messages"]
    fine = isinstance(messages, list) and all(
        isinstance(message, dict) and isinstance(message.get("role"), str) and "content" in message
        for message in messages
    )
    if not fine or not messages:
        raise DtlError.of(
            row.place,
            "`messages` is not a list of turns",
            'write [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]',
        )
    return list(messages)


def _render(tokenizer: Any, messages: list[dict[str, Any]], row: Row, *, ask: bool = False) -> str:
    from jinja2 import TemplateError

    try:
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
        )
    except TemplateError as fault:
        raise DtlError.of(
            row.place, f"the model's chat template refuses the row: {fault}", "mend the turns"
        ) from fault


def _assistant_spans(
    tokenizer: Any, messages: list[dict[str, Any]], whole: str, row: Row
) -> list[tuple[int, int]]:
    """Where the assistant's turns stand in the rendered text, end-of-turn mark included."""
    spans = []
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        asked = _render(tokenizer, messages[:place], row, ask=True) if place else ""
        answered = _render(tokenizer, messages[: place + 1], row)
        if not whole.startswith(answered.rstrip()) or not answered.startswith(asked):
            raise DtlError.of(
                row.place,
                "the model's chat template rewrites earlier turns: the answers cannot be located",
                "set task.learn=all, or give the data as `prompt` and `completion`",
            )
        spans.append((len(asked), len(answered.rstrip("\n"))))
    return spans
