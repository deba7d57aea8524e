"""Runs whose base gets new tokens: their rows are learned, and exported as plain libraries load."""

import json
import re

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from dtl.config.load import load_config
from dtl.core.errors import DtlError
from dtl.data.sources.rows import Row
from dtl.export.load_export import load_export
from dtl.export.plan import ExportRequest
from dtl.jobs.export import export_run
from dtl.jobs.predict import predict_rows
from dtl.prepare import prepared_run
from tests import tiny
from tests.unit.jobs.test_adapter_runs import train_in_this_process

ROWS = [
    {"prompt": f"<call>{noun} ", "completion": "zebra <reply>"}
    for noun in ("river", "stone", "ship")
]


def config(folder, base, name="added", **more):
    tiny.write_rows(folder / "rows.jsonl", ROWS)
    options = {
        "run": {"dir": str(folder / "runs"), "name": name},
        "model": {
            "path": str(base),
            "dtype": "fp32",
            "add_tokens": ["<call>", "zebra"],
            "add_special_tokens": ["<reply>"],
        },
        "task": {"name": "causal_lm", "max_length": 64},
        "data": {"train": str(folder / "rows.jsonl")},
        "strategy": "lora",
        "optim": {"learning_rate": 0.03},
        "train": {"steps": 30, "global_batch": 3},
        "layout": {"processes_per_node": 1, "zero_stage": 0},
    } | more
    (folder / f"{name}.yaml").write_text(json.dumps(options))
    return load_config(folder / f"{name}.yaml")


def train_losses(run):
    return [line["loss"] for line in run.read_metrics() if line["kind"] == "train"]


@pytest.mark.parametrize(
    ("strategy", "base"), [("lora", "decoder"), ("lora", "tied_decoder"), ("full", "decoder")]
)
def test_new_tokens_are_learned_and_open_in_plain_libraries(
    strategy, base, request, tmp_path, cache
):
    folder = request.getfixturevalue(base)
    run = train_in_this_process(config(tmp_path, folder, strategy=strategy))
    exported = load_export(run.path)
    made = AutoTokenizer.from_pretrained(run.export)
    tokens = made("<call>river zebra<reply>", return_tensors="pt")["input_ids"]
    assert {320, 321, 322} < set(tokens[0].tolist())
    with torch.no_grad():
        expected = exported.model(input_ids=tokens).logits
        # plain PEFT or transformers, as the model card says
        if strategy == "lora":
            assert "base.resize_token_embeddings(323)" in (run.export / "README.md").read_text()
            plain = AutoModelForCausalLM.from_pretrained(folder)
            plain.resize_token_embeddings(323)
            plain = PeftModel.from_pretrained(plain, run.export).eval()
        else:
            plain = AutoModelForCausalLM.from_pretrained(run.export)
        torch.testing.assert_close(plain(input_ids=tokens).logits, expected, rtol=1e-5, atol=1e-5)
        # merged
        if strategy == "lora":
            merged = export_run(run, ExportRequest(merge=True), print_line=print).path
            model = AutoModelForCausalLM.from_pretrained(merged)
            assert model.get_input_embeddings().weight.shape[0] == 323
            torch.testing.assert_close(
                model(input_ids=tokens).logits, expected, rtol=1e-4, atol=1e-4
            )
    # the rows have moved from their common start, and are generated
    rows = exported.model.get_input_embeddings().weight[320:323]
    assert not torch.allclose(rows[0], rows[1])
    assert train_losses(run)[-1] < 0.7 * train_losses(run)[0]
    if base == "tied_decoder":  # it learns too slowly to answer
        return
    row = Row(0, "here", {"prompt": "<call>river "})
    (answer,) = predict_rows([row], exported, batch_size=1, max_new_tokens=3)
    assert answer["predicted"].startswith("zebra") and "<reply>" not in answer["predicted"]


@pytest.mark.parametrize("strategy", ["frozen", "partial", "norm", "ia3"])
def test_a_strategy_that_does_not_train_the_rows_is_refused_when_planned(
    strategy, decoder, tmp_path, cache
):
    with pytest.raises(DtlError, match=r"rows of added tokens.*(strategy )?lora"):
        prepared_run.prepare_run(config(tmp_path, decoder, strategy=strategy))


def test_phases_and_later_adapters_continue_with_the_rows(decoder, tmp_path, cache):
    four, eight = ({"steps": steps, "global_batch": 3} for steps in (4, 8))
    phases = [{"name": "lora", "length": 0.5}, {"name": "full"}]
    run = train_in_this_process(config(tmp_path, decoder, "phases", strategy=phases, train=eight))
    first = train_in_this_process(config(tmp_path, decoder, "first", train=four))
    losses = train_losses(run)
    assert losses[:4] == train_losses(first)
    assert losses[4] < losses[3]
    # over the merged adapter, and continuing it
    model = {"path": str(decoder), "dtype": "fp32", "adapters": [str(first.export)]}
    with pytest.raises(DtlError, match=r"model\.adapters: .* added tokens.*model\.add_tokens"):
        prepared_run.prepare_run(config(tmp_path, decoder, "over", model=model))
    model |= {"add_tokens": ["<call>", "zebra"], "add_special_tokens": ["<reply>"]}
    over = train_in_this_process(config(tmp_path, decoder, "over", model=model, train=four))
    strategy = {"name": "lora", "continue_from": str(first.export)}
    more = config(tmp_path, decoder, "on", strategy=strategy, train=four)
    for later in (over, train_in_this_process(more)):
        assert train_losses(later)[0] == pytest.approx(losses[4], rel=1e-4)


def test_tokens_that_no_row_has_do_not_stop_the_run(decoder, tmp_path, cache):
    model = {"path": str(decoder), "dtype": "fp32", "add_tokens": ["unused"]}
    six = {"steps": 6, "global_batch": 3}
    run = train_in_this_process(config(tmp_path, decoder, model=model, train=six))
    assert len(train_losses(run)) == 6


def test_a_token_of_the_data_without_a_row_is_refused_with_its_place(tmp_path, cache):
    base = tiny.decoder(tmp_path / "base")
    made = AutoTokenizer.from_pretrained(base)
    made.add_tokens(["zebra"])
    made.save_pretrained(base)
    plain = {"path": str(base), "dtype": "fp32"}
    place = re.escape(f"{tmp_path / 'rows.jsonl'}:1")
    with pytest.raises(DtlError, match=f"{place}: the token 'zebra' .*resize_embeddings=true"):
        prepared_run.prepare_run(config(tmp_path, base, model=plain))
    run = train_in_this_process(config(tmp_path, base, model=plain | {"resize_embeddings": True}))
    assert load_export(run.path).model.get_input_embeddings().weight.shape[0] == 321


@pytest.mark.parametrize("key", ["add_tokens", "add_special_tokens"])
def test_tokens_for_a_model_without_an_embedding_are_refused(key, vit, tmp_path, cache):
    more = {"task": {"name": "image_classification"}, "model": {"path": str(vit), key: ["a"]}}
    with pytest.raises(DtlError, match=rf"model\.{key}: the model of this task has no embedding"):
        prepared_run.prepare_run(config(tmp_path, vit, data={"train": "mini:glyphs/train"}, **more))
