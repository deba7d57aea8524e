"""Runs under a real Slurm: undisturbed, disturbed in every way, and in a grid."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from dtl import api
from dtl.core.errors import DtlError
from dtl.run.submission import Submission, count_starts
from tests.cluster.conftest import NODE_PRIVATE, STEPS, ClusterRuns


def test_run_on_two_nodes_has_the_losses_of_two_local_processes(cluster_runs: ClusterRuns) -> None:
    assert cluster_runs.losses("plain $x") == cluster_runs.losses("local")
    assert cluster_runs.weights("plain $x") == cluster_runs.weights("local")
    heartbeats = [
        json.loads(p.read_text()) for p in cluster_runs.run("plain $x").heartbeats.glob("*.json")
    ]
    assert {heartbeat["host"] for heartbeat in heartbeats} == {"node0", "node1"}
    assert cluster_runs.observed["submit"].splitlines()[-1].endswith(": runs/plain $x")


def test_followed_log_is_complete(cluster_runs: ClusterRuns) -> None:
    assert cluster_runs.observed["logs"] == cluster_runs.job_log("plain $x")
    assert f"step {STEPS:>5}/{STEPS}" in cluster_runs.observed["logs"]


@pytest.mark.parametrize("name", ["usr1", "term", "requeued", "lost", "chain"])
def test_disturbed_run_is_bitwise_equal(cluster_runs: ClusterRuns, name: str) -> None:
    assert count_starts(cluster_runs.run(name).path) > 1
    assert cluster_runs.losses(name) == cluster_runs.losses("plain $x")
    assert cluster_runs.weights(name) == cluster_runs.weights("plain $x")


def test_signaled_run_saves_and_is_requeued(cluster_runs: ClusterRuns) -> None:
    for name in ("usr1", "term"):
        assert "stopped after step" in cluster_runs.job_log(name)
        assert "requeued" in cluster_runs.job_log(name)


def test_chain_continues_by_its_jobs_and_each_stop_is_saved(cluster_runs: ClusterRuns) -> None:
    assert count_starts(cluster_runs.run("chain").path) == 4
    assert cluster_runs.job_log("chain").count("of the chain continues the run") == 3


def test_cancelled_run_has_an_intact_checkpoint_and_resumes_on_fewer_nodes(
    cluster_runs: ClusterRuns,
) -> None:
    assert cluster_runs.observed["status"] == "stopped"
    assert (
        int(cluster_runs.observed["newest"].removeprefix("step-"))
        == int(cluster_runs.observed["stopped at"])
        < STEPS
    )
    assert "stopped after step" in cluster_runs.observed["cancel"]
    job = Submission.load(cluster_runs.run("cancelled").path)
    assert job is not None and (job.nodes, job.time_limit_seconds) == (1, 240)
    assert cluster_runs.run("cancelled").plan.layout.world_size == 1
    assert cluster_runs.losses("cancelled") == pytest.approx(
        cluster_runs.losses("plain $x"), rel=1e-4
    )


def test_node_without_the_model_is_named_before_it_is_loaded(cluster_runs: ClusterRuns) -> None:
    run, reported = cluster_runs.run("blind"), cluster_runs.job_log("blind")
    assert run.exit_code == 2 and run.last_step == 0 and count_starts(run.path) == 1
    assert "preflight: node1: there is no folder" in reported and "preflight: node0" not in reported


def test_node_with_a_small_disk_is_excluded_and_weights_are_staged_on_others(
    cluster_runs: ClusterRuns,
) -> None:
    run = cluster_runs.run("staged")
    assert (run.path / "excluded_nodes").read_text() == "node1"
    assert "preflight: node1: " in cluster_runs.job_log("staged")
    heartbeats = [json.loads(path.read_text()) for path in run.heartbeats.glob("*.json")]
    assert {heartbeat["host"] for heartbeat in heartbeats} == {"node2", "node3"}
    assert "base-" in cluster_runs.lab("exec", "node2", "ls", str(NODE_PRIVATE))


def test_grid_is_one_array_with_a_run_for_each_combination(cluster_runs: ClusterRuns) -> None:
    names = [f"train.seed={seed},strategy.rank=4" for seed in (0, 1)]
    cells = [cluster_runs.run(f"grid/{name}") for name in names]
    jobs = [Submission.load(cell.path) for cell in cells]
    (first, second) = [job.job_ids[0].split("_") for job in jobs if job is not None]
    assert first[0] == second[0] and (first[1], second[1]) == ("0", "1")
    assert [cell.config.train.seed for cell in cells] == [0, 1]
    argv = [sys.executable, "-m", "dtl", "status", "runs/grid"]
    table = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert [line.split()[1:3] for line in table.splitlines()[1:]] == [["finished", "8/8"]] * 2


@pytest.mark.parametrize(
    ("options", "words", "fix"),
    [
        ({"partition": "nowhere"}, "invalid partition specified: nowhere", "sinfo -s"),
        ({"nodes": 9}, "node count specification invalid", "--nodes"),
        ({"gpus_per_node": 4}, "configuration is not available", "fewer nodes or GPUs"),
    ],
)
def test_rejected_job_is_reported_in_slurms_words(
    cluster_runs: ClusterRuns, options: dict[str, object], words: str, fix: str
) -> None:
    with pytest.raises(DtlError) as caught:
        _refused(**options)
    assert words in str(caught.value).lower() and fix in str(caught.value)
    assert caught.value.exit_code == 2
    assert cluster_runs.run("refused").state == "absent"


def _refused(**options: object) -> None:
    every = ["run.name=refused", "train.global_batch=18"]
    api.submit("config.yaml", every, cluster="site.yaml", print_line=lambda _: None, **options)


def test_compiler_caches_are_removed_from_the_nodes(cluster_runs: ClusterRuns) -> None:
    for node in ("node0", "node1"):
        assert "dtl-" not in cluster_runs.lab("exec", node, "ls", "/dev/shm")
