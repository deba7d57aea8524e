"""A headless Chromium, controlled through the DevTools protocol over two pipes."""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
from dataclasses import dataclass, field

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe"),
)
DOMAINS = ("Network", "Runtime", "Log", "Page")  # of the protocol, whose events are received
TIMEOUT = 60.0  # seconds for a message


@dataclass
class Browser:
    """`requests`: every address requested by the page. `errors`: console errors and exceptions.
    `write_fd` and `read_fd`: the pipes."""

    process: subprocess.Popen
    write_fd: int
    read_fd: int
    requests: list = field(default_factory=list)
    errors: list = field(default_factory=list)
    load_count: int = 0
    _ids: itertools.count = field(default_factory=lambda: itertools.count(1))
    _buffer: bytes = b""
    _session: str | None = None

    def open_tab(self):
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in DOMAINS:
            self.call(f"{domain}.enable")

    def open(self, address):
        """Navigate to an address and wait until it is loaded."""
        self.requests.clear()
        self.errors.clear()
        before = self.load_count
        self.call("Page.navigate", url=address)
        while self.load_count == before:
            self._receive()

    def evaluate(self, expression):
        """Return the value of a JavaScript expression or promise."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def set_viewport(self, *, width, dark=False):
        """Set the width of the page in pixels, and its color scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self):
        """Return a PNG of the full page."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(answer["data"])

    def call(self, method, **parameters):
        """Call a method of the protocol and return its result."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self.write_fd, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def _receive(self):
        """Return the next message; record requests, errors and loads."""
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self.read_fd], [], [], TIMEOUT)
            assert ready, f"no message from the browser for {TIMEOUT:.0f} s"
            received = os.read(self.read_fd, 1 << 16)
            assert received, "the browser has ended"
            self._buffer += received
        text, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(text)
        parameters = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
            case "Runtime.exceptionThrown":
                self.errors.append(parameters["exceptionDetails"]["text"])
            case "Runtime.consoleAPICalled" if parameters["type"] in ("error", "warning"):
                self.errors.append(str(parameters["args"]))
            case "Log.entryAdded" if parameters["entry"]["level"] in ("error", "warning"):
                self.errors.append(parameters["entry"]["text"])
            case "Page.loadEventFired":
                self.load_count += 1
        return message


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A headless browser; the test is skipped if none is installed."""
    program = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip("no browser is installed: run `apt-get install chromium`")
    profile = tmp_path_factory.mktemp("profile")
    (browser_read, write_fd), (read_fd, browser_write) = os.pipe(), os.pipe()

    def move_pipes_to_fds_3_and_4():
        read, write = os.dup(browser_read), os.dup(browser_write)
        os.dup2(read, 3)
        os.dup2(write, 4)

    process = subprocess.Popen(
        [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        pass_fds=(3, 4),
        preexec_fn=move_pipes_to_fds_3_and_4,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(browser_read)
    os.close(browser_write)
    started = Browser(process, write_fd, read_fd)
    try:
        started.open_tab()
        yield started
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(write_fd)
        os.close(read_fd)
