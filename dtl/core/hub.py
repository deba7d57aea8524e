"""Whether the Hugging Face Hub can be reached, found out once and in a few seconds."""

from __future__ import annotations

import socket
import threading
from functools import cache
from urllib.parse import urlsplit

TIMEOUT_SECONDS = 3.0
PORTS = {"http": 80, "https": 443}
disabled_by_dtl = False  # whether the libraries read their cache only because of this module


def disable_unreachable_hub() -> None:
    """Have the libraries of the Hub read their cache only where it cannot be reached: they would
    try again for minutes."""
    global disabled_by_dtl
    import huggingface_hub.constants as constants

    if not constants.HF_HUB_OFFLINE and not hub_is_reachable():
        constants.HF_HUB_OFFLINE = disabled_by_dtl = True


@cache
def hub_is_reachable() -> bool:
    """Return whether the Hub accepts a connection; behind a proxy, assume that it does."""
    from urllib.request import getproxies  # slow to import, and most commands do not need the hub

    from huggingface_hub.constants import ENDPOINT

    address = urlsplit(ENDPOINT)
    if getproxies().get(address.scheme):
        return True
    found: list[bool] = []

    def connect() -> None:
        port = address.port or PORTS.get(address.scheme, 443)
        try:
            with socket.create_connection((address.hostname, port), timeout=TIMEOUT_SECONDS):
                found.append(True)
        except OSError:
            found.append(False)

    # A name server that does not answer has no timeout of ours.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(TIMEOUT_SECONDS)
    return bool(found and found[0])
