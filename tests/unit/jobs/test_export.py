"""What `dtl export` writes is what was trained, as plain transformers and PEFT open it."""

import json
import stat

import pytest
import torch

from dtl import api
from dtl.assembly.parts import assemble
from dtl.config.load import load_config
from dtl.core.errors import DtlError, RunFailed
from dtl.export.load_export import load_export
from dtl.export.logit_difference import compare_logits
from dtl.export.verify import compute_logits, load_inputs, save_inputs
from dtl.export.weights import local_state_dict, write_model
from dtl.jobs import export as job
from dtl.plan.hardware import free_disk_bytes
from dtl.run.folder import RunFolder
from tests import tiny

TEXTS = [" ".join(tiny.WORDS[:length]) for length in range(3, 11)]


def in_this_process(export, asked, folder):
    """What the fresh process does, without its start."""
    save_inputs(asked, folder / "questions.safetensors")
    found = [folder / name for name in ("questions.safetensors", "answers.safetensors")]
    assert reopened.main([str(export), *map(str, found)]) == 0
    from safetensors.torch import load_file

    replies = load_file(found[1])
    return [replies[str(number)] for number in range(len(asked))]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tied_decoder):
    """A finished run: an adapter, trained far enough that it matters."""
    folder = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DTL_CACHE", str(folder / "cache"))
        tiny.write_rows(folder / "rows.jsonl", [{"text": text} for text in TEXTS])
        config = {
            "run": {"dir": str(folder / "runs"), "name": "done"},
            "model": {"path": str(tied_decoder), "dtype": "fp32"},
            "task": "causal_lm",
            "data": {"train": str(folder / "rows.jsonl"), "eval_fraction": 0.5},
            "strategy": {"name": "lora", "rank": 2},
            "optim": {"learning_rate": 0.05},
            "train": {"steps": 3, "global_batch": 4},
            "layout": {"processes_per_node": 1, "zero_stage": 0},
        }
        (folder / "done.yaml").write_text(json.dumps(config))
        done = api.train(load_config(folder / "done.yaml"), print_line=lambda line: None)
    assert done.exit_code == 0
    return done.run


@pytest.fixture
def run(trained, monkeypatch):
    monkeypatch.setenv("DTL_CACHE", str(trained.path.parents[1] / "cache"))
    monkeypatch.setattr(job, "answers_in_fresh_process", in_this_process)
    return trained


