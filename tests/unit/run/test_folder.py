"""The run folder: its states, what it stores, and what it never overwrites."""

import errno
import json
import random
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from dtl.cluster.status import find_runs, query_runs
from dtl.config.schema import RunConfig
from dtl.core.errors import DtlError
from dtl.core.files import write_json
from dtl.core.json_lines import decode_line, encode_lines
from dtl.plan.records import Decision, Layout, ParameterCounts, PhasePlan, Plan
from dtl.prepare import prepared_run
from dtl.run import creation
from dtl.run import folder as folder_module
from dtl.run.folder import EvaluatedStep, RunFolder

PLAN = Plan(
    layout=Layout(1, 2, 2, "none", 4, 2, False, "fp32", "cpu"),
    parameters=ParameterCounts(trainable=10, frozen=90),
    model_state={"weights": 400, "gradients": 40, "optimizer": 80},
    phases=(PhasePlan("lora", 0, 30, 2e-4, ParameterCounts(10, 90)),),
    steps=30,
    steps_per_epoch=7,
    deepspeed={"zero_optimization": {"stage": 2}},
    decisions=(Decision("processes", "2", "layout.processes_per_node"),),
)
DATA = {"key": "k" * 32, "examples": 7}


def configure(folder, **train):
    return RunConfig.model_validate(
        {
            "run": {"name": "first", "dir": str(folder)},
            "model": {"path": "mini:text"},
            "task": {"name": "causal_lm", "max_length": 64},
            "strategy": {"name": "lora", "rank": 4, "target_modules": ["q_proj", "v_proj"]},
            "data": {"train": "rows.jsonl"},
            "train": {"steps": 30, **train},
        }
    )


@pytest.fixture
def config(tmp_path):
    return configure(tmp_path / "runs")


@pytest.fixture
def run(config):
    folder = RunFolder.from_config(config)
    folder.create(config, PLAN, {"labels": ["a", "b"]}, DATA)
    return folder


def test_the_config_names_the_folder(config, tmp_path):
    assert RunFolder.from_config(config).path == tmp_path / "runs" / "first"
    assert RunFolder.from_config(config).state == "absent"


def test_a_new_run_is_interrupted_until_it_is_finished(run):
    assert run.state == "interrupted"
    run.finish({"steps": 30, "scores": {"adapted": {"loss": 0.5}}})
    assert run.state == "finished"
    assert run.result == {"steps": 30, "scores": {"adapted": {"loss": 0.5}}}


def test_config_plan_and_dataset_stats_are_read_back(run, config):
    again = RunFolder.open(str(run.path))
    assert again.config == config
    assert again.config.strategy.options.target_modules == ("q_proj", "v_proj")
    assert again.plan == PLAN
    assert again.dataset_stats == {"labels": ["a", "b"]}


def test_run_json_names_the_package_versions(run):
    from importlib import metadata

    record = json.loads((run.path / "run.json").read_text(encoding="utf-8"))
    assert record["config"]["strategy"] == {
        **record["config"]["strategy"],
        "name": "lora",
        "rank": 4,
        "target_modules": ["q_proj", "v_proj"],
    }
    for name in ("torch", "transformers", "peft", "accelerate", "deepspeed"):
        assert record["versions"][name] == metadata.version(name)


def test_run_json_names_the_git_commit(config, tmp_path, monkeypatch):
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    monkeypatch.chdir(checkout)
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    (checkout / "runs").mkdir()
    RunFolder.from_config(config).create(config, PLAN, {}, DATA)
    record = json.loads(
        (RunFolder.from_config(config).path / "run.json").read_text(encoding="utf-8")
    )
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert record["commit"] == head.stdout.strip()


