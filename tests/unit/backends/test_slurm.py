"""Job scripts for Slurm and the handling of its answers, with scripts in place of its commands."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dtl import api
from dtl.backends._slurm.job_script import format_time
from dtl.backends.base import CANCELLED, Job
from dtl.backends.slurm import Options, Plugin
from dtl.cli import app as cli
from dtl.cluster.sites import read_site
from dtl.core.errors import DtlError
from dtl.core.lock import Lease
from dtl.core.process_env import JOB_PORTS, set_rank_from_slurm
from dtl.launch.rank_environment import set_compiler_caches
from dtl.run.submission import Submission, count_starts
from tests import tiny

CONFIG = """
model: {path: base, dtype: fp32}
task: {name: causal_lm, max_length: 64}
data: {train: train.jsonl}
strategy: lora
optim: {learning_rate: 0.003}
train: {steps: 4, global_batch: 8}
"""
# Writes a result as the ranks do, with its hash; `$1` of the shell is left as it is.
FINISHES = """printf '{"sha256": "%064d"}' 0 > "${@: -1}/result.json";"""
# Records its arguments, and runs the file with its name, if there is one.
FAKE = """
echo "$(basename "$0") $*" >> "$FAKE/calls"
answer="$FAKE/$(basename "$0")"
[ -e "$answer" ] && . "$answer"
exit 0
"""


def site(**fields):
    return Options.model_validate({"description": "a site", "gpu_memory": 40, **fields})


def job(run=Path("/data/a run"), **fields):
    argv = ("/usr/bin/python3", "-m", "dtl.launch.worker", "run", str(run))
    given = {
        "name": "dtl-x",
        "working_dir": Path("/data"),
        "nodes": 2,
        "processes_per_node": 4,
        **fields,
    }
    return Job(run, argv, {"PYTHONUNBUFFERED": "1"}, **given)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Return a folder in which a file sbatch, squeue ... holds what that command does."""
    folder = tmp_path / "fake"
    (folder / "bin").mkdir(parents=True)
    for name in ("sbatch", "squeue", "scancel", "scontrol", "srun"):
        command = folder / "bin" / name
        command.write_text("#!/bin/bash\n" + FAKE)
        command.chmod(0o755)
    (folder / "sbatch").write_text('case "$*" in *--test-only*) ;; *) echo 41;; esac')
    monkeypatch.setenv("FAKE", str(folder))
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    tiny.decoder(tmp_path / "base")
    tiny.write_texts(tmp_path / "train.jsonl", 20)
    (tmp_path / "config.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def calls(fake):
    return (fake / "calls").read_text().splitlines() if (fake / "calls").exists() else []


def submit(**options):
    options = {"cluster": "generic", "print_line": lambda _: None, **options}
    return api.submit("config.yaml", options.pop("overrides", ()), **options)


@pytest.mark.parametrize("launcher", ["srun", "torchrun"])
@pytest.mark.parametrize("kind", [None, "apptainer", "pyxis", "enroot"])
def test_script_of_every_kind_of_site_is_valid_shell(launcher, kind):
    container = {"kind": kind, "image": "an image", "mounts": ["/d"]} if kind else None
    made = Plugin(
        site(
            launcher=launcher,
            container=container,
            gpus_per_node=4,
            modules=["a/1.0", "it's"],
            setup=["source 'a b'"],
            environment={"DATA": "$HOME/x"},
            interface="hsn0",
            node_local="$TMPDIR",
        )
    ).render(job(array_runs=(Path("/data/a run/x"), Path("/data/a run/y'z"))))
    subprocess.run(["bash", "-n"], input=made, text=True, check=True)


def test_special_characters_arrive_in_the_run_unchanged(tmp_path, fake):
    """A run and values with all that shells take apart, through the script itself."""
    run = tmp_path / 'it\'s a "run" `x` $(touch hurt) $HOME'
    run.mkdir()
    (fake / "srun").write_text('shift 4; printf "%s|" "$@" "$FROM_JOB" "$FROM_SITE";' + FINISHES)
    environment = {"FROM_SITE": 'a `b` $(touch hurt) \\ $PLACE ${PLACE} $ "q"'}
    made = Plugin(site(environment=environment)).render(
        Job(run, ("py thon", "run", str(run)), {"FROM_JOB": "it's $x"}, working_dir=tmp_path)
    )
    output = subprocess.run(
        ["bash", "-c", made],
        cwd=tmp_path,
        env={**os.environ, "SLURM_JOB_ID": "7", "PLACE": "here"},
        capture_output=True,
        text=True,
        check=True,
    )
    expanded = 'a `b` $(touch hurt) \\ here here $ "q"'
    assert output.stdout == f"py thon|run|{run}|it's $x|{expanded}|"
    assert output.stderr == "" and not (tmp_path / "hurt").exists()


def run_script(
    tmp_path,
    fake,
    *,
    srun="",
    squeue="echo RUNNING",
    folder=None,
    nodes=1,
    chain_length=1,
    **fields,
):
    """Run the job script here; return its exit code, its output, and the commands it called."""
    run = folder or tmp_path / "run"
    run.mkdir(exist_ok=True)
    (fake / "srun").write_text(srun)
    (fake / "squeue").write_text(squeue)
    made = Plugin(site(**fields)).render(
        Job(
            run,
            ("python", "run", str(run)),
            {},
            working_dir=tmp_path,
            nodes=nodes,
            chain_length=chain_length,
        )
    )
    done = subprocess.run(
        ["bash", "-c", made],
        env={**os.environ, "SLURM_JOB_ID": "20007", "SLURM_JOB_NODELIST": "n[1-2]"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        start_new_session=True,
    )
    return done.returncode, done.stdout + done.stderr, calls(fake)


def ends_in(run, code):
    return f'echo \'"exit_code": {code}\' > "{run}/ended.json"; exit {code}'


def ends(code):
    return f'echo \'"exit_code": {code}\' > "${{@: -1}}/ended.json"; exit 1'


@pytest.mark.parametrize(
    ("srun", "code", "requeues"),
    [
        (FINISHES + " exit 1", 0, False),
        ('touch "${@: -1}/result.json"; exit 9', 1, True),
        (ends(75), 75, True),
        (ends(2), 2, False),
        (ends(1), 1, False),
        ("kill -KILL $$", 1, True),
    ],
)
def test_exit_code_decides_whether_the_job_is_requeued(tmp_path, fake, srun, code, requeues):
    found, _, called = run_script(tmp_path, fake, srun=srun)
    assert found == code
    assert ("scontrol requeue 20007" in called) is requeues


# What Slurm does on a requeue: all processes of the job get it, now and later.
TERM_TO_ALL = (
    "(trap '' TERM; for _ in {1..15}; do kill -TERM -- -$PPID; sleep 0.05; done) >/dev/null 2>&1 &"
)


def test_unfit_node_is_excluded_and_no_model_is_loaded(tmp_path, fake):
    getent = fake / "bin" / "getent"
    getent.write_text("#!/bin/bash\necho 10.0.0.1\n")
    getent.chmod(0o755)
    run = tmp_path / "run"
    run.mkdir()
    (run / "excluded_nodes").write_text("n2")
    (fake / "scontrol").write_text(
        'case "$*" in "show job"*) sleep 0.2; echo " ReqNodeList=(null) ExcNodeList=n[7-9]";;'
        " show*) echo n1;; update*) sleep 0.2; echo updated;;"
        f" requeue*) {TERM_TO_ALL};; esac"
    )
    found, output, called = run_script(tmp_path, fake, srun=ends_in(run, 3), nodes=2)
    assert found == 3 and "excluded from now on: n2" in output
    assert "updated" in output, "what a requeue sends to the job has ended it"
    assert "scontrol requeue 20007" in called
    assert "scontrol update JobId=20007 ExcNodeList=n[7-9],n2" in called
    started = [call for call in called if call.startswith("srun")]
    assert len(started) == 1 and "-m dtl.cluster.preflight" in started[0]
    found, _, called = run_script(tmp_path, fake, srun=ends_in(run, 2), nodes=2)
    assert found == 2 and called.count("scontrol requeue 20007") == 1, "the user has to fix it"


def test_crashes_are_counted_per_submission(tmp_path, fake):
    run = tmp_path / "run"
    for expected in (1, 2, 2):
        run_script(tmp_path, fake, srun="exit 9", crashes=2)
        assert calls(fake).count("scontrol requeue 20007") == expected
    with (run / "launches").open("a") as file:
        file.write("submitted 0\n")
    run_script(tmp_path, fake, srun="exit 9", crashes=2)
    assert calls(fake).count("scontrol requeue 20007") == 3
    assert count_starts(run) == 1


def test_restarts_are_limited(tmp_path, fake):
    for _ in range(3):
        _, output, _ = run_script(tmp_path, fake, srun=ends(75), restarts=2)
    assert calls(fake).count("scontrol requeue 20007") == 2
    assert "the limit of this site" in output


def test_chain_continues_and_a_finished_run_cancels_its_later_jobs(tmp_path, fake):
    run = tmp_path / "run"
    run.mkdir()
    (run / "chain_jobs").write_text("20006 20007 20008 20009\n")
    squeue = "printf '20006\\n20009\\n'"
    code, output, called = run_script(tmp_path, fake, srun=ends(75), squeue=squeue, chain_length=3)
    assert code == 75 and "job 20009 of the chain continues the run" in output, output
    assert "scontrol requeue 20007" not in called
    run_script(tmp_path, fake, srun=FINISHES, chain_length=3)
    ended = [call for call in calls(fake) if call.startswith("scancel")]
    assert ended == [f"scancel --state=PENDING {number}" for number in (20008, 20009)]
    before = len(calls(fake))
    assert run_script(tmp_path, fake, chain_length=3)[0] == 0
    assert len(calls(fake)) == before, "a link after the end starts nothing"


@pytest.mark.parametrize(
    ("squeue", "words"),
    [
        ("echo 20006", "no later job of the chain is in the queue; to continue, run `dtl resume"),
        ("exit 1", "squeue does not answer"),
    ],
)
def test_link_without_a_successor_says_so(tmp_path, fake, squeue, words):
    run = tmp_path / "run"
    run.mkdir()
    (run / "chain_jobs").write_text("20007 20008\n")
    code, output, _ = run_script(tmp_path, fake, srun=ends(75), squeue=squeue, chain_length=3)
    assert code == 75 and words in output, output


def test_link_of_a_chain_waits_for_all_before_it(tmp_path, fake):
    (fake / "sbatch").write_text(f"echo >> {fake}/n; wc -l < {fake}/n")
    ids = Plugin(site()).submit(job(tmp_path, chain_length=3))
    assert ids == ("1", "2", "3")
    dependencies = [call.split()[2] for call in calls(fake) if "--dependency" in call]
    assert dependencies == ["--dependency=afterany:1", "--dependency=afterany:1:2"]


def steps_then(code):
    """A start that makes a step, as the ranks write it."""
    return f'echo "step 20007 $(date +%s)" >> "${{@: -1}}/launches"; {ends(code)}'


def test_three_starts_without_a_step_end_the_job_with_the_time_that_would_do(tmp_path, fake):
    def requeues(srun):
        _, output, called = run_script(tmp_path, fake, srun=srun, lead_seconds=0)
        return called.count("scontrol requeue 20007"), output

    assert requeues(ends(75))[0] == 1
    assert requeues(ends(75))[0] == 2
    assert requeues(steps_then(75))[0] == 3, "a step counts as progress"
    assert requeues(ends(75))[0] == 4
    file = tmp_path / "run" / "launches"
    file.write_text(file.read_text() + "begin 9 1000 n\nend 9 1570 75\n")  # 570 s without a step
    count, output = requeues(ends(75))
    assert count == 4
    assert "stopped 3 times in a row without a new step" in output
    assert f"dtl resume {tmp_path / 'run'} --time 20min" in output, "twice the longest start"


def test_jobs_whose_starts_have_no_steps_are_not_counted():
    plain, counted = (
        Plugin(site()).render(job(writes_steps=writes_steps)) for writes_steps in (False, True)
    )
    assert "without a new step" in counted and "without a new step" not in plain


def test_script_that_is_submitted_twice_runs_once(tmp_path, fake):
    run = tmp_path / "run"
    run.mkdir()
    (run / "ended.json").write_text("of the other job")
    (run / "launches").write_text("begin 1 0 n\nend 1 5 75\nbegin 20007 6 n\nbegin 3 7 n\n")
    code, output, called = run_script(tmp_path, fake, srun=ends(75))
    assert code == 1 and "job 3 runs" in output and "already" in output
    assert not [call for call in called if call.startswith("srun")]
    assert (run / "ended.json").read_text() == "of the other job"
    assert run_script(tmp_path, fake, srun=ends(75), squeue="exit 1")[0] == 75


def test_cancelled_run_is_not_requeued(tmp_path, fake):
    srun = f'touch "${{@: -1}}/{CANCELLED}"; {ends(75)}'
    code, output, called = run_script(tmp_path, fake, srun=srun)
    assert code == 75 and "dtl resume" in output
    assert "scontrol requeue 20007" not in called


def test_site_without_requeue_says_how_to_continue(tmp_path, fake):
    _, output, called = run_script(tmp_path, fake, srun=ends(75), requeue=False)
    assert "dtl resume" in output and "scontrol requeue 20007" not in called


@pytest.mark.parametrize("hosts", ["", "127.0.1.1 n1"])
def test_first_node_without_an_address_is_reported_and_never_is_localhost(tmp_path, fake, hosts):
    (fake / "scontrol").write_text(
        'case "$*" in "show hostnames"*) echo n1; echo n2;; *) echo "NodeAddr=n1";; esac'
    )
    getent = fake / "bin" / "getent"
    getent.write_text(f"#!/bin/bash\necho '{hosts}'\n")
    getent.chmod(0o755)
    code, output, called = run_script(tmp_path, fake, srun="echo started", nodes=2)
    assert code == 1 and "the first node n1 has no address" in output
    assert not [call for call in called if call.startswith("srun")]


def test_signal_is_forwarded_to_the_steps_and_not_to_srun(tmp_path, fake):
    """The batch shell gets it; the steps are asked; srun is waited for."""
    batch = "batch=$(ps -o ppid= -p $PPID)"
    srun = f"{batch}; kill -USR1 $batch; sleep 0.5; kill -TERM $batch; sleep 0.5; {ends(75)}"
    code, output, called = run_script(tmp_path, fake, srun=srun)
    assert code == 75, output
    assert called.count("scancel --signal=USR1 20007") == 2
    assert called[-1] == "scontrol requeue 20007"


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        ("sbatch: error: invalid partition specified: nowhere", "sinfo -s"),
        ("sbatch: error: Invalid account or account/partition combination", "--account"),
        ("allocation failure: Requested node configuration is not available", "fewer nodes"),
        ("sbatch: error: Unable to contact slurm controller (connect failure)", "scontrol ping"),
    ],
)
def test_rejected_job_is_reported_in_slurms_words_with_a_fix(workdir, fake, words, fix):
    (fake / "sbatch").write_text(f'echo "{words}" >&2; exit 1')
    with pytest.raises(DtlError) as caught:
        submit()
    assert words.rpartition("error: ")[2] in str(caught.value) and fix in str(caught.value)
    assert caught.value.exit_code == 2
    assert not (workdir / "runs").exists(), "what is refused leaves nothing"


