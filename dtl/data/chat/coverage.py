"""Which texts of a chat its template drops, and which keys of its messages it does not read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from dtl.core.errors import DtlError
from dtl.data.chat.answers import RenderedChat
from dtl.data.chat.markers import LocatedText
from dtl.data.chat.messages import REASONING_KEYS, Message

FEATURES = (
    "system",
    "content",
    "reasoning",
    "tool_calls",
    "tool_results",
    "tools",
    "documents",
)
MESSAGE_KEY = "messages."  # how the name of a message key begins among what is dropped
ACCOUNTED_KEYS = {"role", "content", "tool_calls", "tool_call_id", *REASONING_KEYS}


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


def find_unread_keys(rendered: RenderedChat, count: int) -> tuple[str, ...]:
    """Return the keys of the first `count` messages without which the template renders the same, as
    `messages.KEY`. Those whose texts `find_dropped_features` finds are not among them."""
    messages = rendered.chat.messages[:count]
    keys = list(dict.fromkeys(key for each in messages for key in each if _is_extra(each, key)))
    if not keys or _renders_same_without(rendered, count, keys):
        return tuple(MESSAGE_KEY + key for key in keys)
    if len(keys) == 1:
        return ()
    return tuple(MESSAGE_KEY + k for k in keys if _renders_same_without(rendered, count, [k]))


def _is_extra(message: Message, key: str) -> bool:
    if key == "name" and message["role"] == "tool":  # it repeats the name of the call
        return False
    return key not in ACCOUNTED_KEYS and message[key] not in ("", [], {})


def _renders_same_without(rendered: RenderedChat, count: int, keys: list[str]) -> bool:
    messages = [
        {key: value for key, value in message.items() if key not in keys}
        for message in rendered.chat.messages[:count]
    ]
    try:
        text = rendered.template.render(replace(rendered.chat, messages=messages)).text
    except DtlError:  # the template requires one of them
        return False
    return text == rendered.text(count)
