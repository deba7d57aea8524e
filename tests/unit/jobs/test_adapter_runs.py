"""Runs that train adapters: over earlier adapters, resumed, with virtual tokens."""

import itertools
import json
import shutil
import sys

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

from dtl import api
from dtl.config.load import load_config
from dtl.config.schema import Model
from dtl.core.checksums import CHECKSUMS
from dtl.core.errors import DtlError
from dtl.jobs import train as jobs
from dtl.models.fingerprint import fingerprint_model
from dtl.models.load import load_on_meta_device, load_pretrained
from dtl.models.peft.base import ADAPTER_WEIGHTS
from dtl.models.pretrained_config import HeadConfig
from dtl.prepare import prepared_run
from dtl.run.folder import RunFolder
from dtl.train.heartbeat import Watchdog
from dtl.train.process import ProcessContext
from dtl.train.setup import start_engine
from tests import tiny

HEAD = "AutoModelForSequenceClassification"


def train(folder, name, base, task, rows, strategy, adapters=(), **options):
    """Train three steps over the merged `adapters`. `options`: of train_in_this_process."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "run": {"dir": str(folder / "runs"), "name": name},
        "model": {"path": str(base), "dtype": "fp32", "adapters": list(map(str, adapters))},
        "task": task,
        "data": {"train": str(folder / "rows.jsonl"), "eval": str(folder / "rows.jsonl")},
        "strategy": strategy,
        "optim": {"learning_rate": 0.03},
        "train": {"steps": 3, "global_batch": 8},
        "layout": {"processes_per_node": 1, "zero_stage": 0},
    }
    (folder / f"{name}.yaml").write_text(json.dumps(config))
    return train_in_this_process(load_config(folder / f"{name}.yaml"), **options)


def train_in_this_process(config, *, stop_after=sys.maxsize):
    """Train without the seconds of imports in another process, and return the run.

    `stop_after`: number of safe points that the run passes; it is stopped at the next one.
    """
    prepared = prepared_run.prepare_run(config)
    run = RunFolder.from_config(config)
    if run.state == "absent":
        run.create(config, prepared.plan, prepared.data.dataset_stats, prepared.data.to_record())
    engine = start_engine(config, prepared.plan)
    watch = Watchdog(run.heartbeats, rank=0, world_size=1, print_line=print)
    safe_points = itertools.count()
    process = ProcessContext(
        sys.stdout,
        watch,
        is_stop_requested=lambda: next(safe_points) >= stop_after,
        check_lease=lambda: None,
    )
    with watch:
        end = jobs.run(run, engine, prepared.data, process).end
    assert end == ("done" if stop_after == sys.maxsize else "stopped")
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder for all runs of this module, with an empty cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DTL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield tmp_path_factory.mktemp("stacked")


@pytest.fixture(scope="module")
def texts():
    return [{"text": " ".join(tiny.WORDS[start : start + 3 + start % 4])} for start in range(16)]


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
def test_second_run_starts_from_the_scores_of_the_first(folder, decoder, texts, first, strategy):
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
    else:  # by the code in the model card
        card = (second.export / "README.md").read_text()
        assert (
            f'base = PeftModel.from_pretrained(base, "{first.export}").merge_and_unload()' in card
        )
        assert f"| adapter merged into the base | {first.export} |" in card
        base = AutoModelForCausalLM.from_pretrained(decoder)
        base = PeftModel.from_pretrained(base, first.export).merge_and_unload()
        model = PeftModel.from_pretrained(base, second.export)
        metadata = json.loads((second.export / "dtl.json").read_text())
        assert metadata["base"]["adapters"] == [str(first.export)]
    loss = loss_of(model.eval(), tokenizer, texts)
    assert loss == pytest.approx(scores["adapted"]["loss"], rel=1e-5)
    evaluated = api.evaluate(second.path, str(folder / "rows.jsonl"))
    assert evaluated["loss"] == pytest.approx(scores["adapted"]["loss"], rel=1e-5)


def test_head_in_an_adapter_is_not_new(encoder, tagged):
    for labels, new in ((2, frozenset()), (5, {"classifier.weight", "classifier.bias"})):
        model = Model(path=str(encoder), adapters=(str(tagged.export),))
        changes = {"num_labels": labels}
        loaded = load_pretrained(
            model, head=HeadConfig(HEAD, changes), random_init=False, seed=0, dtype="fp32"
        )
        assert loaded.new_parameters == new
        assert load_on_meta_device(model, head=HeadConfig(HEAD, changes)).new_parameters == new
        assert all(parameter.requires_grad for parameter in loaded.model.parameters())
        if not new:
            from safetensors.torch import load_file

            head = load_file(tagged.export / "adapter_model.safetensors")
            expected = head["base_model.model.classifier.weight"]
            assert torch.equal(loaded.model.classifier.weight, expected)


def test_fingerprint_of_the_base_includes_its_adapters(decoder, first, tmp_path):
    plain = fingerprint_model(Model(path=str(decoder)))
    with_adapter = fingerprint_model(Model(path=str(decoder), adapters=(str(first.export),)))
    copy = shutil.copytree(first.export, tmp_path / "copy")
    assert with_adapter.startswith(f"{plain}+")
    assert fingerprint_model(Model(path=str(decoder), adapters=(str(copy),))) == with_adapter
    (copy / CHECKSUMS).unlink()  # a folder of another program has none
    config = copy / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 32.0', '"lora_alpha": 16.0'))
    assert fingerprint_model(Model(path=str(decoder), adapters=(str(copy),))) != with_adapter


def adapter_fault(base, *folders):
    """Return the fault that is found before any weight is read."""
    model = Model(path=str(base), adapters=tuple(map(str, folders)))
    with pytest.raises(DtlError) as caught:
        load_on_meta_device(model, head=HeadConfig("AutoModelForCausalLM", {}))
    (fault,) = caught.value.faults
    assert fault.location == "model.adapters"
    return f"{fault.problem}; {fault.fix}"


def test_folder_that_is_not_an_adapter_of_the_base_is_rejected_before_launch(
    folder, decoder, encoder, texts, first, tagged
):
    assert "has no adapter" in adapter_fault(decoder, folder)
    assert "does not belong to this base (" in adapter_fault(decoder, tagged.export)
    assert "was trained over: " in adapter_fault(decoder, tagged.export)
    strategy = {"name": "prompt_tuning", "num_virtual_tokens": 2}
    tokens = train(folder, "tokens", decoder, "causal_lm", texts, strategy)
    assert "virtual tokens" in adapter_fault(decoder, tokens.export)
    second = train(folder, "over", decoder, "causal_lm", texts, "ia3", [first.export])
    fault = adapter_fault(decoder, second.export)
    assert "over other adapters" in fault
    assert f"[{first.export.resolve()}, {second.export}]" in fault
    load_on_meta_device(
        Model(path=str(decoder), adapters=(str(first.export), str(second.export))),
        head=HeadConfig("AutoModelForCausalLM", {}),
    )


def test_adapter_as_model_path_gives_the_right_key(first):
    with pytest.raises(DtlError, match=r"has no config.json|model.adapters: \["):
        load_pretrained(
            Model(path=str(first.export)),
            head=HeadConfig("AutoModelForCausalLM", {}),
            random_init=False,
            seed=0,
            dtype="fp32",
        )


# Stopped and resumed -----------------------------------------------------------------------------


def losses(run):
    lines = map(json.loads, (run.path / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == "train"]


@pytest.mark.parametrize("strategy", ["pissa", "eva", "vera", "adalora", "p_tuning", "continued"])
def test_resumed_run_gives_bitwise_the_same_losses_and_adapter(
    folder, decoder, texts, first, strategy
):
    """Also if the adapter was initialized from the base, the data, or an earlier adapter."""
    options = {"name": strategy, "num_virtual_tokens": 3} if strategy == "p_tuning" else strategy
    if strategy in ("pissa", "eva"):
        options = {"name": "lora", "rank": 4, "init": strategy}
    if strategy == "continued":
        options = {"name": "lora", "continue_from": str(first.export)}
    complete = train(folder, f"complete-{strategy}", decoder, "causal_lm", texts, options)
    name = f"stopped-{strategy}"
    scores_base = strategy not in ("p_tuning", "continued")  # which has a safe point of its own
    safe_points = 2 if scores_base else 1
    stopped = train(folder, name, decoder, "causal_lm", texts, options, stop_after=safe_points)
    assert 0 < len(losses(stopped)) < 3
    resumed = train(folder, name, decoder, "causal_lm", texts, options)
    assert losses(resumed) == losses(complete)
    assert len(losses(complete)) == 3
    assert resumed.result["scores"] == complete.result["scores"]
    assert (resumed.export / ADAPTER_WEIGHTS).read_bytes() == (
        complete.export / ADAPTER_WEIGHTS
    ).read_bytes()


def test_changed_adapter_of_continue_from_is_rejected_on_resume(
    folder, decoder, texts, first, tmp_path
):
    """Also before its first checkpoint."""
    earlier = shutil.copytree(first.export, tmp_path / "earlier")
    options = {"name": "lora", "continue_from": str(earlier)}
    run = train(folder, "moved", decoder, "causal_lm", texts, options, stop_after=1)
    prepared_run.reopen_run(run, writes=True)
    config = earlier / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 32.0', '"lora_alpha": 16.0'))
    for is_removed in (False, True):
        if is_removed:
            shutil.rmtree(earlier)
        with pytest.raises(DtlError, match=r"strategy.continue_from: the adapter .*has changed"):
            prepared_run.reopen_run(run, writes=True)


def test_continued_adapter_starts_where_it_ended(folder, decoder, texts, first):
    """The base is not scored, and the export is evaluated as any other."""
    options = {"name": "lora", "rank": 4, "continue_from": str(first.export)}
    run = train(folder, "further", decoder, "causal_lm", texts, options)
    started, ended = losses(first), losses(run)
    assert ended[0] < started[-1] < started[0] and ended[-1] < ended[0]
    scores = run.result["scores"]
    assert "unadapted" not in scores
    assert scores["adapted"]["loss"] < first.result["scores"]["adapted"]["loss"]
    evaluated = api.evaluate(run.path, str(folder / "rows.jsonl"))
    assert evaluated["loss"] == pytest.approx(scores["adapted"]["loss"], rel=1e-5)
    lines = [line for line in run.plan.format_lines() if str(first.export) in line]
    assert len(lines) == 1 and "training continues from it" in lines[0]

    over = train(folder, "upper", decoder, "causal_lm", texts, "lora", [first.export])
    further = {"name": "lora", "continue_from": str(over.export)}
    with pytest.raises(DtlError, match=rf"set model.adapters to \[{first.export.resolve()}\]"):
        train(folder, "nowhere", decoder, "causal_lm", texts, further)
    train(folder, "on-top", decoder, "causal_lm", texts, further, [first.export])
    phases = [{"name": "full", "length": 1}, options]
    with pytest.raises(DtlError, match=r"strategy.1.continue_from: the phases before"):
        train(folder, "later", decoder, "causal_lm", texts, phases)


# Virtual tokens ----------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["prompt_tuning", "p_tuning", "prefix_tuning"])
def test_long_texts_are_truncated_to_leave_positions_for_virtual_tokens(folder, encoder, strategy):
    """20 of 128 positions are taken; the texts have hundreds of words."""
    from transformers import AutoConfig

    assert AutoConfig.from_pretrained(encoder).max_position_embeddings == 128
    rows = [
        {"text": f"{label} {' '.join(tiny.WORDS * n)}", "label": label}
        for label in ("early", "late")
        for n in range(1, 6)
    ]
    run = train(folder, f"positions-{strategy}", encoder, "text_classification", rows, strategy)
    evaluated = api.evaluate(run.path, str(folder / "rows.jsonl"))
    assert evaluated == pytest.approx(run.result["scores"]["adapted"], rel=1e-5)


def test_more_virtual_tokens_than_positions_are_rejected_before_launch(folder, encoder):
    rows = [{"text": "early", "label": "early"}, {"text": "late", "label": "late"}]
    with pytest.raises(
        DtlError,
        match=r"strategy.num_virtual_tokens: 120 .*set strategy.num_virtual_tokens to 118",
    ):
        train(
            folder,
            "full",
            encoder,
            "text_classification",
            rows * 2,
            {"name": "prompt_tuning", "num_virtual_tokens": 120},
        )
