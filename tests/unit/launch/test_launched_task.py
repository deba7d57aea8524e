"""Tasks of srun, mpirun and jsrun become the ranks of one run, or are refused."""

import pytest

from dtl import api
from dtl.core.errors import DtlError
from dtl.core.process_env import JOB_PORTS
from dtl.launch import launched_task, worker
from dtl.launch.external_launcher import read_external_launch
from dtl.launch.launched_task import (
    expand_tasks_per_node,
    first_host,
    refuse_many_tasks,
    set_rank_from_launcher,
)

BATCH_SHELL = {"SLURM_JOB_ID": "70", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}


def srun(task, *, nodes=2, tasks_per_node="2(x2)", **more):
    return {
        **BATCH_SHELL,
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": str(sum(expand_tasks_per_node(tasks_per_node))),
        "SLURM_STEP_TASKS_PER_NODE": tasks_per_node,
        "SLURM_STEP_NODELIST": "n[07-08]" if nodes == 2 else "n07",
        "SLURM_PROCID": str(task),
        "SLURM_LOCALID": str(task % 2),
        **more,
    }


def openmpi(rank, size=4, local=4, **more):
    prefix = "OMPI_COMM_WORLD"
    return {
        f"{prefix}_SIZE": str(size),
        f"{prefix}_RANK": str(rank),
        f"{prefix}_LOCAL_RANK": str(rank % local),
        f"{prefix}_LOCAL_SIZE": str(local),
        **more,
    }


HYDRA = {"PMI_SIZE": "2", "PMI_RANK": "1", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
PALS = {"PMI_SIZE": "2", "PMI_RANK": "1", "PMI_LOCAL_RANK": "1", "PMI_LOCAL_SIZE": "2"}
MVAPICH = {f"MV2_COMM_WORLD_{key}": value for key, value in zip(
    ("SIZE", "RANK", "LOCAL_RANK", "LOCAL_SIZE"), "2112", strict=True
)}  # fmt: skip
JSRUN = {f"JSM_NAMESPACE_{key}": value for key, value in zip(
    ("SIZE", "RANK", "LOCAL_RANK", "LOCAL_SIZE"), "4311", strict=True
)} | {"LSB_MCPU_HOSTS": "batch1 1 h1 42 h2 42", "LSB_JOBID": "9"}  # fmt: skip


@pytest.fixture(autouse=True)
def names(monkeypatch):
    """Hosts have these addresses; Slurm knows the address of one that has no name."""
    addresses = {"n07": "10.0.0.7", "h1": "10.0.0.1", "10.9.9.9": "10.9.9.9"}
    monkeypatch.setattr(launched_task, "_resolve", lambda host: addresses.get(host, ""))
    monkeypatch.setattr(
        launched_task, "_query_node_address", lambda host: "10.9.9.9" if host == "unnamed3" else ""
    )


@pytest.mark.parametrize(
    ("environment", "rank", "address", "launcher"),
    [
        (srun(3), "3 4 1 2", "10.0.0.7", "srun"),
        (srun(1, nodes=1, tasks_per_node="2"), "1 2 1 2", "127.0.0.1", "srun"),
        (srun(3, SLURM_STEP_NODELIST="unnamed[3-4]"), "3 4 1 2", "10.9.9.9", "srun"),
        (srun(3, CUDA_VISIBLE_DEVICES="1"), "3 4 0 2", "10.0.0.7", "srun"),
        (srun(3, PMI_SIZE="4", PMI_RANK="3"), "3 4 1 2", "10.0.0.7", "srun"),
        (openmpi(2), "2 4 2 4", "127.0.0.1", "mpirun"),
        (openmpi(2, local=2, SLURM_JOB_NODELIST="n[07-08]"), "2 4 0 2", "10.0.0.7", "mpirun"),
        # srun has started the daemons of mpirun, one on each node.
        (srun(1, tasks_per_node="1(x2)") | openmpi(3), "3 4 3 4", "127.0.0.1", "mpirun"),
        (HYDRA, "1 2 1 2", "127.0.0.1", "mpiexec (Hydra)"),
        (PALS, "1 2 1 2", "127.0.0.1", "mpiexec (PALS)"),
        (MVAPICH, "1 2 1 2", "127.0.0.1", "mpirun (MVAPICH)"),
        (JSRUN, "3 4 1 1", "10.0.0.1", "jsrun"),
        (openmpi(3, local=2, MASTER_ADDR="m", MASTER_PORT="5"), "3 4 1 2", "m", "mpirun"),
    ],
)
def test_tasks_are_the_ranks_of_one_run(environment, rank, address, launcher):
    before = dict(environment)
    set_rank_from_launcher(environment)
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    assert " ".join(environment[name] for name in names) == rank
    assert environment["MASTER_ADDR"] == address
    assert read_external_launch(environment).launcher == launcher
    with pytest.raises(DtlError, match=r"start one task; or have the tasks be the ranks"):
        refuse_many_tasks(before)


def test_all_tasks_of_a_step_choose_one_port_and_another_step_another():
    environments = [srun(0), srun(3), srun(0, SLURM_STEP_ID="1"), srun(0, MASTER_PORT="77")]
    for each in environments:
        set_rank_from_launcher(each)
    ports = [int(each["MASTER_PORT"]) for each in environments]
    assert ports[0] == ports[1] != ports[2] and ports[0] in JOB_PORTS and ports[3] == 77


@pytest.mark.parametrize(
    "environment",
    [
        {},
        BATCH_SHELL,
        srun(0, SLURM_PTY_PORT="34000"),
        srun(0, nodes=1, tasks_per_node="1"),
        openmpi(0, size=1, local=1),
        srun(1, RANK="1", WORLD_SIZE="2"),  # by a torchrun in each task
        srun(1, DTL_SLURM_TASKS_PER_NODE="2"),  # by the job script of dtl submit
    ],
)
def test_a_single_task_and_a_rank_of_another_launcher_are_left_alone(environment):
    before = dict(environment)
    set_rank_from_launcher(environment)
    assert environment == before
    if "RANK" not in environment:
        refuse_many_tasks(environment)


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        (srun(2, tasks_per_node="2,1"), r"\[2, 1\] on the nodes \(expected the same on each\)"),
        (srun(2, SLURM_STEP_NODELIST="dark[1-2]"), "dark1, the machine of rank 0, has no address"),
        (openmpi(3, local=2), "no variable names the machine of rank 0"),
        ({"PMI_SIZE": "2", "PMI_RANK": "1"}, "MPI_LOCALRANKID, MPI_LOCALNRANKS are not set"),
    ],
)
def test_tasks_that_cannot_meet_are_refused(environment, problem):
    with pytest.raises(DtlError, match=problem):
        set_rank_from_launcher(environment)


