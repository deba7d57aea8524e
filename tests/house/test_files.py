"""Files of runs, caches and exports are read and written by dtl/core alone, which verifies what it
reads, and stages, syncs and renames what it writes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import dtl

PACKAGE = Path(dtl.__file__).parent
# Packages that read or write the files of a run, a cache or an export.
ROOMS = (
    *("backends", "cluster", "compare", "data/cache", "evaluation", "export", "jobs", "launch"),
    *("prepare", "report", "run", "train"),
)
FILES = [file for room in ROOMS for file in sorted((PACKAGE / room).rglob("*.py"))]
FILES += [PACKAGE / "core" / name for name in ("cache_folder.py", "lock.py")]
METHODS = {
    *("write_text", "write_bytes", "read_text", "read_bytes", "rename", "hardlink_to"),
    *("save", "savez", "load", "memmap", "fromfile", "tofile"),  # of NumPy and torch
}
MODULES = {"np", "numpy", "torch", "json", "pickle"}  # whose `save`, `load`, ... are meant
FUNCTIONS = {"open", "save_file", "load_file", "safe_open"}
# A place that is right, and why.
ALLOWED = {
    "backends/local.py open": "a log of text",
    "cluster/node_probe.py": "files of the user and of the package",
    "cluster/preflight.py read_text": "names of nodes; what is none is left out",
    "cluster/run_log.py open": "a log of text",
    "compare/state.py read_text": "a log of text",
    "core/lock.py json.loads": "the lease changes every few seconds; a damaged one is observed",
    "core/lock.py read_text": "the lease, and /proc",
    "data/cache/store.py": "after CheckedFolder.verify_file, or by blocks when it is read",
    "export/sample_inputs.py": "temporary files of the verification of an export",
    "export/sample_logits.py": "temporary files of the verification of an export",
    "export/sample_logits_process.py": "temporary files of the verification of an export",
    "jobs/push.py read_text": "the model card, which the user may edit",
    "launch/child_process.py read_text": "/proc",
    "launch/child_process.py open": "a log of text",
    "launch/supervisor.py open": "a log of text",
    "run/folder.py rename": "a damaged result.json gets another name",
    "run/folder.py open": "metrics.jsonl: lines with checksums are appended",
    "run/folder.py savez": "in a staged folder",
    "run/folder.py load": "an npz file has a CRC-32 for each array",
    "run/creation.py rename": "the staged run folder; the loser of a race is reported",
    "run/submission.py open": "a log of text, which the job script appends to",
    "run/submission.py read_text": "a log of text, which the job script appends to",
    "train/checkpoint_tensors.py": "hashed by the manifest of its checkpoint",
    "train/find_checkpoint.py rename": "a damaged checkpoint gets another name",
    "train/heartbeat.py": "it changes every second; a damaged one is left out",
}


def _find_calls(file: Path) -> Iterator[tuple[int, str]]:
    """Yield line and name of each call that reads or writes a file."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        if isinstance(function, ast.Name) and function.id in FUNCTIONS:
            yield node.lineno, function.id
        if not isinstance(function, ast.Attribute):
            continue
        owner = function.value.id if isinstance(function.value, ast.Name) else ""
        is_file_open = function.attr == "open" and _has_mode(node)
        is_module = owner in MODULES and function.attr in ("save", "savez", "load", "memmap")
        is_method = function.attr in METHODS - {"save", "load"} and owner not in MODULES
        is_json = owner == "json" and function.attr == "loads" and _reads_text(node)
        if is_file_open or is_module or is_method:
            yield node.lineno, function.attr
        if is_json:
            yield node.lineno, "json.loads"


def _has_mode(node: ast.Call) -> bool:
    """Return whether a call of `open` is that of a path or of `os`, not of a record."""
    modes = [
        arg.value
        for arg in node.args
        if isinstance(arg, ast.Constant) and re.fullmatch("[rwaxbt+]+", str(arg.value))
    ]
    keywords = {keyword.arg for keyword in node.keywords}
    return bool(modes) or bool(keywords & {"mode", "encoding"}) or len(node.args) == 3


def _reads_text(node: ast.Call) -> bool:
    return any("read_text" in ast.dump(arg) or "read_bytes" in ast.dump(arg) for arg in node.args)


def _is_allowed(name: str, call: str) -> bool:
    return name in ALLOWED or f"{name} {call}" in ALLOWED


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_files_of_runs_caches_and_exports_are_read_and_written_by_core(file):
    name = file.relative_to(PACKAGE).as_posix()
    found = [
        f"{name}:{line}: {call}" for line, call in _find_calls(file) if not _is_allowed(name, call)
    ]
    assert not found, "use dtl/core/files, checksums, json_lines or cache_folder"


def test_each_exception_is_needed():
    used = {
        key
        for file in FILES
        for _, call in _find_calls(file)
        for name in (file.relative_to(PACKAGE).as_posix(),)
        for key in (name, f"{name} {call}")
    }
    assert set(ALLOWED) <= used


@pytest.mark.parametrize(
    "code",
    [
        "path.write_text('x')",
        "json.loads(path.read_text())",
        "path.open('wb')",
        "path.open(encoding='utf-8')",
        "open(path)",
        "staged.rename(final)",
        "np.load(path)",
        "np.savez(path, a=a)",
        "os.open(path, 1, 2)",
    ],
)
def test_each_way_to_access_a_file_is_found(tmp_path, code):
    (tmp_path / "code.py").write_text(code)
    assert list(_find_calls(tmp_path / "code.py"))