NODES = {"n1|idle|8": None, "n1|idle|8 n2|drained*|8": "of 2 nodes 1 drained", "n2|down|1": None}


@pytest.mark.parametrize("nodes", NODES)
def test_job_that_would_wait_is_submitted_with_a_warning(workdir, fake, nodes):
    """Where no node would do even if all were usable, it is refused."""
    words = "allocation failure: Requested node configuration is not available"
    (fake / "sbatch").write_text(
        f'case "$*" in *--test-only*) echo "{words}" >&2; exit 1;; *) echo 41;; esac'
    )
    sinfo = fake / "bin" / "sinfo"
    sinfo.write_text(f"#!/bin/bash\nprintf '%s\\n' {' '.join(map(repr, nodes.split()))}\n")
    sinfo.chmod(0o755)
    (workdir / "mine.yaml").write_text("description: mine\ncpus_per_task: 2\n")
    lines = []
    if NODES[nodes] is None:
        with pytest.raises(DtlError, match="Requested node configuration is not available"):
            submit(cluster="mine.yaml", print_line=lines.append)
        return
    submit(cluster="mine.yaml", print_line=lines.append)
    (warning,) = [line for line in lines if line.startswith("warning: ")]
    assert words in warning and NODES[nodes] in warning and "sinfo --list-reasons" in warning


