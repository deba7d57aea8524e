"""`dtl push` against a small stand-in for the hub's API, on this machine."""

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
    """Takes one repository. `refuses`: the status that it answers everything with."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.refuses, self.private, self.files, self.seen = None, None, {}, []


class Answer(BaseHTTPRequestHandler):
    def log_message(self, *told):
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
        hub.seen.append(self.path)
        if self.path.startswith("/api/models/me/first"):
            assert self.headers["Authorization"] == f"Bearer {TOKEN}"
            self._reply({"id": "me/first", "private": hub.private, "sha": "0" * 40})
        else:
            self._reply({"error": "none"}, 404)

    def do_POST(self):
        hub = self.server
        hub.seen.append(self.path)
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        if hub.refuses:
            self._reply({"error": "you shall not"}, hub.refuses)
        elif self.path == "/api/repos/create":
            asked = json.loads(sent)
            if hub.private is None:
                hub.private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self._reply({"url": f"http://{self.headers['Host']}/me/first", "name": "me/first"})
        elif self.path == "/api/validate-yaml":
            self._reply({"errors": [], "warnings": []})
        elif "/branch/" in self.path:
            self._reply({}, 201)
        elif "/preupload/" in self.path:
            files = json.loads(sent)["files"]
            self._reply(
                {
                    "files": [
                        {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                        for one in files
                    ]
                }
            )
        elif "/commit/" in self.path:
            for line in map(json.loads, sent.splitlines()):
                if line["key"] == "file":
                    hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"http://{self.headers['Host']}/me/first/commit/1"
            self._reply({"commitUrl": url, "commitOid": "1"})


@pytest.fixture
def hub(monkeypatch):
    server = Hub()
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    serving.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    serving.join()
    server.server_close()


@pytest.fixture
def export(tmp_path):
    """The files of an adapter, as far as an upload looks at them, and one that stays at home."""
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "README.md").write_text("---\ntags: [dtl]\n---\n\n# tickets\n")
    (folder / "adapter_model.safetensors").write_bytes(b"\0weights\xff" * 100)
    (folder / "dtl.json").write_text("{}")
    (folder / ".notes").write_text("mine")
    return folder


def test_every_file_arrives_as_it_is_and_the_token_is_not_told(hub, export, capsys):
    assert main(["push", str(export), "me/first", "--private", "--revision", "second"]) == 0
    assert hub.files == {
        file.name: file.read_bytes() for file in export.iterdir() if file.name[0] != "."
    }
    assert hub.private
    assert any(path == "/api/models/me/first/branch/second" for path in hub.seen)
    assert any(path == "/api/models/me/first/commit/second" for path in hub.seen)
    said = capsys.readouterr()
    assert said.out.endswith("/me/first/commit/1\n") and said.out.count("\n") == 1
    assert TOKEN not in said.out + said.err


def test_what_was_to_be_private_does_not_go_to_a_public_repository(hub, export):
    hub.private = False
    with pytest.raises(DtlError, match="me/first is there already, and public"):
        api.push(export, "me/first", private=True)
    assert hub.files == {}


@pytest.mark.parametrize(
    ("status", "told"),
    [(401, "the hub does not know the token"), (403, "the token may not write there")],
)
def test_a_refusal_is_one_sentence(hub, export, capsys, status, told):
    hub.refuses = status
    assert main(["push", str(export), "me/first"]) == 2
    said = capsys.readouterr().err
    assert told in said and TOKEN not in said and len(said.splitlines()) == 1


def test_a_hub_that_fails_or_is_out_of_reach_is_no_fault_of_the_user(hub, export, monkeypatch):
    hub.refuses = 507
    with pytest.raises(RunFailed, match="the hub failed"):
        api.push(export, "me/first")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RunFailed, match="the hub cannot be reached"):
        api.push(export, "me/first")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DtlError, match="switched off here"), _session_anew():
        api.push(export, "me/first")


@contextlib.contextmanager
def _session_anew():
    """The hub's library looks whether it is offline when it makes its session."""
    huggingface_hub.close_session()
    yield
    huggingface_hub.close_session()


def test_nothing_is_sent_without_token_card_or_a_proper_name(hub, export, monkeypatch, tmp_path):
    with pytest.raises(DtlError, match="write it as owner/name"):
        api.push(export, "me/first/second")
    with pytest.raises(DtlError, match=r"there is no export with a README\.md"):
        api.push(tmp_path, "me/first")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(DtlError, match="there is no token for the hub; `hf auth login`"):
        api.push(export, "me/first")
    assert hub.files == {}