def test_there_is_no_commit_outside_a_checkout(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    RunFolder.from_config(config).create(config, PLAN, {}, DATA)
    record = json.loads(
        (RunFolder.from_config(config).path / "run.json").read_text(encoding="utf-8")
    )
    assert record["commit"] is None


def test_metrics_are_read_in_the_order_of_writing(run):
    lines = [{"kind": "train", "step": 1, "loss": 2.5}, {"kind": "eval", "step": 1, "model": "x"}]
    for line in lines:
        run.append_line(line)
    assert list(run.read_metrics()) == lines
    text = (run.path / "metrics.jsonl").read_text(encoding="utf-8")
    assert [decode_line(line.encode()) for line in text.splitlines()] == lines
    assert [json.loads(line).keys() - {"crc32"} for line in text.splitlines()] == [
        line.keys() for line in lines
    ]


def test_a_new_run_has_no_metrics(run):
    assert list(run.read_metrics()) == []


def test_an_incomplete_last_line_is_removed(run):
    run.append_line({"kind": "train", "step": 1})
    with (run.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"kind": "train", "st')
    assert list(run.read_metrics()) == [{"kind": "train", "step": 1}]
    run.append_line({"kind": "train", "step": 2})
    assert list(run.read_metrics()) == [{"kind": "train", "step": 1}, {"kind": "train", "step": 2}]


def test_the_exit_code_is_written_and_removed(run):
    assert run.exit_code is None
    run.write_exit_code(75)
    assert run.exit_code == RunFolder(run.path).exit_code == 75
    assert run.state == "interrupted"
    run.write_exit_code(None)
    run.write_exit_code(None)
    assert run.exit_code is None


def test_the_exit_code_of_a_rank_counts_if_all_ranks_agree(run):
    """One that was killed leaves none, and then the others were asked to stop by the launcher."""
    ranks = run.plan.layout.world_size
    assert ranks > 1
    for rank in range(ranks):
        assert run.exit_code is None
        run.write_exit_code(75, rank=rank)
    assert run.exit_code == 75
    run.write_exit_code(1, rank=0)
    assert run.exit_code is None
    run.write_exit_code(None)
    assert list(run.path.glob("ended*")) == []


def test_metrics_of_later_steps_are_removed_on_resume(run):
    """Steps 4 and 5 were learned after the checkpoint of step 3: they come again."""
    assert run.last_step == 0
    lines = [{"kind": "train", "step": step, "loss": 1 / step} for step in range(1, 6)]
    for line in (*lines[:3], {"kind": "eval", "step": 3, "loss": 0.5}, *lines[3:]):
        run.append_line(line)
    assert run.last_step == 5
    run.remove_metrics_after(3)
    assert list(run.read_metrics()) == [*lines[:3], {"kind": "eval", "step": 3, "loss": 0.5}]
    assert run.last_step == 3
    run.append_line(lines[3])
    assert run.last_step == 4


def test_a_folder_with_other_files_is_not_changed(config):
    folder = RunFolder.from_config(config)
    folder.path.mkdir(parents=True)
    (folder.path / "thesis.txt").write_text("ten years of work", encoding="utf-8")
    with pytest.raises(DtlError, match="the folder is not empty, and it is not a run") as caught:
        folder.create(config, PLAN, {}, DATA)
    assert caught.value.exit_code == 2
    assert [entry.name for entry in folder.path.iterdir()] == ["thesis.txt"]


def test_a_run_is_not_overwritten(run, config):
    before = (run.path / "run.json").read_bytes()
    with pytest.raises(DtlError):
        run.create(config, PLAN, {}, DATA)
    assert (run.path / "run.json").read_bytes() == before


def test_an_empty_folder_can_become_a_run(config):
    folder = RunFolder.from_config(config)
    folder.path.mkdir(parents=True)
    folder.create(config, PLAN, {}, DATA)
    assert folder.state == "interrupted"


def test_opening_a_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(DtlError, match="there is no run in this folder"):
        RunFolder.open(tmp_path / "nothing")
    with pytest.raises(DtlError, match="there is no run in this folder"):
        RunFolder.open(tmp_path)


@pytest.mark.parametrize("damage", ["", "{", "[1, 2", "\x00\x00"])
def test_a_damaged_run_json_is_one_fault(run, damage):
    (run.path / "run.json").write_text(damage, encoding="utf-8")
    with pytest.raises(DtlError, match="restore the run folder") as caught:
        _ = RunFolder.open(run.path).config
    assert "run.json" in str(caught.value)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "result.json"
    write_json(file, {"steps": 1})
    with pytest.raises(TypeError):
        write_json(file, {"steps": 2, "then": {1, 2, 3}})  # fails in the middle of the writing
    assert json.loads(file.read_text(encoding="utf-8")) == {"steps": 1}


def test_a_used_folder_is_an_error_that_names_its_content(run, config, tmp_path):
    other = configure(tmp_path / "runs", seed=1)
    with pytest.raises(DtlError, match="an interrupted run of another config"):
        prepared_run.check_unused(run, other)
    assert prepared_run.has_same_run(run, config)
    run.finish({})
    assert prepared_run.has_same_run(run, config)
    assert not prepared_run.has_same_run(run, other)
    with pytest.raises(DtlError, match="a finished run"):
        prepared_run.check_unused(run, other)


def test_a_new_run_can_start(config):
    prepared_run.check_unused(RunFolder.from_config(config), config)


def test_the_reported_evaluation_is_that_of_the_exported_weights(tmp_path):
    asked = configure(tmp_path).model_dump(mode="json")
    asked["data"]["eval"] = "held.jsonl"
    asked["train"] |= {"export": "best", "evaluate_every": 10}
    config = RunConfig.model_validate(asked)
    run = RunFolder.from_config(config)
    run.create(config, PLAN, {}, DATA)
    assert run.reported_step is None and run.read_eval_records(10) == []
    run.append_line({"kind": "eval", "step": 10, "model": "adapted", "loss": 1.0})
    assert run.reported_step == EvaluatedStep(10, "adapted")
    result = {
        "steps": 30,
        "scores": {"adapted": {"loss": 0.5}},
        "best": {"step": 20, "score": -0.5},
        "weights": "adapted",
    }
    run.finish(result)
    assert run.reported_step == EvaluatedStep(20, "adapted")
    run.finish({**result, "weights": "ema"})
    assert run.reported_step == EvaluatedStep(30, "ema")
    run.eval_records_file(30, weights="ema").parent.mkdir()
    run.eval_records_file(30, weights="ema").write_text(encode_lines([{"row": 4, "loss": 2.0}]))
    assert run.read_eval_records(30, weights="ema") == [{"row": 4, "loss": 2.0}]
    assert run.eval_records_file(30, weights="unadapted") == run.eval_records_file(
        30, weights="adapted"
    )
    run.finish({**result, "scores": {}})
    assert run.reported_step is None


KILLED = """
import os, signal, sys
from dtl.run import folder
from tests.unit.run.test_folder import DATA, PLAN, RunFolder, configure

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(folder, sys.argv[2], die)
config = configure(sys.argv[1])
RunFolder.from_config(config).create(config, PLAN, {}, DATA, skipped=[{"reason": "x"}])
"""


@pytest.mark.parametrize("call", ["write_text", "write_record", "publish_run_folder"])
def test_a_killed_creation_leaves_a_name_that_can_be_used(config, tmp_path, call):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "runs"), call]
    killed = subprocess.run(command, check=False)
    assert killed.returncode == -signal.SIGKILL
    folder = RunFolder.from_config(config)
    assert folder.state == "absent" and list(folder.path.parent.iterdir())
    folder.create(config, PLAN, {}, DATA)
    assert folder.config == config
    assert [run.path for run in find_runs(folder.path.parent)] == [folder.path]


