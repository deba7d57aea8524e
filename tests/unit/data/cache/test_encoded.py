"""The cache of encoded examples: complete or absent, even if writers run at once or are killed."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dtl.core.cache_folder import cache_folder
from dtl.core.errors import DtlError, RunFailed
from dtl.data.cache.encoded import EncodedData
from dtl.data.cache.encoder import encode_rows, wait_for_encoded_data
from dtl.data.cache.store import cache_key
from dtl.data.example import EncodedExample, Skip
from dtl.data.sources.rows import Row

WRITER = """
import os, signal, sys
from dtl.data.cache.encoder import encode_rows
from dtl.data.example import EncodedExample, Skip
from dtl.data.sources.rows import Row

rows, dies_at = int(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()

def encoder(row):
    if row.index == dies_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return EncodedExample({"input_ids": [row.index, row.index + 1]}, 2, 1)

rows_to_encode = (Row(n, "", {}) for n in range(rows))
data = encode_rows(rows_to_encode, encoder, key="shared", location="data.train")
print(len(data), data[rows - 1]["input_ids"][1], flush=True)
"""


def to_plain(values):
    """Return arrays as lists, to compare them."""
    return {n: v.tolist() if isinstance(v, np.ndarray) else v for n, v in values.items()}


def rows(count):
    return [Row(number, f"rows.jsonl:{number + 1}", {}) for number in range(count)]


def encoder(row):
    """Row n becomes n % 3 + 1 tokens; every fifth is too long, every seventh is empty."""
    if row.index % 5 == 4:
        return Skip("too long")
    if row.index % 7 == 6:
        return Skip("empty text")
    tokens = [row.index * 10 + place for place in range(row.index % 3 + 1)]
    return EncodedExample(
        {"input_ids": tokens, "labels": row.index}, len(tokens), row.index % 2 + 1
    )


def start_writer(count, *, dies_at=-1):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(count), str(dies_at)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_encoding(process):
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.parametrize("count", [1, 1023, 1024, 1025, 2500])
def test_cached_examples_equal_the_encoded_ones(cache, count):
    """Row counts around 1024, and more."""
    data = encode_rows(rows(count), encoder, key="k", location="data.train")
    examples = [row for row in rows(count) if row.index % 5 != 4 and row.index % 7 != 6]
    assert len(data) == len(examples)
    for place, row in enumerate(examples):
        number = row.index
        assert to_plain(data[place]) == {
            "input_ids": [number * 10 + step for step in range(number % 3 + 1)],
            "labels": number,
        }
    assert data.rows.tolist() == [row.index for row in examples]
    assert data.lengths.tolist() == [row.index % 3 + 1 for row in examples]
    assert data.targets.tolist() == [row.index % 2 + 1 for row in examples]


def test_a_list_may_be_empty_in_any_example(cache):
    lists = [[], [3, 4], [], [5]]
    data = encode_rows(
        rows(4),
        lambda row: EncodedExample({"input_ids": [1], "more": lists[row.index]}, 1, 1),
        key="lists",
        location="data.train",
    )
    assert [data[number]["more"].tolist() for number in range(4)] == lists


def test_skipped_rows_are_counted_by_reason(cache):
    """Of 35 rows, 7 have index % 5 == 4, and 5 have index % 7 == 6, one of which (34) has both."""
    summary = encode_rows(rows(35), encoder, key="k", location="data.train").summary
    assert (summary.rows, summary.examples) == (35, 24)
    assert summary.skipped == {"too long": 7, "empty text": 4}
    line = summary.format_line("train")
    assert line == "train: 24 of 35 examples, 7 skipped (too long), 4 skipped (empty text)"


def test_no_example_is_a_user_error_each_time(cache):
    def nothing(row):
        return Skip("no target left after truncation")

    for _ in range(2):  # the second time from the cache
        with pytest.raises(DtlError) as caught:
            encode_rows(rows(3), nothing, key="k", location="data.eval")
        (fault,) = caught.value.faults
        assert fault.location == "data.eval"
        assert "none of 3 rows" in fault.problem
        assert "3 x no target left after truncation" in fault.problem
        assert "task.max_length" in fault.fix
        assert caught.value.exit_code == 2


def test_cached_rows_are_not_encoded_again(cache):
    def never(row):
        raise AssertionError("encoded again")

    first = encode_rows(rows(10), encoder, key="k", location="data.train")
    again = encode_rows(rows(10), never, key="k", location="data.train")
    assert [to_plain(again[place]) for place in range(len(again))] == [
        to_plain(first[place]) for place in range(len(first))
    ]


def test_error_in_a_row_leaves_no_cache(cache):
    def fails_late(row):
        if row.index == 1500:
            raise DtlError.of(row.location, "the row is bad", "fix it")
        return encoder(row)

    with pytest.raises(DtlError, match=r"rows\.jsonl:1501"):
        encode_rows(rows(2000), fails_late, key="k", location="data.train")
    assert list((cache / "encoded").iterdir()) == []
    assert len(encode_rows(rows(10), encoder, key="k", location="data.train")) == 7


def test_killed_writer_leaves_no_cache(cache):
    """The writer is killed after it has written some rows."""
    process = start_writer(3000, dies_at=2000)
    start_encoding(process)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    with pytest.raises(RunFailed):
        wait_for_encoded_data("shared", timeout_seconds=0)
    assert not (cache / "encoded" / "shared").exists()
    data = encode_rows(rows(10), encoder, key="shared", location="data.train")
    assert to_plain(data[0]) == {"input_ids": [0], "labels": 0}


def test_concurrent_writers_read_one_complete_cache(cache):
    processes = [start_writer(3000) for _ in range(3)]
    for process in processes:
        start_encoding(process)
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert {out for out, _ in outputs} == {"3000 3000\n"}
    assert [entry.name for entry in (cache / "encoded").iterdir()] == ["shared"]


def test_writers_with_the_same_process_id_do_not_share_files(cache):
    """Processes on two machines can have the same id; threads always have."""
    together = threading.Barrier(2, timeout=30)

    def slow(row):
        if row.index % 700 == 0:
            together.wait()
        return EncodedExample({"input_ids": [row.index]}, 1, 1)

    with ThreadPoolExecutor(2) as pool:
        futures = [
            pool.submit(encode_rows, rows(2500), slow, key="k", location="p") for _ in range(2)
        ]
        results = [future.result() for future in futures]
    for data in results:
        found = [list(data[place]["input_ids"]) for place in range(2500)]
        assert found == [[n] for n in range(2500)]
    assert [entry.name for entry in (cache / "encoded").iterdir()] == ["k"]


def test_other_processes_wait_for_the_writer(cache):
    release = threading.Event()

    def slow(row):
        if row.index == 5:
            assert release.wait(30)
        return encoder(row)

    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(wait_for_encoded_data, "k", timeout_seconds=30)
        writing = pool.submit(encode_rows, rows(10), slow, key="k", location="data.train")
        assert not waiting.done()
        release.set()
        assert len(waiting.result()) == len(writing.result()) == 7


def test_timeout_while_waiting_is_a_failed_run(cache):
    with pytest.raises(RunFailed, match="no encoded data after 0 s") as caught:
        wait_for_encoded_data("never", timeout_seconds=0.01)
    assert caught.value.exit_code == 1


def test_cache_key_changes_with_each_of_its_parts():
    parts = {"rows": "abc", "task": {"name": "causal_lm", "max_length": 8}, "dataset_stats": {}}
    changed = [
        {**parts, "rows": "abd"},
        {**parts, "task": {"name": "causal_lm", "max_length": 9}},
        {**parts, "dataset_stats": {"labels": ["a", "b"]}},
        {**parts, "dataset_stats": {"labels": ["b", "a"]}},
        {**parts, "more": None},
    ]
    assert len({cache_key(**parts), *(cache_key(**other) for other in changed)}) == 6
    backwards = {name: parts[name] for name in reversed(parts)}
    assert cache_key(**backwards) == cache_key(**parts)


def test_cache_folder_is_configurable(monkeypatch, tmp_path):
    monkeypatch.setenv("DTL_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("DTL_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "dtl"
    assert not os.path.exists(tmp_path / "home")


def test_folder_without_index_is_not_read(cache):
    folder = cache / "encoded" / "k"
    folder.mkdir(parents=True)
    with pytest.raises(RunFailed):
        wait_for_encoded_data("k", timeout_seconds=0)
    with pytest.raises(OSError):
        EncodedData(folder)


CONCURRENT_WRITERS = """
import fcntl, multiprocessing, os, zlib
from dtl.data.cache.encoder import encode_rows
from dtl.data.example import EncodedExample
from dtl.data.sources.rows import Row

PROCESSES, ROUNDS, ROWS = 16, 10, 40

def no_lock(*_):
    raise OSError("this disk has no locks")

fcntl.flock = fcntl.lockf = no_lock

def encoder(row):
    tokens = [row.index * 31 + n for n in range(row.index % 7 + 1)]
    return EncodedExample({"input_ids": tokens}, 2, 1)

def work(start, outputs):
    for number in range(ROUNDS):
        start.wait()
        rows = (Row(n + number, "", {}) for n in range(ROWS))
        data = encode_rows(rows, encoder, key=f"round-{number}", location="data.train")
        read = repr([data[n]["input_ids"].tolist() for n in range(ROWS)])
        outputs.put((number, zlib.crc32(read.encode())))

fork = multiprocessing.get_context("fork")
start, outputs = fork.Barrier(PROCESSES), fork.Queue()
processes = [fork.Process(target=work, args=(start, outputs)) for _ in range(PROCESSES)]
for one in processes:
    one.start()
found = {outputs.get(timeout=120) for _ in range(PROCESSES * ROUNDS)}
for one in processes:
    one.join()
print(len(found), sum(one.exitcode for one in processes))
"""


def test_sixteen_concurrent_writers_without_file_locks(cache):
    ran = subprocess.run(
        [sys.executable, "-c", CONCURRENT_WRITERS],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    assert ran.stdout == "10 0\n", "every process reads the same in each round"
    left = sorted(path.name for path in (cache / "encoded").iterdir())
    assert left == sorted(f"round-{number}" for number in range(10)), "nothing else is left"
