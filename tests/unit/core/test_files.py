"""Files and folders are written atomically and read with verification."""

import os
import subprocess
import sys

import pytest

from dtl.core.errors import DtlError
from dtl.core.files import (
    FileDigest,
    hash_file,
    open_atomic,
    publish_folder,
    read_json,
    remove_abandoned,
    staged_folder,
    verify_file,
    write_json,
    write_text,
)


@pytest.mark.parametrize("sync", [True, False])
def test_a_file_is_replaced_and_leaves_no_temporary_file(tmp_path, sync):
    path = tmp_path / "a.txt"
    write_text(path, "old", sync=sync)
    write_text(path, "new", sync=sync)
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"step": 1})
    with pytest.raises(TypeError):
        write_json(path, {"step": 2, "invalid": {1, 2}})
    assert read_json(path) == {"step": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_a_killed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old", sync=False)
    code = (
        "import os, sys; from pathlib import Path; from dtl.core.files import open_atomic\n"
        "with open_atomic(Path(sys.argv[1]), sync=True) as file:\n"
        "    file.write('ne'); file.flush(); os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 9
    assert path.read_text() == "old"


def test_the_last_of_two_writers_wins(tmp_path):
    path = tmp_path / "a.txt"
    with open_atomic(path, sync=False) as first, open_atomic(path, sync=False) as second:
        first.write("first")
        second.write("second")
    assert path.read_text() == "first"  # whose block ended last


def test_a_missing_parent_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "absent" / "a.txt", "text", sync=False)


@pytest.mark.parametrize("content", ["", "{", "\x00"])
def test_an_unreadable_json_file_is_one_fault(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(DtlError, match=r"a\.json: the file cannot be read"):
        read_json(path)


def test_a_staged_folder_gets_its_name_when_it_is_complete(tmp_path):
    target = tmp_path / "cache" / "key"
    with staged_folder(target) as staged:
        (staged / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    assert [entry.name for entry in target.parent.iterdir()] == ["key"]


def test_a_failed_staged_folder_is_removed(tmp_path):
    with pytest.raises(ValueError), staged_folder(tmp_path / "key") as staged:
        (staged / "a").write_text("1")
        raise ValueError
    assert not list(tmp_path.iterdir())


def test_the_first_of_two_published_folders_stays(tmp_path):
    target = tmp_path / "key"
    for number in (1, 2):
        with staged_folder(target) as staged:
            (staged / "a").write_text(str(number))
    assert (target / "a").read_text() == "1"
    assert [entry.name for entry in tmp_path.iterdir()] == ["key"]


def test_an_invalid_published_folder_is_replaced(tmp_path):
    target, staged = tmp_path / "key", tmp_path / "staged"
    for folder, text in ((target, "damaged"), (staged, "valid")):
        folder.mkdir()
        (folder / "a").write_text(text)
    publish_folder(staged, target, is_valid=lambda path: (path / "a").read_text() == "valid")
    assert (target / "a").read_text() == "valid"
    assert [entry.name for entry in tmp_path.iterdir()] == ["key"]


def test_a_file_is_verified_by_size_and_hash(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc")
    digest = hash_file(path)
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    assert digest == FileDigest(3, sha256)
    assert verify_file(path, digest) is None
    path.write_bytes(b"abcd")
    assert verify_file(path, digest) == "a.bin has the wrong size (expected 3 bytes, got 4)"
    path.write_bytes(b"abd")
    assert verify_file(path, digest) == "a.bin has the wrong SHA-256"
    path.unlink()
    assert verify_file(path, digest) == "a.bin is missing"


def test_what_killed_processes_have_left_is_removed_after_a_time(tmp_path):
    digits = "0123456789abcdef" * 2
    left = [f".a.json.{digits}", f".b.{digits}.staged", f".c.{digits}", f".lease-{digits}"]
    others = ["a.json", ".hidden", f"b.{digits}.staged", f".d.{digits[1:]}", ".staged-00000004"]
    for name in (*left, *others):
        (tmp_path / name).touch() if "json" in name else (tmp_path / name).mkdir()
    young = tmp_path / f".e.{digits}"
    young.touch()
    for path in tmp_path.iterdir():
        if path != young:
            os.utime(path, (0, 0))
    remove_abandoned(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*others, young.name}
