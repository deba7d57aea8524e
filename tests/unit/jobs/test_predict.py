"""`dtl predict` and `dtl evaluate` give what plain transformers and PEFT give."""

import json
import random
import shutil

import pytest
import torch

from dtl import api
from dtl.cli.app import main
from dtl.config.load import load_config
from dtl.core.errors import DtlError
from dtl.export.load_export import load_export
from dtl.run.folder import RunFolder
from tests import tiny

LABELS = ["early", "late"]


def train(folder, base, task, rows, strategy, dtype="fp32"):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "run": {"dir": str(folder / "runs"), "name": "done"},
        "model": {"path": str(base), "dtype": dtype},
        "task": task,
        "data": {"train": str(folder / "rows.jsonl"), "eval": str(folder / "rows.jsonl")},
        "strategy": strategy,
        "train": {"steps": 3, "global_batch": 4},
        "layout": {"processes_per_node": 1, "zero_stage": 0},
    }
    (folder / "done.yaml").write_text(json.dumps(config))
    outcome = api.train(load_config(folder / "done.yaml"), print_line=lambda line: None)
    assert outcome.exit_code == 0
    return outcome.run


@pytest.fixture(scope="module")
def finished(tmp_path_factory, encoder):
    """A folder with a run, its data and its cache."""
    folder = tmp_path_factory.mktemp("finished")
    rows = [
        {"text": f"{label} {' '.join(tiny.WORDS[:length])}", "label": label, "half": length % 2}
        for label in LABELS
        for length in range(1, 6)
    ]
    task = {"name": "text_classification"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DTL_CACHE", str(folder / "cache"))
        train(folder, encoder, task, rows, {"name": "lora", "rank": 2})
    return folder


@pytest.fixture
def classifier(cache, tmp_path, finished):
    """A copy of the run for one test."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return RunFolder.open(tmp_path / "runs" / "done")


def test_predictions_of_1000_rows_equal_those_of_plain_peft(classifier, tmp_path, encoder):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    texts = [" ".join(tiny.WORDS[: 1 + index % 20]) for index in range(1000)]
    inputs, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    inputs.write_text(
        "".join(json.dumps({"id": index, "text": text}) + "\n" for index, text in enumerate(texts))
    )
    code = main(["predict", str(classifier.path), str(inputs), "--out", str(out), "--batch", "64"])
    assert code == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == list(range(1000))
    base = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=2)
    model = PeftModel.from_pretrained(base, classifier.export).eval()
    tokenizer = AutoTokenizer.from_pretrained(classifier.export)
    for row in rows[:20]:
        with torch.no_grad():
            probabilities = (
                model(**tokenizer(row["text"], return_tensors="pt")).logits[0].softmax(-1)
            )
        assert list(row["probabilities"].values()) == pytest.approx(
            probabilities.tolist(), rel=1e-4
        )
        assert row["predicted"] == LABELS[int(probabilities.argmax())]


def test_evaluate_repeats_the_final_scores_of_the_run(classifier, tmp_path):
    data = str(tmp_path / "rows.jsonl")
    expected = classifier.result["scores"]["adapted"]
    assert api.evaluate(classifier.path, data) == pytest.approx(expected, rel=1e-6)
    written = json.loads((classifier.path / "evaluation.json").read_text())
    assert written["scores"] == pytest.approx(expected, rel=1e-6)
    lines = (classifier.path / "evaluation.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines] == list(range(10))
    scores = api.evaluate(classifier.path, data, ["task.group_by=half"], out=tmp_path / "other")
    assert scores["group/half/1/n"] == 6
    assert (tmp_path / "other" / "evaluation.json").is_file()


@pytest.mark.parametrize(
    ("task", "strategy", "dtype"),
    [
        ("causal_lm", {"name": "lora", "rank": 2}, "bf16"),
        ("causal_lm", "full", "bf16"),
        ("dpo", {"name": "lora", "rank": 2}, "fp32"),
    ],
)
def test_scores_of_a_configs_base_equal_those_before_the_first_step(
    cache, tmp_path, decoder, task, strategy, dtype, capsys
):
    """Each loss is bitwise equal. On other rows the scores differ."""
    rows = [
        {"text": f"{word} {other}", "prompt": word, "chosen": other, "rejected": f"no {other}"}
        for word, other in zip(tiny.WORDS[:9], tiny.WORDS[9:18], strict=True)
    ]
    run = train(tmp_path, decoder, task, rows, strategy, dtype)
    config, out = tmp_path / "done.yaml", tmp_path / "scores"
    scores = api.evaluate(config, out=out)
    assert scores == run.result["scores"]["unadapted"]
    records = (out / "evaluation.jsonl").read_text()
    assert records == (run.path / "evaluations" / "step-00000000.jsonl").read_text()
    assert json.loads((out / "evaluation.json").read_text())["scores"] == scores
    tiny.write_rows(tmp_path / "fewer.jsonl", rows[:4])
    capsys.readouterr()
    assert main(["evaluate", str(config), "--data", str(tmp_path / "fewer.jsonl")]) == 0
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert printed.keys() == scores.keys()
    losses = [json.loads(line)["loss"] for line in records.splitlines()]
    if task == "dpo":
        assert float(printed["loss"]) == pytest.approx(sum(losses[:4]) / 4, rel=1e-5)
    else:
        assert float(printed["loss"]) != pytest.approx(scores["loss"], rel=1e-5)


def test_base_without_a_trained_head_is_not_scored(classifier, tmp_path, capsys):
    config = str(tmp_path / "done.yaml")
    assert main(["evaluate", config]) == 2
    message = capsys.readouterr().err
    assert "done.yaml" in message and "model.path: the base has no head for these labels" in message
    assert main(["evaluate", config, "strategy=scratch"]) == 2
    assert "the strategy starts from random weights" in capsys.readouterr().err
    assert main(["evaluate", config, "data.eval=null"]) == 2
    assert "no held-out rows to score on" in capsys.readouterr().err
    assert main(["evaluate", str(classifier.path)]) == 2
    assert "Fix: add --data ROWS" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ('{"txt": "x"}', "the column `text` is missing"),
        ("{", "invalid JSON"),
        ('{"text": 5}', "is int"),
    ],
)
def test_invalid_input_gives_one_line(classifier, tmp_path, capsys, row, problem):
    (tmp_path / "in.jsonl").write_text(row + "\n")
    assert main(["predict", str(classifier.path), str(tmp_path / "in.jsonl")]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and problem in printed.err
    assert len(printed.err.splitlines()) == 1


def test_missing_file_gives_one_line(classifier, tmp_path, capsys):
    assert main(["predict", str(classifier.path), str(tmp_path / "none.jsonl")]) == 2
    assert main(["predict", str(tmp_path), str(tmp_path / "rows.jsonl")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_text_lines_are_continued_as_by_plain_transformers(cache, tmp_path, decoder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = [{"text": " ".join(tiny.WORDS[:length])} for length in range(3, 12)]
    run = train(tmp_path, decoder, "causal_lm", rows, "full")
    prompts = ["the old river", "a ship", "large stone reads the letter"]
    (tmp_path / "in.txt").write_text("\n".join(prompts) + "\n")
    rows = list(api.predict(run.path, [tmp_path / "in.txt"], max_new_tokens=5))
    model = AutoModelForCausalLM.from_pretrained(run.export).eval()
    tokenizer = AutoTokenizer.from_pretrained(run.export)
    for row, prompt in zip(rows, prompts, strict=True):
        tokens = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        generated = model.generate(**tokens, max_new_tokens=5, do_sample=False)
        expected = tokenizer.decode(
            generated[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True
        )
        assert row == {"text": prompt, "predicted": expected}


def test_rows_of_other_formats_and_files_are_read_to_predict_for(tmp_path):
    from dtl.data.row_formats.base import RowInput
    from dtl.jobs.predict import _read_file

    (tmp_path / "in.json").write_text('[{"instruction": "the river", "input": "and stone"}]')
    (row,) = _read_file(tmp_path / "in.json", RowInput(kind="chat"))
    assert row.fields == {"messages": [{"role": "user", "content": "the river\nand stone"}]}
    (tmp_path / "in.txt").write_bytes("the r\u00edver\r\n\r\na ship\r\n".encode("utf-16"))
    rows = list(_read_file(tmp_path / "in.txt", RowInput()))
    assert [row.fields for row in rows] == [{"text": "the r\u00edver"}, {"text": "a ship"}]
    assert [row.location for row in rows] == [f"{tmp_path}/in.txt:{line}" for line in (1, 3)]


def test_damaged_export_is_refused_and_made_again_from_the_checkpoint(classifier, tmp_path, capsys):
    export, rng = classifier.export, random.Random(5)
    files = sorted(file for file in export.iterdir() if file.name != "README.md")
    before = {file.name: file.read_bytes() for file in files}
    assert {"adapter_model.safetensors", "dtl.json", "checksums.json"} <= before.keys()
    rows = str(tmp_path / "rows.jsonl")
    for name, content in before.items():
        damaged = bytearray(content)
        damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        for written in (bytes(damaged), content[: len(content) // 2], b""):
            (export / name).write_bytes(written)
            with pytest.raises(DtlError, match="the folder is damaged") as caught:
                load_export(classifier.path)
            assert name in str(caught.value) or name == "checksums.json"
            assert f"dtl export {classifier.path} --to {export}" in str(caught.value)
        (export / name).write_bytes(content)
    (export / "adapter_model.safetensors").write_bytes(b"")
    for options in (
        ["predict", str(classifier.path), rows],
        ["evaluate", str(classifier.path), "--data", rows],
    ):
        assert main(options) == 2
        assert "the folder is damaged: adapter_model" in capsys.readouterr().err
    shutil.rmtree(export)
    assert main(["export", str(classifier.path), "--to", str(export)]) == 0
    after = (export / "adapter_model.safetensors").read_bytes()
    assert after == before["adapter_model.safetensors"]
    load_export(classifier.path)


def test_export_of_another_program_and_an_edited_card_are_accepted(classifier):
    (classifier.export / "README.md").write_text("# edited")
    load_export(classifier.path)
    (classifier.export / "checksums.json").unlink()
    load_export(classifier.path)
