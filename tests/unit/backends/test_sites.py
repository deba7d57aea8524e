"""The site files that dtl ships: each is valid, names its sources, and gives a valid script.

`python -m tests.unit.backends.test_sites` writes the golden scripts again.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dtl.backends.base import Job
from dtl.backends.slurm import Plugin
from dtl.cluster.sites import list_sites, read_site
from dtl.core.package_files import find_package_folder

GOLDEN = Path(__file__).parent / "golden"
PYTHON = "/opt/dtl/bin/python"  # in place of the interpreter of this machine
GENERIC = {"generic", "apptainer", "pyxis"}  # for any cluster: there is no page to cite
WITHOUT_SOURCE = {"description", "documentation", "sources"}
SECRET = re.compile(
    r"(?i)\b(hf_[a-z0-9]{20,}|gh[pousr]_\w{20,}|sk-\w{20,}|AKIA[0-9A-Z]{16})\b"
    r"|-----BEGIN|(password|passwd|secret|token|api_?key)\s*[=:]\s*['\"]?\w"
)
SITES = list_sites()


def script(name: str) -> str:
    """Return the script of a site for one and the same job on two nodes."""
    site, run = read_site(name), Path("/data/runs/a run")
    job = Job(
        run,
        (PYTHON, "-m", "dtl.launch.worker", "run", str(run)),
        {"NOTE": "it's $5"},
        name="a run",
        working_dir=Path("/data"),
        nodes=2,
        processes_per_node=site.gpus_per_node or 1,
        time_limit_seconds=7200.0,
    )
    if site.account_needed:
        site = site.model_copy(update={"account": "project_1"})
    return Plugin(site).render(job)


def read_site_file(name: str) -> str:
    return (find_package_folder("slurm") / "clusters" / f"{name}.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SITES)
def test_site_file_is_valid(name):
    assert read_site(name).description


@pytest.mark.parametrize("name", SITES)
def test_site_with_gpus_has_their_memory(name):
    site = read_site(name)
    assert (site.gpu_memory is not None) == (site.gpus_per_node > 0)


@pytest.mark.parametrize("name", sorted(set(SITES) - GENERIC))
def test_every_field_names_its_source(name):
    """The sources are of exactly the fields that are set, and each is an address."""
    values = yaml.safe_load(read_site_file(name))
    assert set(values["sources"]) == set(values) - WITHOUT_SOURCE
    for address in [values["documentation"], *values["sources"].values()]:
        assert re.fullmatch(r"https://[\w.-]+/\S*", address)
    assert "account" not in values, "accounts are the user's"


@pytest.mark.parametrize("name", SITES)
def test_script_is_the_golden_one(name):
    golden = GOLDEN / f"{name}.sbatch"
    fix = "run: python -m tests.unit.backends.test_sites"
    assert golden.is_file(), fix
    assert script(name) == golden.read_text(encoding="utf-8"), fix


def test_golden_scripts_are_those_of_the_sites():
    assert sorted(file.stem for file in GOLDEN.glob("*.sbatch")) == list(SITES)


@pytest.mark.parametrize("name", SITES)
def test_script_is_valid_shell(name):
    done = subprocess.run(["bash", "-n"], input=script(name), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_shellcheck_finds_no_fault(tmp_path):
    """All at once: it takes longer to start than to read them."""
    scripts = str(Path(sys.executable).parent)
    checker = shutil.which("shellcheck", path=os.pathsep.join([scripts, os.environ["PATH"]]))
    if checker is None:
        pytest.skip("ShellCheck is not installed: pip install 'dtl[test]'")
    files = []
    for name in SITES:
        files.append(tmp_path / f"{name}.sbatch")
        files[-1].write_text(script(name), encoding="utf-8")
    done = subprocess.run(
        # 1090, 1091: scripts of `setup` exist on the cluster only; 2016: $ in single quotes.
        [checker, "--shell=bash", "--exclude=SC1090,SC1091,SC2016", "--format=gcc", *files],
        capture_output=True,
        text=True,
    )
    assert done.stdout == ""


@pytest.mark.parametrize("name", SITES)
def test_sbatch_reads_all_options(name):
    """Options are above the first command, hold no variable, and none is given twice."""
    lines = script(name).splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    first = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    assert not [line for line in lines[first:] if line.startswith("#SBATCH")]
    assert not [option for option in options if "$" in option]
    names = [option.partition("=")[0] for option in options]
    assert len(set(names)) == len(names)
    assert "--nodes=2" in options


@pytest.mark.parametrize("name", SITES)
def test_every_variable_is_set(name, tmp_path):
    """It runs to its end under `set -u`, over commands that do nothing."""
    commands = tmp_path / "bin"
    commands.mkdir()
    done = tmp_path / "runs" / "a run" / "result.json"
    (commands / "srun").write_text(f"#!/bin/sh\nprintf '{{\"sha256\": \"%064d\"}}' 0 >'{done}'\n")
    (commands / "getent").write_text("#!/bin/sh\necho 10.0.0.1 STREAM node0\n")
    for command in ("module", "scancel", "apptainer", "enroot", "ping"):
        (commands / command).write_text("#!/bin/sh\nexit 0\n")
    (commands / "scontrol").write_text("#!/bin/sh\necho node0\necho node1\n")
    for command in commands.iterdir():
        command.chmod(0o755)
    python = commands / "python"
    python.write_text("#!/bin/sh\nexit 0\n")
    python.chmod(0o755)
    text = script(name).replace(PYTHON, str(python)).replace("/data", str(tmp_path))
    (tmp_path / "runs" / "a run" / "logs").mkdir(parents=True)
    ended = subprocess.run(
        ["bash", "-u"],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={
            "PATH": f"{commands}:/usr/bin:/bin",
            "HOME": str(tmp_path),
            "USER": "you",
            "TMPDIR": str(tmp_path),
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NODELIST": "node[0-1]",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_NNODES": "2",
            "SLURM_CPUS_PER_TASK": "2",
            "SLURM_SUBMIT_DIR": str(tmp_path),
        },
    )
    assert "unbound variable" not in ended.stderr
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("name", SITES)
def test_site_and_script_hold_no_secret(name):
    text = read_site_file(name) + script(name)
    assert not SECRET.search(text)


def test_secret_pattern_finds_secrets():
    for secret in ("HF_TOKEN=abc", "password: x", "hf_" + "a" * 34, "-----BEGIN KEY"):
        assert SECRET.search(secret)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for old in GOLDEN.glob("*.sbatch"):
        old.unlink()
    for name in SITES:
        (GOLDEN / f"{name}.sbatch").write_text(script(name), encoding="utf-8")