def test_a_full_disk_while_a_run_is_created_leaves_nothing(config, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = RunFolder.from_config(config)
    for call in ("write_text", "write_record", "sync_tree"):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
            patch.setattr(folder_module if call != "sync_tree" else creation, call, fail)
            folder.create(config, PLAN, {}, DATA)
        assert list(folder.path.parent.iterdir()) == []
    folder.create(config, PLAN, {}, DATA)


def test_what_an_interrupted_creation_has_left_is_replaced(config):
    folder = RunFolder.from_config(config)
    (folder.path / "logs").mkdir(parents=True)
    for name in ("config.yaml", "skipped_rows.jsonl", ".run.json.0123"):
        (folder.path / name).write_text("unfinished")
    folder.create(config, PLAN, {}, DATA)
    assert folder.config == config and not (folder.path / ".run.json.0123").exists()


@pytest.mark.parametrize("entry", ["logs/rank-0.log", "thesis.txt", "config.yaml"])
def test_a_folder_that_may_be_of_the_user_is_not_replaced(config, entry):
    """A config.yaml without the logs folder, which is created before it, is not dtl's."""
    folder = RunFolder.from_config(config)
    (folder.path / entry).parent.mkdir(parents=True)
    (folder.path / entry).write_text("mine")
    with pytest.raises(DtlError, match="not empty, and it is not a run"):
        folder.create(config, PLAN, {}, DATA)
    assert (folder.path / entry).read_text() == "mine"


def test_of_two_processes_that_create_a_run_one_succeeds(config, monkeypatch):
    together = threading.Barrier(2, timeout=30)
    publish = folder_module.publish_run_folder

    def publish_together(staged, path):
        together.wait()
        publish(staged, path)

    def create():
        try:
            RunFolder.from_config(config).create(config, PLAN, {}, DATA)
        except DtlError as fault:
            return str(fault)
        return None

    monkeypatch.setattr(folder_module, "publish_run_folder", publish_together)
    with ThreadPoolExecutor(2) as pool:
        results = [future.result() for future in [pool.submit(create) for _ in range(2)]]
    (loser,) = [result for result in results if result is not None]
    assert "another process has created this run at the same time" in loser
    folder = RunFolder.from_config(config)
    assert folder.config == config
    assert [entry.name for entry in folder.path.parent.iterdir()] == [folder.path.name]


def flip_bit(path, rng):
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def test_any_flipped_bit_of_run_json_is_one_fault(run):
    rng, before = random.Random(1), (run.path / "run.json").read_bytes()
    for _ in range(100):
        flip_bit(run.path / "run.json", rng)
        if json.loads(before) != try_to_parse(run.path / "run.json"):  # not in white space
            with pytest.raises(DtlError, match=r"run\.json: the file cannot be read"):
                _ = run.config
        (run.path / "run.json").write_bytes(before)
    _ = run.config


def try_to_parse(path):
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None


def test_a_damaged_line_is_named_and_the_others_are_read(run):
    rng = random.Random(2)
    lines = [{"kind": "train", "step": step, "loss": 1 / step} for step in range(1, 9)]
    for line in lines:
        run.append_line(line)
    before = (run.path / "metrics.jsonl").read_bytes()
    assert run.damaged_lines == []
    for _ in range(200):
        flip_bit(run.path / "metrics.jsonl", rng)
        found, damaged = list(run.read_metrics()), run.damaged_lines
        assert [line for line in lines if line in found] == found  # nothing is changed
        assert damaged or found == lines[:-1]  # the last line feed: the line is incomplete
        assert len(found) >= len(lines) - 2  # a line feed may join two lines
        (run.path / "metrics.jsonl").write_bytes(before)


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b"\xff\xfe", b'{"steps": 3}'])
def test_a_damaged_result_counts_as_none(run, content):
    run.finish({"steps": 30})
    assert run.state == "finished"
    (run.path / "result.json").write_bytes(content)
    assert run.state == "interrupted" and run.result_damage