def test_loopback_address_is_used_on_the_machine_of_rank_0_only(monkeypatch):
    monkeypatch.setattr(launched_task, "_resolve", lambda host: "127.0.1.1")
    first = srun(1)
    set_rank_from_launcher(first)
    assert first["MASTER_ADDR"] == "127.0.1.1"
    with pytest.raises(DtlError, match="has no address that other machines can connect to"):
        set_rank_from_launcher(srun(2))


@pytest.mark.parametrize(
    ("hosts", "first"),
    [("n1", "n1"), ("n[03-05,7],m", "n03"), ("r[0-1]n[2,4]x", "r0n2x"), ("a.b,c", "a.b"), ("", "")],
)
def test_first_host_of_a_list(hosts, first):
    assert first_host(hosts) == first


def test_tasks_per_node():
    assert expand_tasks_per_node("2(x3),1") == [2, 2, 2, 1] and expand_tasks_per_node("") == []


def test_commands_that_start_processes_refuse_to_be_one_of_several_tasks(monkeypatch):
    for name, value in srun(1).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DtlError, match="srun: 4 tasks were started"):
        api.train(None)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DtlError, match="torchrun: 2 tasks were started"):
        api.train(None)


def test_worker_of_a_config_refuses_tasks_that_cannot_meet(monkeypatch):
    for name, value in openmpi(3, local=2).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DtlError, match="no variable names the machine of rank 0"):
        worker._set_environment(["train", "config.yaml"])
    assert worker._set_environment(["run", "folder"]) == 0, "its launcher has set the rank"
