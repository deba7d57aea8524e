"""Runs under a real Slurm: alone, disturbed in every way that a cluster knows, and in a grid."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from dtl import api
from dtl.core.errors import DtlError
from dtl.run.submission import Submission, count_starts
from tests.cluster.conftest import OWN, STEPS, Bed


def test_a_run_on_two_nodes_has_the_losses_of_two_processes_here(bed: Bed) -> None:
    assert bed.losses("plain $x") == bed.losses("local")
    assert bed.weights("plain $x") == bed.weights("local")
    beats = [json.loads(p.read_text()) for p in bed.run("plain $x").heartbeats.glob("*.json")]
    assert {beat["host"] for beat in beats} == {"node0", "node1"}
    assert bed.seen["submit"].splitlines()[-1].endswith(": runs/plain $x")


def test_what_is_followed_is_all_that_the_run_has_said(bed: Bed) -> None:
    assert bed.seen["logs"] == bed.told("plain $x")
    assert f"step {STEPS:>5}/{STEPS}" in bed.seen["logs"]


@pytest.mark.parametrize("name", ["usr1", "term", "requeued", "lost", "chain"])
def test_a_disturbed_run_learns_bitwise_the_same(bed: Bed, name: str) -> None:
    assert count_starts(bed.run(name).path) > 1
    assert bed.losses(name) == bed.losses("plain $x")
    assert bed.weights(name) == bed.weights("plain $x")


def test_what_was_asked_to_save_loses_no_step(bed: Bed) -> None:
    for name in ("usr1", "term"):
        assert "stopped after step" in bed.told(name)
        assert "in the queue again" in bed.told(name)


def test_a_chain_goes_on_by_its_links_and_each_stop_was_saved(bed: Bed) -> None:
    assert count_starts(bed.run("chain").path) == 4
    assert bed.told("chain").count("the next link of the chain goes on") == 3


def test_cancel_leaves_a_whole_checkpoint_and_the_run_goes_on_with_fewer_nodes(bed: Bed) -> None:
    assert bed.seen["status"] == "stopped"
    assert int(bed.seen["newest"].removeprefix("step-")) == int(bed.seen["stopped at"]) < STEPS
    assert "stopped after step" in bed.seen["cancel"]
    job = Submission.load(bed.run("cancelled").path)
    assert job is not None and (job.nodes, job.seconds) == (1, 240)
    assert bed.run("cancelled").plan.layout.world_size == 1
    assert bed.losses("cancelled") == pytest.approx(bed.losses("plain $x"), rel=1e-4)


def test_before_a_model_is_loaded_the_node_that_lacks_it_is_named(bed: Bed) -> None:
    run, told = bed.run("blind"), bed.told("blind")
    assert run.exit_code == 2 and run.last_step == 0 and count_starts(run.path) == 1
    assert "preflight: node1: there is no folder" in told and "preflight: node0" not in told


def test_a_node_with_a_small_disk_is_left_out_and_the_weights_are_staged_on_others(
    bed: Bed,
) -> None:
    run = bed.run("staged")
    assert (run.path / "unfit_nodes").read_text() == "node1"
    assert "preflight: node1: " in bed.told("staged")
    beats = [json.loads(path.read_text()) for path in run.heartbeats.glob("*.json")]
    assert {beat["host"] for beat in beats} == {"node2", "node3"}
    assert "base-" in bed.lab("exec", "node2", "ls", str(OWN))


def test_a_grid_is_one_array_and_a_run_for_each_cell(bed: Bed) -> None:
    names = [f"train.seed={seed},strategy.rank=4" for seed in (0, 1)]
    cells = [bed.run(f"grid/{name}") for name in names]
    jobs = [Submission.load(cell.path) for cell in cells]
    (first, second) = [job.job_ids[0].split("_") for job in jobs if job is not None]
    assert first[0] == second[0] and (first[1], second[1]) == ("0", "1")
    assert [cell.config.train.seed for cell in cells] == [0, 1]
    argv = [sys.executable, "-m", "dtl", "status", "runs/grid"]
    table = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert [line.split()[1:3] for line in table.splitlines()[1:]] == [["finished", "8/8"]] * 2


@pytest.mark.parametrize(
    ("asked", "words", "fix"),
    [
        ({"partition": "nowhere"}, "invalid partition specified: nowhere", "sinfo -s"),
        ({"nodes": 9}, "node count specification invalid", "--nodes"),
        ({"gpus_per_node": 4}, "configuration is not available", "fewer nodes or GPUs"),
    ],
)
def test_slurm_refuses_in_its_own_words(
    bed: Bed, asked: dict[str, object], words: str, fix: str
) -> None:
    with pytest.raises(DtlError) as caught:
        _refused(**asked)
    assert words in str(caught.value).lower() and fix in str(caught.value)
    assert caught.value.exit_code == 2
    assert bed.run("refused").state == "absent"


def _refused(**asked: object) -> None:
    every = ["run.name=refused", "train.global_batch=18"]
    api.submit("config.yaml", every, cluster="site.yaml", print_line=lambda _: None, **asked)


def test_compilers_left_nothing_on_the_nodes(bed: Bed) -> None:
    for node in ("node0", "node1"):
        assert "dtl-" not in bed.lab("exec", node, "ls", "/dev/shm")
