"""The pre-flight check names nodes that are missing, different or unfit."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dtl import api
from dtl.cluster.node_probe import NodeReport
from dtl.cluster.preflight import NodeFault, PreflightResult, find_faults
from dtl.cluster.rank_group import RankGroup
from dtl.core.process_env import find_free_port
from dtl.prepare import prepared_run
from dtl.run.folder import RunFolder
from tests import tiny

PROCESS = """
import socket, sys
from dtl.cluster import node_probe, preflight
from dtl.plan import hardware

host, versions, free = sys.argv[1], sys.argv[2], sys.argv[3]
socket.gethostname = lambda: host
if versions.startswith("code "):
    node_probe.package_digest = lambda: versions.removeprefix("code ")
elif versions != "-":
    node_probe.find_package_versions = lambda: {"torch": versions}
if free != "-":
    node_probe.free_disk_bytes = lambda place: int(free)
sys.exit(preflight.main(sys.argv[4:]))
"""


@pytest.fixture(scope="module")
def run(decoder, tmp_path_factory) -> Path:
    """A run folder that is ready to start, with a base and data of its own."""
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
        prepared = prepared_run.prepare_run(api.load_config(folder / "run.yaml"))
        examples = prepared.data
        RunFolder(folder / "run").create(
            prepared.config, prepared.plan, examples.dataset_stats, examples.to_record()
        )
    return folder / "run"


class Nodes:
    """Starts the check in processes that appear to be on nodes of their own."""

    def __init__(self, run: Path) -> None:
        self.run, self.port, self.processes = run, find_free_port(), []

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
        command = [sys.executable, "-c", PROCESS, f"node{rank}", versions, free, str(self.run)]
        self.processes.append(
            subprocess.Popen(
                [*command, "--nodes", "node0,node1", *more],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )

    def wait(self):
        """Return the exit codes, and the standard output and errors of all."""
        outputs = [process.communicate(timeout=120) for process in self.processes]
        codes = [process.returncode for process in self.processes]
        return codes, "".join(out for out, _ in outputs), "".join(err for _, err in outputs)


@pytest.fixture
def nodes(run):
    for name in ("preflight.json", "excluded_nodes"):
        (run / name).unlink(missing_ok=True)
    return Nodes(run)


def test_two_fit_nodes_report_their_bandwidth(nodes, run):
    nodes.start(0)
    nodes.start(1)
    codes, output, errors = nodes.wait()
    assert codes == [0, 0] and "preflight: 2 processes in" in output and "preflight" not in errors
    result = json.loads((run / "preflight.json").read_text())
    assert result["faults"] == [] and result["bandwidth"] > 0 and result["seconds"] < 60
    assert not (run / "excluded_nodes").exists()


def test_bandwidth_below_the_floor_is_a_fault(nodes):
    for rank in range(2):
        nodes.start(rank, more=("--floor", "1e6"))
    codes, _, errors = nodes.wait()
    assert codes == [2, 2] and "expected at least 1e+06 GB/s" in errors


def test_different_versions_and_a_full_disk_are_named_with_their_node(nodes, run):
    nodes.start(0, versions="2.13.0", free=str(10**12))
    nodes.start(1, versions="2.12.0", free="1000")
    codes, _, errors = nodes.wait()
    assert codes == [2, 2]
    assert "preflight: node1: torch is 2.12.0 here, and 2.13.0 on node0. Fix: install" in errors
    assert "preflight: node1: 1000 B are free in" in errors
    assert (run / "excluded_nodes").read_text() == "node1"


def test_different_code_of_dtl_is_named_with_its_node(nodes):
    nodes.start(0, versions="code abc")
    nodes.start(1, versions="code def")
    codes, _, errors = nodes.wait()
    assert codes == [2, 2]
    assert "preflight: node1: code of dtl is def here, and abc on node0. Fix: install" in errors


def test_missing_node_is_named_in_time(nodes, run):
    (run / "excluded_nodes").write_text("node7")
    start = time.monotonic()
    nodes.start(0, ranks=4, more=("--seconds", "4"))
    nodes.start(1, ranks=4, more=("--seconds", "4"))
    codes, _, errors = nodes.wait()
    assert codes == [3, 3] and time.monotonic() - start < 60
    assert "preflight: node1: rank 2, 3 has not reached 127.0.0.1 in 4 s" in errors
    assert (run / "excluded_nodes").read_text() == "node1,node7"


def test_missing_rank_0_is_reported(nodes):
    nodes.start(1, more=("--seconds", "1"))
    codes, _, errors = nodes.wait()
    assert codes == [3] and "preflight: node1: cannot connect to 127.0.0.1 at port" in errors


@pytest.mark.parametrize(
    ("removed", "problem"),
    [
        ("base/model.safetensors", "the weights of"),
        ("base", "there is no folder"),
        ("rows.jsonl", "rows.jsonl cannot be read (No such file or directory)"),
    ],
)
def test_base_or_data_that_this_node_cannot_read_is_named(nodes, run, removed, problem):
    moved = run.parent / "away"
    (run.parent / removed).rename(moved)
    (run.parent / "cache").rename(run.parent / "cache-away")
    try:
        nodes.start(0, ranks=1)
        codes, _, errors = nodes.wait()
    finally:
        moved.rename(run.parent / removed)
        (run.parent / "cache-away").rename(run.parent / "cache")
    assert (
        codes == [2]
        and errors.splitlines()[-1].startswith("preflight: node0: ")
        and problem in errors
    )


def test_node_that_differs_from_most_others_is_reported_once():
    reports = [
        NodeReport(rank, f"node{rank // 2}", {"torch": "1" if rank // 2 == 2 else "2"}, ())
        for rank in range(8)
    ]
    (fault,) = find_faults(reports)
    assert fault.host == "node2" and fault.problem == (
        "torch is 1 here, and 2 on node0, node1, node3"
    )


def test_fault_of_the_user_outweighs_a_fault_of_a_node():
    node, user = (NodeFault("n", blame, "p", "m") for blame in ("node", "user"))
    assert [PreflightResult(faults).exit_code for faults in ((), (node,), (node, user))] == [
        0,
        3,
        2,
    ]
    assert PreflightResult((node, user)).unfit_nodes == ["n"]
    assert RankGroup(5, 1, 8, "", 0, ["a", "b"], 1.0).host_name(5) == "b"
