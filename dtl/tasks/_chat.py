"""Tasks that read chats: their template, and the tokens that end a generated answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dtl.data.chat.custom_template import find_template_notes, set_chat_template
from dtl.data.chat.options import ChatOptions
from dtl.data.chat.stop_tokens import add_stop_tokens
from dtl.tasks.base import DatasetStats, Task

if TYPE_CHECKING:
    from torch import nn

    from dtl.data.sources.rows import Row


class ChatTask(Task):
    """A task whose rows may be chats."""

    options: ChatOptions

    def adapt_processor(
        self, processor: Any, dataset_stats: DatasetStats
    ) -> tuple[Any, DatasetStats]:
        """Set the chat template of the options."""
        return set_chat_template(processor, dataset_stats, self.options)

    def find_data_notes(self, dataset_stats: DatasetStats) -> Iterable[str]:
        return find_template_notes(self.options)


class GenerativeChatTask(ChatTask):
    """A task whose model generates answers; it needs nothing of the training rows."""

    def collect_dataset_stats(self, rows: Iterable[Row], base_config: Any) -> DatasetStats:
        return {}

    def head_config(self, dataset_stats: DatasetStats) -> dict[str, Any]:
        return {}

    def configure_model(self, model: nn.Module, *, processor: Any) -> None:
        """Stop a generated text at the tokens that end an answer of a chat or a text."""
        add_stop_tokens(model, processor, self.options.chat_template_kwargs)