def as_trained(run, base):
    """Logits of plain PEFT over the run's own export."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), run.export).eval()


def logits(model, folder):
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)(TEXTS[-1], return_tensors="pt").input_ids
    with torch.no_grad():
        return model(input_ids=tokens).logits


def test_a_merged_model_opens_without_peft_and_says_the_same(trained, monkeypatch, tied_decoder):
    """Through the fresh process itself; the card has the numbers of the run."""
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("DTL_CACHE", str(trained.path.parents[1] / "cache"))
    said = []
    path = api.export(trained.path, merge=True, print_line=said.append)
    assert path == trained.path / "export-merged"
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.lm_head.weight is model.model.embed_tokens.weight
    expected = logits(as_trained(trained, tied_decoder), path)
    assert torch.allclose(logits(model, path), expected, atol=1e-5)
    base = AutoModelForCausalLM.from_pretrained(tied_decoder).eval()
    assert not torch.allclose(logits(base, path), expected, atol=1e-2)
    card = (path / "README.md").read_text()
    (told,) = [line for line in said if "largest difference of a logit" in line]
    assert told.strip() in card and "on 4 held-out rows" in told
    assert trained.data["base"] in card
    assert trained.data["sources"]["data.train"]["sha256"] in card
    assert "| wall time |" in card and "CPU cores" in card and "kWh" not in card
    assert "95 % interval of perplexity" in card
    assert not list(trained.path.glob(".export*"))


def test_shards_of_a_size_and_another_number_format(run, tied_decoder):
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    path = api.export(run.path, merge=True, dtype="bf16", shard_size="20KB", print_line=str)
    assert path.name == "export-merged-bf16"
    shards = sorted(path.glob("model-*.safetensors"))
    assert len(shards) > 1
    for shard in shards:
        with safe_open(shard, framework="pt") as opened:
            assert opened.get_tensor(next(iter(opened.keys()))).dtype == torch.bfloat16
        assert stat.S_IMODE(shard.stat().st_mode) & 0o044
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    expected = logits(as_trained(run, tied_decoder), path)
    assert 0 < (logits(model, path) - expected).abs().max() < 0.05 * expected.abs().max()


def test_the_adapter_alone_from_an_unfinished_run(run, tmp_path, tied_decoder):
    """Its newest checkpoint counts; a finished run that has lost it gives its export, and says
    so."""
    import shutil

    stopped = shutil.copytree(run.path, tmp_path / "stopped", ignore=lambda *_: ["result.json"])
    path = api.export(stopped, to=tmp_path / "adapter", print_line=str)
    model = as_trained(run, tied_decoder)
    from peft.utils import load_peft_weights

    mine, theirs = (load_peft_weights(str(one), device="cpu") for one in (path, run.export))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    whole = shutil.copytree(run.path, tmp_path / "whole")
    shutil.rmtree(whole / "checkpoints")
    said = []
    again = api.export(whole, merge=True, to=tmp_path / "merged", print_line=said.append)
    assert any("there is no checkpoint of step 3" in line for line in said)
    from transformers import AutoModelForCausalLM

    merged = AutoModelForCausalLM.from_pretrained(again).eval()
    assert torch.allclose(logits(merged, again), logits(model, again), atol=1e-5)
    shutil.rmtree(stopped / "checkpoints")
    with pytest.raises(DtlError, match="has no whole checkpoint yet"):
        api.export(stopped, to=tmp_path / "none", print_line=str)


def test_an_export_that_is_not_what_was_trained_is_refused(run, tmp_path, monkeypatch):
    def other(export, asked, folder):
        found = in_this_process(export, asked, folder)
        return [found[0] + 0.01, *found[1:]]

    monkeypatch.setattr(job, "answers_in_fresh_process", other)
    with pytest.raises(RunFailed, match="what was written is not what was trained"):
        api.export(run.path, to=tmp_path / "new" / "wrong", print_line=str)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_merge_that_changes_the_model_is_refused(run, tmp_path, monkeypatch):
    strategy = type(assemble(run.config).strategy)
    monkeypatch.setattr(strategy, "merge", lambda self, model: model.unload())
    with pytest.raises(RunFailed, match="the merged model is another function"):
        api.export(run.path, merge=True, to=tmp_path / "lost", print_line=str)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"quantize": "int8"}, "an adapter alone is not quantised; add --merge"),
        ({"merge": True, "shard_size": "big"}, "'big' is no size; write it as 5GB"),
        ({"form": "onnx", "dtype": "bf16"}, "an ONNX graph is written in fp32"),
        ({"form": "gguf", "quantize": "int8"}, "weights are safetensors, not gguf"),
        ({"form": "gguf", "converter": "none.py"}, "--converter: there is no file none.py"),
        ({"to": "."}, "is there already; remove it yourself, or name another place with --to"),
    ],
)
def test_what_cannot_be_asked_for_is_one_sentence(run, asked, told):
    with pytest.raises(DtlError) as fault:
        api.export(run.path, print_line=str, **asked)
    assert told in str(fault.value) and len(str(fault.value).splitlines()) == 1


def test_a_disk_that_is_too_small_is_told_before_anything_is_read(run, monkeypatch, tmp_path):
    assert free_disk_bytes(str(tmp_path)) > 1000
    monkeypatch.setattr(job, "free_disk_bytes", lambda folder: 1000)
    monkeypatch.setattr(job, "open_trained", None)
    with pytest.raises(DtlError, match="1000 B are free, and the export takes"):
        api.export(run.path, merge=True, to=tmp_path / "new", print_line=str)


def test_onnx_without_its_packages_says_how_to_get_them(run, monkeypatch):
    monkeypatch.setattr(job.graph, "find_spec", lambda name: None)
    with pytest.raises(DtlError, match=r"onnx needs onnx, .*; pip install 'dtl\[onnx\]'"):
        api.export(run.path, form="onnx", print_line=str)


def test_an_onnx_graph_says_the_same_to_onnxruntime_at_other_lengths(run, tmp_path, tied_decoder):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = api.export(run.path, form="onnx", to=tmp_path / "graph", print_line=str)
    session = onnxruntime.InferenceSession(path / "model.onnx")
    tokens = torch.arange(3, 3 + 2 * 13).view(2, 13)
    given = {"input_ids": tokens.numpy(), "attention_mask": torch.ones_like(tokens).numpy()}
    with torch.no_grad():
        expected = as_trained(run, tied_decoder)(input_ids=tokens).logits
    assert torch.allclose(torch.from_numpy(session.run(None, given)[0]), expected, atol=1e-4)


CONVERTER = """
import json, sys
model, *options = sys.argv[1:]
assert options[0::2] == ["--outfile", "--outtype"], options
assert json.load(open(model + "/config.json"))["model_type"] == "llama"
open(options[1], "w").write("GGUF " + options[3] + open(model + "/tokenizer.json").read()[:1])
"""


def test_gguf_comes_of_the_merged_model_by_the_named_converter(run, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("DTL_GGUF_CONVERTER", raising=False)
    with pytest.raises(DtlError, match=r"convert_hf_to_gguf.py, which is not on PATH; git clone"):
        api.export(run.path, form="gguf", print_line=str)
    (tmp_path / "convert_hf_to_gguf.py").write_text(CONVERTER)
    said = []
    path = api.export(
        run.path, form="gguf", dtype="fp16", to=tmp_path / "g", print_line=said.append
    )
    assert (path / "done-fp16.gguf").read_text() == "GGUF f16{"
    assert not list(path.glob("*.safetensors")) and "not compared" in said[1]
    assert "| against the trained model | not compared |" in (path / "README.md").read_text()
    (tmp_path / "convert_hf_to_gguf.py").write_text("import sys; sys.exit('no such architecture')")
    with pytest.raises(RunFailed, match="no such architecture"):
        api.export(run.path, form="gguf", to=tmp_path / "h", print_line=str)
    assert not (tmp_path / "h").exists()


# Merging, over kinds of models ------------------------------------------------------------------


def gpt2(folder):
    """Its linear layers are Conv1D, with the weights the other way round."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(7)
    config = GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    config.eos_token_id = config.bos_token_id = 2
    return tiny._save(GPT2LMHeadModel(config), tiny.tokenizer(), folder)


