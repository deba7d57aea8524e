"""Before a model loads: whoever is missing, unlike the others or unfit is named with its node."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dtl import api
from dtl.cluster.node_probe import Seen
from dtl.cluster.preflight import Found, Meeting, Verdict, judged
from dtl.core.process_env import free_port
from dtl.prepare import preparation
from dtl.run.folder import RunFolder
from tests import tiny

SEES = """
import socket, sys
from dtl.cluster import node_probe as node, preflight
from dtl.plan import hardware

host, versions, free = sys.argv[1], sys.argv[2], sys.argv[3]
socket.gethostname = lambda: host
if versions.startswith("code "):
    node.code = lambda: versions.removeprefix("code ")
elif versions != "-":
    node.find_package_versions = lambda: {"torch": versions}
if free != "-":
    node.free_disk_bytes = lambda place: int(free)
sys.exit(preflight.main(sys.argv[4:]))
"""


@pytest.fixture(scope="module")
def run(decoder, tmp_path_factory) -> Path:
    """A run folder as the desk leaves it, of a base and data of its own."""
    folder = tmp_path_factory.mktemp("preflight")
    shutil.copytree(decoder, folder / "base")
    tiny.write_texts(folder / "rows.jsonl", 20)
    (folder / "run.yaml").write_text(
        f"run: {{dir: {folder}, name: run}}\nmodel: {{path: {folder / 'base'}}}\n"
        f"task: causal_lm\nstrategy: lora\ndata: {{train: {folder / 'rows.jsonl'}}}\n"
        "train: {steps: 2}\n"
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("DTL_CACHE", str(folder / "cache"))
        prepared = preparation.prepare_run(api.load_config(folder / "run.yaml"))
        examples = prepared.examples
        RunFolder(folder / "run").create(
            prepared.config, prepared.plan, examples.dataset_stats, examples.data
        )
    return folder / "run"


class Nodes:
    """Starts the pre-flight of processes that believe to be on nodes of their own."""

    def __init__(self, run: Path) -> None:
        self.run, self.port, self.started = run, free_port(), []

    def start(self, rank, *, ranks=2, versions="-", free="-", more=()):
        environment = {
            **os.environ,
            "DTL_CACHE": str(self.run.parent / "cache"),
            "RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.port),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-c", SEES, f"node{rank}", versions, free, str(self.run)]
        self.started.append(
            subprocess.Popen(
                [*command, "--nodes", "node0,node1", *more],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )

    def ends(self):
        """Exit codes, and what was said."""
        told = [process.communicate(timeout=120) for process in self.started]
        codes = [process.returncode for process in self.started]
        return codes, "".join(out for out, _ in told), "".join(err for _, err in told)


@pytest.fixture
def nodes(run):
    for left in ("preflight.json", "unfit_nodes"):
        (run / left).unlink(missing_ok=True)
    return Nodes(run)


def test_two_fit_nodes_meet_and_their_bandwidth_is_told(nodes, run):
    nodes.start(0)
    nodes.start(1)
    codes, said, wrong = nodes.ends()
    assert codes == [0, 0] and "preflight: 2 processes in" in said and "preflight" not in wrong
    left = json.loads((run / "preflight.json").read_text())
    assert left["faults"] == [] and left["bandwidth"] > 0 and left["seconds"] < 60
    assert not (run / "unfit_nodes").exists()


def test_too_little_bandwidth(nodes):
    for rank in range(2):
        nodes.start(rank, more=("--floor", "1e6"))
    codes, _, wrong = nodes.ends()
    assert codes == [2, 2] and "the site's floor is 1e+06" in wrong


def test_other_versions_and_a_full_disk_are_named_with_their_node(nodes, run):
    nodes.start(0, versions="2.13.0", free=str(10**12))
    nodes.start(1, versions="2.12.0", free="1000")
    codes, _, wrong = nodes.ends()
    assert codes == [2, 2]
    assert "preflight: node1: torch is 2.12.0 here, and 2.13.0 on node0; install" in wrong
    assert "preflight: node1: 1000 B are free in" in wrong
    assert (run / "unfit_nodes").read_text() == "node1"


def test_other_code_of_dtl_is_named_with_its_node(nodes):
    nodes.start(0, versions="code abc")
    nodes.start(1, versions="code def")
    codes, _, wrong = nodes.ends()
    assert codes == [2, 2]
    assert "preflight: node1: code of dtl is def here, and abc on node0; install" in wrong


def test_a_node_that_does_not_come_is_named_in_time(nodes, run):
    (run / "unfit_nodes").write_text("node7")
    start = time.monotonic()
    nodes.start(0, ranks=4, more=("--seconds", "4"))
    nodes.start(1, ranks=4, more=("--seconds", "4"))
    codes, _, wrong = nodes.ends()
    assert codes == [3, 3] and time.monotonic() - start < 60
    assert "preflight: node1: rank 2, 3 has not reached 127.0.0.1 in 4 s" in wrong
    assert (run / "unfit_nodes").read_text() == "node1,node7"


def test_a_first_process_that_is_not_there(nodes):
    nodes.start(1, more=("--seconds", "1"))
    codes, _, wrong = nodes.ends()
    assert codes == [3] and "preflight: node1: does not reach 127.0.0.1 at port" in wrong


@pytest.mark.parametrize(
    ("lost", "told"),
    [
        ("base/model.safetensors", "the weights of"),
        ("base", "there is no folder"),
        ("rows.jsonl", "rows.jsonl cannot be read (No such file or directory)"),
    ],
)
def test_a_base_or_data_that_this_node_does_not_read(nodes, run, lost, told):
    moved = run.parent / "away"
    (run.parent / lost).rename(moved)
    (run.parent / "cache").rename(run.parent / "cache-away")
    try:
        nodes.start(0, ranks=1)
        codes, _, wrong = nodes.ends()
    finally:
        moved.rename(run.parent / lost)
        (run.parent / "cache-away").rename(run.parent / "cache")
    assert (
        codes == [2] and wrong.splitlines()[-1].startswith("preflight: node0: ") and told in wrong
    )


def test_what_most_nodes_have_is_the_usual_and_a_finding_is_told_once():
    seen = [
        Seen(rank, f"node{rank // 2}", {"torch": "1" if rank // 2 == 2 else "2"}, ())
        for rank in range(8)
    ]
    (found,) = judged(seen)
    assert found.host == "node2" and found.problem == (
        "torch is 1 here, and 2 on node0, node1, node3"
    )


def test_the_users_fault_counts_more_than_a_nodes():
    node, user = (Found("n", blame, "p", "m") for blame in ("node", "user"))
    assert [Verdict(faults).exit_code for faults in ((), (node,), (node, user))] == [0, 3, 2]
    assert Verdict((node, user)).unfit == ["n"]
    assert Meeting(5, 1, 8, "", 0, ["a", "b"], 1.0).host(5) == "b"
