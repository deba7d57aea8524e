"""Which texts of a chat its template drops."""

from __future__ import annotations

from collections.abc import Iterable

from dtl.core.errors import DtlError
from dtl.data.chat.answers import RenderedChat
from dtl.data.chat.markers import LocatedText

FEATURES = (
    "system",
    "content",
    "reasoning",
    "tool_calls",
    "tool_results",
    "tools",
    "documents",
)


def find_dropped_features(
    rendered: RenderedChat, count: int, supervised: Iterable[int], *, in_full_chat: bool
) -> tuple[str, ...]:
    """Return what the template drops of the first `count` messages, by the names of `FEATURES`.

    A text of a message that is not learned here may be missing where messages follow it, as in use,
    but not where the chat ends with it. `in_full_chat`: all texts are in the full chat.
    """
    missing = [each for each in rendered.located(count) if not each.is_rendered]
    if missing and not in_full_chat:
        learned = set(supervised)
        missing = [each for each in missing if not _is_rendered_earlier(each, rendered, learned)]
    dropped = {each.text.feature for each in missing}
    return tuple(feature for feature in FEATURES if feature in dropped)


def _is_rendered_earlier(each: LocatedText, rendered: RenderedChat, learned: set[int]) -> bool:
    message = each.text.message
    if message is None or message in learned:
        return False
    is_answer = rendered.chat.messages[message]["role"] == "assistant"
    try:
        located = rendered.located(message + 1, with_prompt=not is_answer)
    except DtlError:
        return False
    return any(other.text == each.text and other.is_rendered for other in located)