def adapted(base, auto, settings, **lora):
    """A base with an adapter and whole modules, all of it moved from where it starts."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model = get_peft_model(auto.from_pretrained(base, **settings), LoraConfig(r=2, **lora))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def merged_and_reopened(model, folder, dtype=torch.float32):
    from dtl.strategies.lora import Options, Plugin

    merged = Plugin(Options()).merge(model).eval()
    write_model(merged, local_state_dict(merged, learning_only=False), folder, dtype=dtype)
    return type(merged).from_pretrained(folder).eval()


@pytest.mark.parametrize(
    ("base", "learns"),
    [
        ("decoder", {"target_modules": "all-linear"}),
        ("tied_decoder", {"target_modules": "all-linear"}),
        ("tied_decoder", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
        ("decoder", {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True}),
        ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    ],
    ids=["linear", "tied", "tied-embeddings-learn", "dora-embeddings", "conv1d"],
)
@pytest.mark.filterwarnings("ignore::UserWarning:peft")  # PEFT tells that it unties what learns
def test_a_merged_language_model_is_the_same_function(base, learns, request, tmp_path):
    from transformers import AutoModelForCausalLM

    folder = gpt2(tmp_path / "gpt2") if base == "gpt2" else request.getfixturevalue(base)
    model = adapted(folder, AutoModelForCausalLM, {}, task_type="CAUSAL_LM", **learns)
    expected = logits(model, folder)
    found = logits(merged_and_reopened(model, tmp_path / "merged"), folder)
    assert torch.allclose(found, expected, atol=1e-4)


def test_new_tokens_survive_the_merge(tied_decoder, tmp_path):
    """The vocabulary has grown, and input and output are still one."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tied_decoder)
    base.resize_token_embeddings(base.config.vocab_size + 5)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).eval()
    tokens = torch.tensor([[3, base.config.vocab_size - 1, 4]])
    with torch.no_grad():
        expected = model(input_ids=tokens).logits
        reopened_model = merged_and_reopened(model, tmp_path / "merged")
        found = reopened_model(input_ids=tokens).logits
    assert found.shape[-1] == base.config.vocab_size and torch.allclose(found, expected, atol=1e-5)
    assert reopened_model.lm_head.weight is reopened_model.model.embed_tokens.weight


def test_a_new_head_survives_the_merge(encoder, tmp_path):
    from transformers import AutoModelForSequenceClassification

    auto = AutoModelForSequenceClassification
    whole = {"modules_to_save": ["classifier"], "target_modules": ["query", "value"]}
    model = adapted(encoder, auto, {"num_labels": 3}, task_type="SEQ_CLS", **whole)
    expected = logits(model, encoder)
    found = logits(merged_and_reopened(model, tmp_path / "merged"), encoder)
    assert found.shape == (1, 3) and torch.allclose(found, expected, atol=1e-5)