def test_cancel_marks_every_run_before_it_fails(workdir, fake):
    folders = submit(grid=("train.seed=0,1",))
    (fake / "squeue").write_text('echo "Unable to contact slurm controller" >&2; exit 1')
    with pytest.raises(DtlError, match=r"marked as cancelled.*then run `dtl cancel"):
        api.cancel(Path("runs/config"), print_line=print)
    assert all((folder.path / CANCELLED).exists() for folder in folders)


def test_damaged_result_does_not_stop_a_submission(workdir, fake):
    (folder,) = submit()
    folder.finish({"steps": 4})
    file = folder.path / "result.json"
    file.write_text(file.read_text().replace("4", "5"))
    (fake / "squeue").write_text("")
    api.resume(folder.path, print_line=print)
    assert not file.exists() and (folder.path / "damaged-result.json").exists()


def test_missing_account_is_reported(workdir, fake):
    (workdir / "mine.yaml").write_text("description: mine\naccount_needed: true\n")
    with pytest.raises(DtlError, match="--account: this site needs an account"):
        submit(cluster="mine.yaml")
    submit(cluster="mine.yaml", account="p1")
    assert "--account=p1" in (workdir / "runs/config/job.sbatch").read_text()


def test_missing_slurm_is_reported(workdir, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr("shutil.which", lambda _: None)
    run = subprocess.run

    def absent(argv, **more):
        if argv[0] == "sbatch":
            raise FileNotFoundError
        return run(argv, **more)

    monkeypatch.setattr(subprocess, "run", absent)
    with pytest.raises(
        DtlError, match=r"sbatch: there is no such command here\. Fix: use a login node"
    ):
        submit()


def test_all_faults_of_a_site_file_are_reported_with_line_and_fix(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("description: mine\npartiton: x\ngpus_per_node: four\nmax_time: soon\n")
    with pytest.raises(DtlError) as caught:
        read_site(str(file))
    output = str(caught.value)
    assert f"{file}:2: partiton: no such key. Fix: did you mean 'partition'?" in output
    assert f"{file}:3: gpus_per_node: 'four' is not an integer" in output
    with pytest.raises(DtlError, match="did you mean 'generic'"):
        read_site("genric")


def test_submitted_run_has_a_status_resumes_and_is_not_submitted_twice(workdir, fake):
    (folder,) = submit(chain=3, time="4h")
    assert folder.plan.layout.world_size == 1
    assert "--dependency=afterany:41" in "\n".join(calls(fake))
    (fake / "squeue").write_text('echo "41|PENDING|Priority"')
    (state,) = api.status("runs")
    assert (state.state, state.reason, state.job) == ("queued", "Priority", "41")
    with pytest.raises(
        DtlError, match=r"is queued as job 41\. Fix: wait for it, or cancel it: dtl cancel"
    ):
        submit()
    with pytest.raises(DtlError, match="is queued as job 41"):
        api.resume(folder.path)
    (fake / "scancel").write_text(f"echo > {fake}/squeue")
    output = []
    api.cancel(folder.path, print_line=output.append)
    assert "scancel 41" in calls(fake) and "stopped after step 0" in output[0]
    api.resume(folder.path, ["layout.micro_batch=2"], nodes=2, print_line=output.append)
    assert not (folder.path / CANCELLED).exists()
    assert folder.plan.layout.world_size == 2 and folder.config.layout.micro_batch == 2
    again = Submission.load(folder.path)
    assert again is not None and (again.nodes, again.time_limit_seconds, again.chain_length) == (
        2,
        4 * 3600,
        3,
    )


def test_dry_run_prints_the_script_alone_and_changes_nothing(workdir, fake):
    argv = ["submit", "config.yaml", "--cluster", "generic", "--nodes", "2", "--dry-run"]
    ran = CliRunner().invoke(cli.app, argv)
    assert ran.exit_code == 0, ran.output
    assert ran.stdout.startswith("#!/bin/bash\n") and ran.stdout.endswith("esac\n")
    assert not (workdir / "runs").exists() and not calls(fake)


def test_grid_is_one_array_with_a_folder_for_each_run(workdir, fake):
    folders = submit(grid=("train.seed=0,1,2", "strategy.rank=4"))
    assert [folder.path.name for folder in folders] == [
        f"train.seed={seed},strategy.rank=4" for seed in range(3)
    ]
    script = (folders[0].path / "job.sbatch").read_text()
    assert "#SBATCH --array=0-2\n" in script
    assert [folder.config.train.seed for folder in folders] == [0, 1, 2]
    jobs = [Submission.load(folder.path) for folder in folders]
    assert [job.job_ids for job in jobs if job] == [("41_0",), ("41_1",), ("41_2",)]
    with pytest.raises(DtlError, match="write key=VALUE,VALUE"):
        submit(grid=("train.seed",))


def test_twenty_jobs_at_once_share_no_port_log_or_cache(tmp_path):
    """No port, no log, no cache of one is another's."""
    ports = {JOB_PORTS.start + number % len(JOB_PORTS) for number in range(49_990, 50_010)}
    assert len(ports) == 20 and max(ports) < 32_768
    rendered = [Plugin(site()).render(job(tmp_path / f"run{n}")) for n in range(20)]
    logs = {line for text in rendered for line in text.splitlines() if "--output=" in line}
    assert len(logs) == 20
    caches = set()
    for number in range(20):
        environment = {"DTL_NODE_LOCAL": str(tmp_path), "SLURM_JOB_ID": str(number)}
        set_compiler_caches(environment | {"LOCAL_RANK": "1"})
        environment["LOCAL_RANK"] = "1"
        set_compiler_caches(environment)
        caches.add(environment["TRITON_CACHE_DIR"])
        assert Path(environment["TORCH_EXTENSIONS_DIR"]).is_relative_to(tmp_path)
    assert len(caches) == 20


def test_task_of_srun_is_a_rank_where_the_job_says_so():
    task = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8"}
    plain = dict(task)
    set_rank_from_slurm(plain)
    assert plain == task, "a task of an interactive job is none"
    output = task | {"DTL_SLURM_TASKS_PER_NODE": "4"}
    set_rank_from_slurm(output)
    assert [output[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")] == [
        *("5", "8", "1", "4")
    ]
    alone = task | {"DTL_SLURM_TASKS_PER_NODE": "4", "CUDA_VISIBLE_DEVICES": "2"}
    set_rank_from_slurm(alone)
    assert alone["LOCAL_RANK"] == "0", "the only GPU that it sees has index 0"


def test_lead_is_at_least_that_of_the_site_and_at_most_half_the_time():
    def lead(**fields):
        text = Plugin(site(lead_seconds=100)).render(job(**fields))
        return text.partition("USR1@")[2].partition("\n")[0]

    assert lead() == "100"
    assert lead(lead_seconds=700.4, time_limit_seconds=7200.0) == "700"
    assert lead(lead_seconds=700.0, time_limit_seconds=600.0) == "300"


@pytest.mark.parametrize(
    ("fields", "flag"),
    [
        ({"gpu_request": "gpus-per-node", "gres": "gpu:a100"}, "--gpus-per-node=a100:4"),
        ({"gpu_request": "gres", "gres": "gpu:a100"}, "--gres=gpu:a100:4"),
        ({"gpu_request": "gpus-per-task"}, "--gpus-per-task=1"),
    ],
)
def test_gpus_are_requested_by_the_flag_of_the_site(fields, flag):
    text = Plugin(site(gpus_per_node=4, **fields)).render(job())
    assert f"#SBATCH {flag}\n" in text


@pytest.mark.parametrize(
    "gpus, options, flags", [(4, [], "--nv"), (4, ["--rocm"], "--rocm"), (0, [], "")]
)
def test_apptainer_gets_the_flag_of_the_devices(gpus, options, flags):
    container = {"kind": "apptainer", "image": "/i.sif", "options": options}
    text = Plugin(site(gpus_per_node=gpus, container=container)).render(job())
    line = next(line for line in text.splitlines() if "apptainer exec" in line)
    assert " ".join(word for word in line.split() if word in ("--nv", "--rocm")) == flags


def test_times_are_written_as_slurm_reads_them():
    assert [format_time(seconds) for seconds in (90, 5400, 129_600)] == [
        *("0-00:01:30", "0-01:30:00", "1-12:00:00")
    ]


def test_run_that_was_not_submitted_has_a_status(workdir, fake):
    (folder,) = submit()
    (folder.path / "job.json").unlink()
    with Lease(folder.path):
        assert api.status("runs")[0].state == "running"
    folder.append_line({"kind": "train", "step": 1, "loss": 2.5, "seconds": 60.0})
    output = CliRunner().invoke(cli.app, ["status"]).stdout.splitlines()
    assert output[1].split() == ["runs/config", "interrupted", "1/4", "2.5000"]
    assert calls(fake)[-1].startswith("sbatch"), "nobody asks Slurm about it"
