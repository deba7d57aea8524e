"""A base with earlier adapters in its weights: scored, learnt over, exported and opened again."""

import json
import shutil

import pytest
import torch

from dtl import api
from dtl.config.load import load_config
from dtl.config.schema import Model
from dtl.errors import DtlError
from dtl.models.fingerprint import fingerprint
from dtl.models.load import load_pretrained, weightless
from tests import tiny

HEAD = "AutoModelForSequenceClassification"


def train(folder, name, base, task, rows, strategy, adapters=()):
    """Three quick steps."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "run": {"dir": str(folder / "runs"), "name": name},
        "model": {"path": str(base), "dtype": "fp32", "adapters": list(map(str, adapters))},
        "task": task,
        "data": {"train": str(folder / "rows.jsonl"), "eval": str(folder / "rows.jsonl")},
        "strategy": strategy,
        "optim": {"learning_rate": 0.03},
        "train": {"steps": 3, "global_batch": 8},
        "layout": {"processes": 1, "zero": 0},
    }
    (folder / f"{name}.yaml").write_text(json.dumps(config))
    outcome = api.train(load_config(folder / f"{name}.yaml"), say=lambda line: None)
    assert outcome.exit_code == 0
    return outcome.run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("stacked")


@pytest.fixture(scope="module")
def texts():
    return [{"text": " ".join(tiny.WORDS[place : place + 3 + place % 4])} for place in range(16)]


@pytest.fixture(scope="module")
def first(folder, decoder, texts):
    return train(folder, "first", decoder, "causal_lm", texts, {"name": "lora", "rank": 4})


@pytest.fixture(scope="module")
def tagged(folder, encoder):
    rows = [
        {"text": f"{label} {' '.join(tiny.WORDS[:n])}", "label": label}
        for label in ("early", "late")
        for n in range(1, 6)
    ]
    return train(folder, "tagged", encoder, "text_classification", rows, "lora")


def loss_of(model, tokenizer, texts):
    total = targets = 0
    for row in texts:
        ids = torch.tensor([[*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            total += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        targets += ids.shape[1] - 1
    return total / targets


@pytest.mark.parametrize("strategy", ["ia3", "full"])
def test_a_second_run_goes_on_where_the_first_ended(folder, decoder, texts, first, strategy):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    second = train(folder, f"on-{strategy}", decoder, "causal_lm", texts, strategy, [first.export])
    scores = second.result["scores"]
    before = first.result["scores"]["adapted"]["loss"]
    assert scores["unadapted"]["loss"] == pytest.approx(before, rel=1e-5)
    assert scores["adapted"]["loss"] < before - 1e-3

    tokenizer = AutoTokenizer.from_pretrained(second.export)
    if strategy == "full":
        model = AutoModelForCausalLM.from_pretrained(second.export)
    else:  # as the card says
        card = (second.export / "README.md").read_text()
        assert (
            f'base = PeftModel.from_pretrained(base, "{first.export}").merge_and_unload()' in card
        )
        assert f"| worked into it | {first.export} |" in card
        base = AutoModelForCausalLM.from_pretrained(decoder)
        base = PeftModel.from_pretrained(base, first.export).merge_and_unload()
        model = PeftModel.from_pretrained(base, second.export)
        note = json.loads((second.export / "dtl.json").read_text())
        assert note["base"]["adapters"] == [str(first.export)]
    found = loss_of(model.eval(), tokenizer, texts)
    assert found == pytest.approx(scores["adapted"]["loss"], rel=1e-5)
    again = api.evaluate(second.path, str(folder / "rows.jsonl"))
    assert again["loss"] == pytest.approx(scores["adapted"]["loss"], rel=1e-5)


def test_a_head_that_an_adapter_brought_is_not_new(encoder, tagged):
    for labels, new in ((2, frozenset()), (5, {"classifier.weight", "classifier.bias"})):
        model = Model(path=str(encoder), adapters=(str(tagged.export),))
        changes = {"num_labels": labels}
        loaded = load_pretrained(
            model, head=HEAD, changes=changes, random=False, seed=0, dtype="fp32"
        )
        assert loaded.new == new
        assert weightless(model, head=HEAD, changes=changes).new == new
        assert all(parameter.requires_grad for parameter in loaded.model.parameters())
        if not new:
            from safetensors.torch import load_file

            head = load_file(tagged.export / "adapter_model.safetensors")
            expected = head["base_model.model.classifier.weight"]
            assert torch.equal(loaded.model.classifier.weight, expected)


def test_the_base_is_known_by_its_adapters_too(decoder, first, tmp_path):
    plain = fingerprint(Model(path=str(decoder)))
    with_it = fingerprint(Model(path=str(decoder), adapters=(str(first.export),)))
    copy = shutil.copytree(first.export, tmp_path / "copy")
    assert with_it.startswith(f"{plain}+")
    assert fingerprint(Model(path=str(decoder), adapters=(str(copy),))) == with_it
    settings = copy / "adapter_config.json"
    settings.write_text(settings.read_text().replace('"lora_alpha": 32.0', '"lora_alpha": 16.0'))
    assert fingerprint(Model(path=str(decoder), adapters=(str(copy),))) != with_it


def refusal(base, *adapters, head="AutoModelForCausalLM"):
    """What the desk says, before any weight is read."""
    with pytest.raises(DtlError) as caught:
        weightless(Model(path=str(base), adapters=tuple(map(str, adapters))), head=head, changes={})
    (fault,) = caught.value.faults
    assert fault.place == "model.adapters"
    return f"{fault.problem}; {fault.mend}"


def test_what_is_no_adapter_of_this_base_is_refused_at_the_desk(
    folder, decoder, encoder, texts, first, tagged
):
    assert "holds no adapter" in refusal(decoder, folder)
    assert "does not belong to this base (" in refusal(decoder, tagged.export)
    assert "was learnt over: " in refusal(decoder, tagged.export)
    strategy = {"name": "prompt_tuning", "tokens": 2}
    tokens = train(folder, "tokens", decoder, "causal_lm", texts, strategy)
    assert "virtual tokens" in refusal(decoder, tokens.export)
    second = train(folder, "over", decoder, "causal_lm", texts, "ia3", [first.export])
    told = refusal(decoder, second.export)
    assert "over other adapters" in told
    assert f"[{first.export.resolve()}, {second.export}]" in told
    weightless(
        Model(path=str(decoder), adapters=(str(first.export), str(second.export))),
        head="AutoModelForCausalLM",
        changes={},
    )


def test_a_model_path_that_is_an_adapter_is_told_where_it_belongs(first):
    with pytest.raises(DtlError, match=r"holds no config.json|model.adapters: \["):
        load_pretrained(
            Model(path=str(first.export)),
            head="AutoModelForCausalLM",
            changes={},
            random=False,
            seed=0,
            dtype="fp32",
        )