def test_convolutions_and_running_statistics_survive_the_merge(resnet, tmp_path):
    from transformers import AutoModelForImageClassification

    auto = AutoModelForImageClassification
    where = {"target_modules": ["convolution"], "modules_to_save": ["classifier"]}
    model = adapted(resnet, auto, {"num_labels": 3}, **where)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-0.1, 0.1)
    pictures = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(pixel_values=pictures).logits
        found = merged_and_reopened(model, tmp_path / "merged")(pixel_values=pictures).logits
    assert torch.allclose(found, expected, atol=1e-4)


def test_eight_bits_are_saved_and_opened_again(run, tmp_path):
    pytest.importorskip("bitsandbytes")
    path = api.export(run.path, merge=True, quantize="int8", to=tmp_path / "eight", print_line=str)
    from safetensors import safe_open

    with safe_open(path / "model.safetensors", framework="pt") as opened:
        name = "model.layers.0.self_attn.q_proj.weight"
        assert opened.get_tensor(name).dtype == torch.int8


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_four_bits_lose_what_the_levels_lose_and_nothing_more(run, tmp_path, dtype):
    """Beside the merged model, each of whose linear layers is rounded here."""
    functional = pytest.importorskip("bitsandbytes").functional
    from transformers import AutoModelForCausalLM

    said = []
    how = {"merge": True, "dtype": dtype}
    path = api.export(run.path, quantize="nf4", to=tmp_path / "four", print_line=said.append, **how)
    merged = api.export(run.path, to=tmp_path / "whole", print_line=str, **how)
    plain = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    trained = logits(plain, merged)
    for name, layer in plain.named_modules():
        if isinstance(layer, torch.nn.Linear) and name != "lm_head":
            levels, scales = functional.quantize_4bit(
                layer.weight.data, quant_type="nf4", compress_statistics=True
            )
            layer.weight.data = functional.dequantize_4bit(levels, scales)
    rounded, opened = logits(plain, merged), logits(load_export(path).model, path)
    assert torch.allclose(opened, rounded, atol=1e-5 * float(trained.abs().max()))
    assert not torch.allclose(opened, trained, atol=0.01 * float(trained.abs().max()))
    card = (path / "README.md").read_text()
    (told,) = [line for line in said if "largest difference of a logit" in line]
    assert told.strip() in card and "(1 allowed)" in told


def test_four_bits_that_are_read_otherwise_than_written_are_refused(run, tmp_path, monkeypatch):
    """However small that is beside what the bits themselves lose."""
    pytest.importorskip("bitsandbytes")

    def nearly(*given):
        return [one * 1.001 for one in in_this_process(*given)]

    monkeypatch.setattr(job, "answers_in_fresh_process", nearly)
    with pytest.raises(RunFailed, match=r"0\.001 of the largest logit \(0\.0001 allowed\)"):
        api.export(run.path, merge=True, quantize="nf4", to=tmp_path / "four", print_line=str)
    assert not (tmp_path / "four").exists()


# What a difference is ---------------------------------------------------------------------------


def test_a_difference_is_measured_against_the_largest_logit():
    trained = [torch.tensor([[4.0, -8.0]]), torch.tensor([[1.0, 2.0]])]
    saved = [torch.tensor([[4.5, -8.0]]), torch.tensor([[2.0, 1.75]])]
    found = compare_logits(trained, saved, rows="2 rows", allowed=0.125)
    assert (found.largest, found.scale, found.same, found.is_small) == (1.0, 8.0, 0.5, True)
    assert not compare_logits(trained, saved, rows="", allowed=0.12).is_small
    assert not compare_logits(
        trained, [saved[0], saved[1] * float("nan")], rows="", allowed=9
    ).is_small
    assert not compare_logits(trained, [saved[0], saved[1][:, :1]], rows="", allowed=9).is_small


def test_questions_are_read_as_they_were_written(tmp_path, decoder):
    from transformers import AutoModelForCausalLM

    asked = [
        {"input_ids": torch.tensor([[3 + number, 4]]), "use_cache": False} for number in range(12)
    ]
    save_inputs(asked, tmp_path / "questions")
    again = load_inputs(tmp_path / "questions")
    assert [question["use_cache"] for question in again] == [False] * 12
    model = AutoModelForCausalLM.from_pretrained(decoder).eval()
    assert all(map(torch.equal, compute_logits(model, asked), compute_logits(model, again)))


def test_a_run_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(DtlError, match="there is no run in this folder"):
        api.export(tmp_path, print_line=str)
    assert RunFolder(tmp_path).state == "absent"