@pytest.mark.parametrize("content", ["", "{", "5", '{"exit_code": 75}'])
def test_a_damaged_exit_code_counts_as_a_crash(run, content):
    run.write_exit_code(75)
    (run.path / "ended.json").write_text(content)
    assert run.exit_code is None


def test_damaged_evaluation_records_are_an_error(run):
    file, rng = run.eval_records_file(5), random.Random(3)
    file.parent.mkdir()
    records = [{"row": row, "loss": row / 7} for row in range(9)]
    file.write_text(encode_lines(records))
    assert run.read_eval_records(5) == records
    before = file.read_bytes()
    cuts = [before[: before.index(b"\n", place) + 1] for place in (0, 100, 300)]
    for content in (*cuts, before[:-1], before[3:], b"", None):
        if content is None:
            flip_bit(file, rng)
        else:
            file.write_bytes(content)
        with pytest.raises(DtlError, match="the file is damaged"):
            run.read_eval_records(5)
        file.write_bytes(before)


@pytest.mark.parametrize("name", ["run.json", "job.json", "metrics.jsonl", "result.json"])
def test_a_damaged_run_does_not_hide_the_others(tmp_path, name):
    for seed in range(3):
        config = configure(tmp_path / "runs", seed=seed)
        config = config.model_copy(
            update={"run": config.run.model_copy(update={"name": f"run-{seed}"})}
        )
        folder = RunFolder.from_config(config)
        folder.create(config, PLAN, {}, DATA)
        folder.append_line({"kind": "train", "step": 3, "loss": 0.5, "seconds": 1.0})
    (tmp_path / "runs" / "run-1" / name).write_bytes(b"\xff{")
    states = {status.run.name: status for status in query_runs(tmp_path / "runs")}
    assert list(states) == ["run-0", "run-1", "run-2"]
    for other in ("run-0", "run-2"):
        assert (states[other].state, states[other].step) == ("interrupted", 3)
    if name != "metrics.jsonl":  # of which the incomplete last line is left out
        damaged = {"run.json": "damaged", "job.json": "damaged", "result.json": "interrupted"}
        assert states["run-1"].state == damaged[name]
        assert name in states["run-1"].reason
