"""A draft of a site file, from two scripts in place of Slurm."""

from pathlib import Path

import pytest
import yaml

from dtl.backends.slurm import Options
from dtl.cli.app import main
from dtl.cluster.gpu_memory import find_gpu_memory
from dtl.cluster.sites import read_site
from dtl.core.errors import DtlError

SINFO = """gpu*|2-00:00:00|gpu:a100:4(S:0-1)
gpu*|2-00:00:00|gpu:a100:8(S:0-3)
cpu|infinite|(null)
"""
CONFIG = """Configuration data as of 2026-01-01T00:00:00
ClusterName             = birch
JobRequeue              = 1
RequeueExit             = (null)
"""
PARTITION = "PartitionName=gpu AllowAccounts=physics,maths AllowQos=ALL MaxTime=2-00:00:00"
NODES = """NodeName=g0 CPUEfctv=62 CPUTot=64 Gres=gpu:a100:4(S:0-1) RealMemory=512000 \
MemSpecLimit=12000 OS=Linux 6.1 Partitions=gpu,all
NodeName=g1 CPUTot=128 Gres=gpu:a100:8(S:0-3) RealMemory=1024000 Partitions=gpu
NodeName=c0 CPUTot=8 Gres=(null) RealMemory=8000 Partitions=cpu
"""
LINKS = """1: lo: <LOOPBACK,UP,LOWER_UP> mtu 65536
2: eth0: <BROADCAST,UP,LOWER_UP> mtu 1500
3: hsn0: <BROADCAST,UP,LOWER_UP> mtu 9000
4: hsn1: <BROADCAST,UP,LOWER_UP> mtu 9000
5: hsn2: <BROADCAST> mtu 9000
6: ib0: <BROADCAST,UP,LOWER_UP> mtu 2044
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of commands that is the complete PATH, with the output of each."""
    for name, text in {
        "sinfo.txt": SINFO,
        "config.txt": CONFIG,
        "partition.txt": PARTITION,
        "node.txt": NODES,
        "links.txt": LINKS,
    }.items():
        (tmp_path / name).write_text(text)
    for name, answer in {
        "sinfo": "sinfo.txt",
        # show config, or --oneliner show partition NAME
        "scontrol": '$([ "$1" = show ] && echo "$2" || echo "$3").txt',
        "ip": "links.txt",
    }.items():
        (tmp_path / name).write_text(f'#!/bin/sh\n/bin/cat "{tmp_path}/"{answer}\n')
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def draft(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[str, Options]:
    assert main(["doctor", "--cluster", *options]) == 0
    text = capsys.readouterr().out
    return text, Options.model_validate(yaml.safe_load(text))


def test_draft_has_what_every_node_of_the_default_partition_has(slurm, capsys):
    text, site = draft(capsys)
    assert site.partition == "gpu"
    assert (site.gpus_per_node, site.gpu_request) == (4, "gres")
    assert site.cpus_per_task == 62 // 4
    assert site.memory == "500000M"
    assert site.max_time == "2-00:00:00"
    assert site.requeue
    assert site.interface == "hsn0,hsn1"
    assert "birch" in site.description
    assert "nodes of the partition differ" in text
    assert "# or: cpu (0 GPUs per node, no time limit)" in text
    assert "# The partition accepts account: physics,maths" in text
    assert site.account is None


def test_draft_has_the_memory_of_the_smallest_gpu_of_the_partition(slurm, capsys):
    text, site = draft(capsys)
    assert site.gpu_memory == 40
    assert "this model also has 80, which Slurm does not say" in text
    features = " AvailableFeatures=hbm80g,rome Partitions"
    (slurm / "node.txt").write_text(NODES.replace(" Partitions", features))
    text, site = draft(capsys)
    assert site.gpu_memory == 80
    assert "also has" not in text


def test_draft_with_unknown_gpus_is_rejected_until_their_memory_is_filled_in(slurm, capsys):
    (slurm / "node.txt").write_text(NODES.replace(":a100", ""))
    assert main(["doctor", "--cluster", "--out", str(slurm / "mine.yaml")]) == 0
    capsys.readouterr()
    with pytest.raises(DtlError, match=r"gpu_memory: the memory of the GPUs is missing.*as 80"):
        read_site(str(slurm / "mine.yaml"))


@pytest.mark.parametrize(
    ("gres", "features", "gib"),
    [
        ("nvidia_h100_80gb_hbm3", [], 80),
        ("a100_80gb", [], 80),
        ("A100-SXM4-40GB", [], 40),
        ("v100", ["v100-32g", "cascadelake"], 32),
        ("v100", ["mem192g"], 16),
        ("gpu", ["gpu", "hbm80g"], 80),
        ("", ["gh200", "arm"], 96),
        ("mi250x", [], 64),
        ("rtx_4090", [], 24),
        ("h200", ["384g"], 141),
        ("xpu9", ["192g"], None),
    ],
)
def test_memory_of_a_gpu_is_read_from_the_names_of_slurm(gres, features, gib):
    found = find_gpu_memory([gres] if gres else [], features)
    assert (found.gib if found else None) == gib


def test_draft_of_a_partition_without_gpus_or_limit(slurm, capsys):
    (slurm / "partition.txt").write_text("PartitionName=cpu MaxTime=UNLIMITED")
    (slurm / "config.txt").write_text(CONFIG.replace("= 1", "= 0"))
    (slurm / "ip").unlink()
    text, site = draft(capsys, "--partition", "cpu")
    assert (site.gpus_per_node, site.gpu_request, site.cpus_per_task) == (0, "none", 8)
    assert site.max_time is None
    assert site.interface is None
    assert not site.requeue
    assert "nodes of the partition differ" not in text


def test_draft_is_written_once(slurm, capsys):
    file = slurm / "birch.yaml"
    assert main(["doctor", "--cluster", "--out", str(file)]) == 0
    assert Options.model_validate(yaml.safe_load(file.read_text())).partition == "gpu"
    capsys.readouterr()
    assert main(["doctor", "--cluster", "--out", str(file)]) == 2
    assert capsys.readouterr().err == f"--out: {file} exists already. Fix: use another file\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--cluster", "--partition", "gpus"],
            "--partition: Slurm lists no partition 'gpus'. Fix: did",
        ),
        (["--cluster", "--out", "/no/such/x.yaml"], "--out: /no/such/x.yaml cannot be written"),
        (["--out", "x.yaml"], "--out: this option needs --cluster. Fix: add --cluster"),
    ],
)
def test_faults_are_one_line(slurm, capsys, options, message):
    assert main(["doctor", *options]) == 2
    err = capsys.readouterr().err
    assert err.startswith(message) and err.count("\n") == 1


def test_draft_without_slurm_names_a_login_node(slurm, capsys):
    (slurm / "sinfo").unlink()
    assert main(["doctor", "--cluster"]) == 2
    assert capsys.readouterr().err == (
        "sinfo is not on PATH, so this machine has no Slurm. "
        "Fix: run it on a login node of the cluster\n"
    )


def test_slurm_that_does_not_answer_is_reported(slurm, capsys):
    (slurm / "sinfo").write_text("#!/bin/sh\necho 'first\nUnable to contact slurm' >&2\nexit 1\n")
    assert main(["doctor", "--cluster"]) == 2
    assert "Unable to contact slurm. Fix: run it by hand" in capsys.readouterr().err
