"""The run folder: its states, what it stores, and what it never overwrites."""

import json
import subprocess

import pytest

from dtl.config.schema import RunConfig
from dtl.core.errors import DtlError
from dtl.core.files import write_json
from dtl.plan.records import Decision, Layout, ParameterCounts, PhasePlan, Plan
from dtl.prepare import prepared_run
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
    assert [json.loads(line) for line in text.splitlines()] == lines


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
    """Steps 4 and 5 were learnt after the checkpoint of step 3: they come again."""
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
    run.eval_records_file(30, weights="ema").write_text('{"row": 4, "loss": 2.0}\n')
    assert run.read_eval_records(30, weights="ema") == [{"row": 4, "loss": 2.0}]
    assert run.eval_records_file(30, weights="unadapted") == run.eval_records_file(
        30, weights="adapted"
    )
    run.finish({**result, "scores": {}})
    assert run.reported_step is None
