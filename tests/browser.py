"""A headless Chromium, told what to do over its DevTools protocol through two pipes."""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
from dataclasses import dataclass, field

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe"),
)
TOLD_OF = ("Network", "Runtime", "Log", "Page")
DEADLINE = 60.0  # seconds for an answer


@dataclass
class Browser:
    """`requests`: every address that a page has asked for. `errors`: what its console has said of
    errors, and what was thrown."""

    process: subprocess.Popen
    tells: int
    hears: int
    requests: list = field(default_factory=list)
    errors: list = field(default_factory=list)
    loaded: int = 0
    _numbers: itertools.count = field(default_factory=lambda: itertools.count(1))
    _rest: bytes = b""
    _page: str | None = None

    def begin(self):
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._page = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in TOLD_OF:
            self.call(f"{domain}.enable")

    def open(self, address):
        """Go there, and wait until all of it is loaded."""
        self.requests.clear()
        self.errors.clear()
        before = self.loaded
        self.call("Page.navigate", url=address)
        while self.loaded == before:
            self._hear()

    def ask(self, expression):
        """The value of a JavaScript expression in the page; a promise is waited for."""
        found = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def shows(self, *, width, dark=False):
        """The page as wide as asked, in the light or the dark."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self):
        """PNG of the whole page."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(found["data"])

    def call(self, method, **parameters):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._page is not None:
            message["sessionId"] = self._page
        os.write(self.tells, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._hear()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def _hear(self):
        """The next message; what it tells of the page is kept."""
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self.hears], [], [], DEADLINE)
            assert ready, f"the browser has said nothing for {DEADLINE:.0f} s"
            found = os.read(self.hears, 1 << 16)
            assert found, "the browser has ended"
            self._rest += found
        told, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(told)
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
                self.loaded += 1
        return message


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Skipped, and said so, where there is none."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no browser: `apt-get install chromium` brings one")
    profile = tmp_path_factory.mktemp("profile")
    (its_ear, our_mouth), (our_ear, its_mouth) = os.pipe(), os.pipe()

    def as_it_expects():
        ear, mouth = os.dup(its_ear), os.dup(its_mouth)
        os.dup2(ear, 3)
        os.dup2(mouth, 4)

    process = subprocess.Popen(
        [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        pass_fds=(3, 4),
        preexec_fn=as_it_expects,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(its_ear)
    os.close(its_mouth)
    found = Browser(process, our_mouth, our_ear)
    try:
        found.begin()
        yield found
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(our_mouth)
        os.close(our_ear)
