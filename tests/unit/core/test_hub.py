"""Whether the Hub can be reached is known in seconds, also where nothing answers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import huggingface_hub.constants
import pytest

from dtl.core import hub


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a Hub that accepts connections."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        hub.hub_is_reachable.cache_clear()
        yield address
    hub.hub_is_reachable.cache_clear()


def test_a_hub_that_accepts_connections_is_used(endpoint):
    hub.disable_unreachable_hub()
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_where_nothing_listens_libraries_read_their_cache_only(endpoint, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    hub.disable_unreachable_hub()
    assert huggingface_hub.constants.HF_HUB_OFFLINE


def test_a_name_server_that_does_not_answer_costs_the_timeout(endpoint, monkeypatch):
    monkeypatch.setattr(hub, "TIMEOUT_SECONDS", 0.2)
    released = threading.Event()

    def connect(*_: object, **__: object) -> None:
        released.wait(5)
        raise OSError("no answer")

    monkeypatch.setattr(hub.socket, "create_connection", connect)
    start = time.monotonic()
    assert not hub.hub_is_reachable()
    assert time.monotonic() - start < 1
    released.set()


def test_behind_a_proxy_the_hub_is_used(endpoint, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert hub.hub_is_reachable()
