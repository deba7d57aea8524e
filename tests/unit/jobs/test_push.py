"""`dtl push` against a local server that imitates the API of the Hub."""

import base64
import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import huggingface_hub.constants
import pytest

from dtl import api
from dtl.cli.app import main
from dtl.core.errors import DtlError, RunFailed

TOKEN = "hf_secretsecretsecret"


class Hub(ThreadingHTTPServer):
    """Stores one repository. `error_status`: of every response; None: requests succeed."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.error_status, self.private, self.files, self.paths = None, None, {}, []


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def _reply(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        hub = self.server
        hub.paths.append(self.path)
        if self.path.startswith("/api/models/me/first"):
            assert self.headers["Authorization"] == f"Bearer {TOKEN}"
            self._reply({"id": "me/first", "private": hub.private, "sha": "0" * 40})
        else:
            self._reply({"error": "none"}, 404)

    def do_POST(self):
        hub = self.server
        hub.paths.append(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if hub.error_status:
            self._reply({"error": "not allowed"}, hub.error_status)
        elif self.path == "/api/repos/create":
            options = json.loads(body)
            if hub.private is None:
                hub.private = options.get("visibility") == "private" or bool(options.get("private"))
            self._reply({"url": f"http://{self.headers['Host']}/me/first", "name": "me/first"})
        elif self.path == "/api/validate-yaml":
            self._reply({"errors": [], "warnings": []})
        elif "/branch/" in self.path:
            self._reply({}, 201)
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self._reply(
                {
                    "files": [
                        {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                        for file in files
                    ]
                }
            )
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"http://{self.headers['Host']}/me/first/commit/1"
            self._reply({"commitUrl": url, "commitOid": "1"})


@pytest.fixture
def hub(monkeypatch):
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def export(tmp_path):
    """Return a folder with the files of an adapter, and a hidden one that is not uploaded."""
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "README.md").write_text("---\ntags: [dtl]\n---\n\n# tickets\n")
    (folder / "adapter_model.safetensors").write_bytes(b"\0weights\xff" * 100)
    (folder / "dtl.json").write_text("{}")
    (folder / ".notes").write_text("mine")
    return folder


def test_uploaded_files_are_unchanged_and_the_token_is_not_printed(hub, export, capsys):
    assert main(["push", str(export), "me/first", "--private", "--revision", "second"]) == 0
    assert hub.files == {
        file.name: file.read_bytes() for file in export.iterdir() if file.name[0] != "."
    }
    assert hub.private
    assert any(path == "/api/models/me/first/branch/second" for path in hub.paths)
    assert any(path == "/api/models/me/first/commit/second" for path in hub.paths)
    printed = capsys.readouterr()
    assert printed.out.endswith("/me/first/commit/1\n") and printed.out.count("\n") == 1
    assert TOKEN not in printed.out + printed.err


def test_private_upload_to_a_public_repository_is_rejected(hub, export):
    hub.private = False
    with pytest.raises(DtlError, match="me/first exists already and is public"):
        api.push(export, "me/first", private=True)
    assert hub.files == {}


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "the Hub rejects the token"), (403, "the token has no write permission")],
)
def test_rejected_token_gives_one_line_without_the_token(hub, export, capsys, status, message):
    hub.error_status = status
    assert main(["push", str(export), "me/first"]) == 2
    printed = capsys.readouterr().err
    assert message in printed and TOKEN not in printed and len(printed.splitlines()) == 1


def test_failing_or_unreachable_hub_is_reported(hub, export, monkeypatch):
    hub.error_status = 507
    with pytest.raises(RunFailed, match="the Hub failed"):
        api.push(export, "me/first")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RunFailed, match="there is no connection to the Hub"):
        api.push(export, "me/first")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DtlError, match="the Hub is disabled"), _new_session():
        api.push(export, "me/first")


@contextlib.contextmanager
def _new_session():
    """huggingface_hub reads whether it is offline when it creates its session."""
    huggingface_hub.close_session()
    yield
    huggingface_hub.close_session()


def test_nothing_is_uploaded_without_token_card_or_valid_name(hub, export, monkeypatch, tmp_path):
    with pytest.raises(DtlError, match="write it as owner/name"):
        api.push(export, "me/first/second")
    with pytest.raises(DtlError, match=r"there is no export with a README\.md"):
        api.push(tmp_path, "me/first")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(DtlError, match=r"there is no token for the Hub\. Fix: run `hf auth login`"):
        api.push(export, "me/first")
    assert hub.files == {}
