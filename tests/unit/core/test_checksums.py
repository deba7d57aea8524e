"""Checksums of folders: every change of every file is found before its bytes are used."""

import os
import random
import zlib

import pytest

from dtl.core.checksums import (
    BLOCK_BYTES,
    CHECKSUMS,
    BlockVerifier,
    CheckedFolder,
    ChecksummedFile,
    DamagedFolder,
    compute_checksums,
    seal_folder,
)

SIZES = [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES + 5]


@pytest.fixture
def folder(tmp_path):
    target = tmp_path / "data"
    (target / "below").mkdir(parents=True)
    (target / "a.bin").write_bytes(random.Random(1).randbytes(2 * BLOCK_BYTES + 100))
    (target / "below" / "b.json").write_text("{}")
    (target / "empty").write_bytes(b"")
    seal_folder(target)
    return target


def open_and_verify(folder):
    CheckedFolder(folder, fix="make it again").verify_all()


@pytest.mark.parametrize("size", SIZES)
def test_checksums_are_those_of_zlib_however_the_bytes_are_written(tmp_path, size):
    content = random.Random(size).randbytes(size)
    blocks = [content[at : at + BLOCK_BYTES] for at in range(0, size, BLOCK_BYTES)]
    expected = "".join(f"{zlib.crc32(block):08x}" for block in blocks)
    with ChecksummedFile(tmp_path / "file") as file:
        for at in range(0, size, 100_003):
            file.write(content[at : at + 100_003])
    assert (tmp_path / "file").read_bytes() == content
    assert file.checksums == compute_checksums(tmp_path / "file")
    assert (file.checksums.bytes, file.checksums.crc32) == (size, expected)


def test_an_intact_folder_is_accepted_with_files_that_came_later(folder):
    (folder / "later").write_text("of another program")
    open_and_verify(folder)


def test_any_flipped_bit_of_any_file_is_found(folder):
    rng = random.Random(2)
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        before = path.read_bytes()
        for _ in range(20 if before else 0):
            changed = bytearray(before)
            changed[rng.randrange(len(before))] ^= 1 << rng.randrange(8)
            path.write_bytes(changed)
            with pytest.raises(DamagedFolder, match="the folder is damaged") as caught:
                open_and_verify(folder)
            assert path.name in str(caught.value) or path.name == CHECKSUMS
            assert "make it again" in str(caught.value)
        path.write_bytes(before)
    open_and_verify(folder)


@pytest.mark.parametrize("change", ["cut", "emptied", "longer", "removed"])
def test_a_file_of_another_size_is_found_when_the_folder_is_opened(folder, change):
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        before = path.read_bytes()
        content = {"cut": before[:-2], "emptied": b"", "longer": before + b"\n"}
        if change == "removed":
            path.unlink()
        elif content[change] == before or (path.name == CHECKSUMS and change == "longer"):
            continue
        else:
            path.write_bytes(content[change])
        with pytest.raises(DamagedFolder):
            CheckedFolder(folder, fix="")
        path.write_bytes(before)
    CheckedFolder(folder, fix="")


def test_a_block_is_verified_once_and_only_where_it_is_read(folder):
    content = bytearray((folder / "a.bin").read_bytes())
    verifier = BlockVerifier(CheckedFolder(folder, fix=""), "a.bin", memoryview(content))
    content[BLOCK_BYTES + 7] ^= 1  # in the second of three blocks
    verifier.verify(0, BLOCK_BYTES)
    verifier.verify(2 * BLOCK_BYTES, 2 * BLOCK_BYTES + 100)
    verifier.verify(7, 7)
    with pytest.raises(DamagedFolder, match=f"bytes {BLOCK_BYTES} to {2 * BLOCK_BYTES} of a.bin"):
        verifier.verify(BLOCK_BYTES - 1, BLOCK_BYTES + 1)
    content[0] ^= 1
    verifier.verify(0, 10)  # it was compared already


def test_a_damaged_folder_of_the_cache_is_removed_unless_it_was_replaced(folder, tmp_path):
    opened = [CheckedFolder(folder, fix="", is_cache=True) for _ in range(2)]
    opened[0].damage("x")
    assert not folder.exists()
    folder.mkdir()
    seal_folder(folder)
    os.utime(folder / CHECKSUMS, (1, 1))  # of another moment
    opened[1].damage("x")
    assert folder.exists() and [each.name for each in tmp_path.iterdir()] == ["data"]


def test_a_path_outside_of_the_folder_is_refused(folder, tmp_path):
    from dtl.core.files import read_record, write_record

    (tmp_path / "secret").write_text("x")
    record = read_record(folder / CHECKSUMS)
    record["files"]["../secret"] = {"bytes": 1, "crc32": f"{zlib.crc32(b'x'):08x}"}
    write_record(folder / CHECKSUMS, record)
    with pytest.raises(DamagedFolder, match="secret is missing"):
        CheckedFolder(folder, fix="")
