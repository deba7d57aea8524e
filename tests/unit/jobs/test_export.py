"""What `dtl export` writes is the trained model, as plain transformers and PEFT load it."""

import json
import stat

import pytest
import torch

from dtl import api
from dtl.assembly.parts import assemble
from dtl.config.load import load_config
from dtl.core.errors import DtlError, RunFailed
from dtl.export import onnx, plan, sample_logits_process
from dtl.export.load_export import load_export
from dtl.export.sample_inputs import save_inputs
from dtl.jobs import export as export_job
from dtl.plan.hardware import free_disk_bytes
from dtl.run.folder import RunFolder
from tests import tiny

TEXTS = [" ".join(tiny.WORDS[:length]) for length in range(3, 11)]


def compute_logits_in_this_process(export, inputs, folder):
    """Do what the fresh process does, without the seconds of its start."""
    from safetensors.torch import load_file

    files = [folder / name for name in ("inputs.safetensors", "logits.safetensors")]
    save_inputs(inputs, files[0])
    assert sample_logits_process.main([str(export), *map(str, files)]) == 0
    logits = load_file(files[1])
    return [logits[str(index)] for index in range(len(inputs))]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tied_decoder):
    """A finished run with an adapter that changes the logits."""
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
    replace_fresh_process(monkeypatch, compute_logits_in_this_process)
    return trained


def replace_fresh_process(monkeypatch, compute):
    monkeypatch.setattr(export_job, "compute_logits_in_fresh_process", compute)


def load_with_peft(run, base):
    """Load the run's own export with plain PEFT."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), run.export).eval()


def logits(model, folder):
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)(TEXTS[-1], return_tensors="pt").input_ids
    with torch.no_grad():
        return model(input_ids=tokens).logits


def test_merged_model_gives_the_same_logits_without_peft(trained, monkeypatch, tied_decoder):
    """With a real fresh process. The card has the results of the run."""
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("DTL_CACHE", str(trained.path.parents[1] / "cache"))
    printed = []
    path = api.export(trained.path, merge=True, print_line=printed.append)
    assert path == trained.path / "export-merged"
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.lm_head.weight is model.model.embed_tokens.weight
    expected = logits(load_with_peft(trained, tied_decoder), path)
    assert torch.allclose(logits(model, path), expected, atol=1e-5)
    base = AutoModelForCausalLM.from_pretrained(tied_decoder).eval()
    assert not torch.allclose(logits(base, path), expected, atol=1e-2)
    card = (path / "README.md").read_text()
    (difference,) = [line for line in printed if "largest logit difference" in line]
    assert difference.strip() in card and "on 4 held-out rows" in difference
    assert trained.data["base"] in card
    assert trained.data["sources"]["data.train"]["sha256"] in card
    assert "| wall time |" in card and "CPU cores" in card and "kWh" not in card
    assert "95 % confidence interval of perplexity" in card
    assert not list(trained.path.glob(".export*"))


def test_shards_have_the_requested_size_and_dtype(run, tied_decoder):
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
    expected = logits(load_with_peft(run, tied_decoder), path)
    assert 0 < (logits(model, path) - expected).abs().max() < 0.05 * expected.abs().max()


def test_newest_checkpoint_of_unfinished_run_is_exported(run, tmp_path, tied_decoder):
    """Of a finished run without a checkpoint, the export is used, which is printed."""
    import shutil

    stopped = shutil.copytree(run.path, tmp_path / "stopped", ignore=lambda *_: ["result.json"])
    path = api.export(stopped, target=tmp_path / "adapter", print_line=str)
    model = load_with_peft(run, tied_decoder)
    from peft.utils import load_peft_weights

    exported, expected = (load_peft_weights(str(each), device="cpu") for each in (path, run.export))
    assert exported.keys() == expected.keys()
    assert all(torch.equal(exported[name], expected[name]) for name in expected)
    finished = shutil.copytree(run.path, tmp_path / "finished")
    shutil.rmtree(finished / "checkpoints")
    printed = []
    merged_folder = api.export(
        finished, merge=True, target=tmp_path / "merged", print_line=printed.append
    )
    assert any("There is no checkpoint of step 3" in line for line in printed)
    from transformers import AutoModelForCausalLM

    merged = AutoModelForCausalLM.from_pretrained(merged_folder).eval()
    assert torch.allclose(logits(merged, merged_folder), logits(model, merged_folder), atol=1e-5)
    shutil.rmtree(stopped / "checkpoints")
    with pytest.raises(DtlError, match="has no intact checkpoint"):
        api.export(stopped, target=tmp_path / "none", print_line=str)


def test_export_that_differs_from_the_trained_model_is_removed(run, tmp_path, monkeypatch):
    def compute_other_logits(export, inputs, folder):
        first, *others = compute_logits_in_this_process(export, inputs, folder)
        return [first + 0.01, *others]

    replace_fresh_process(monkeypatch, compute_other_logits)
    with pytest.raises(RunFailed, match="the export differs from the trained model"):
        api.export(run.path, target=tmp_path / "new" / "wrong", print_line=str)
    assert list((tmp_path / "new").iterdir()) == []


def test_merge_that_changes_the_logits_fails(run, tmp_path, monkeypatch):
    strategy = type(assemble(run.config).strategy)
    monkeypatch.setattr(strategy, "merge", lambda self, model: model.unload())
    with pytest.raises(RunFailed, match="the merged model differs from the trained model"):
        api.export(run.path, merge=True, target=tmp_path / "lost", print_line=str)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "int8"}, "an adapter cannot be quantized without its base. Fix: add --merge"),
        ({"merge": True, "shard_size": "big"}, "'big' is not a size. Fix: write it like 5GB"),
        ({"format": "onnx", "dtype": "bf16"}, "an ONNX graph is written in fp32"),
        ({"format": "gguf", "quantize": "int8"}, "weights are stored as safetensors, not as gguf"),
        ({"format": "gguf", "converter": "none.py"}, "--converter: there is no file none.py"),
        ({"target": "."}, "exists already. Fix: remove it, or choose another one with --to"),
    ],
)
def test_contradicting_options_give_one_line(run, options, message):
    with pytest.raises(DtlError) as caught:
        api.export(run.path, print_line=str, **options)
    assert message in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_too_small_disk_is_reported_before_anything_is_loaded(run, monkeypatch, tmp_path):
    assert free_disk_bytes(str(tmp_path)) > 1000
    monkeypatch.setattr(plan, "free_disk_bytes", lambda folder: 1000)
    monkeypatch.setattr(export_job, "load_trained_model", None)
    with pytest.raises(DtlError, match=r"the disk is too small \(export .*, free 1000 B\)"):
        api.export(run.path, merge=True, target=tmp_path / "new", print_line=str)


def test_missing_onnx_packages_are_named_with_the_command_that_installs_them(run, monkeypatch):
    monkeypatch.setattr(onnx, "find_spec", lambda name: None)
    with pytest.raises(DtlError, match=r"onnx needs onnx, .*pip install 'dtl\[onnx\]'"):
        api.export(run.path, format="onnx", print_line=str)


def test_onnx_graph_gives_the_same_logits_at_other_lengths(run, tmp_path, tied_decoder):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = api.export(run.path, format="onnx", target=tmp_path / "graph", print_line=str)
    session = onnxruntime.InferenceSession(path / "model.onnx")
    tokens = torch.arange(3, 3 + 2 * 13).view(2, 13)
    inputs = {"input_ids": tokens.numpy(), "attention_mask": torch.ones_like(tokens).numpy()}
    with torch.no_grad():
        expected = load_with_peft(run, tied_decoder)(input_ids=tokens).logits
    assert torch.allclose(torch.from_numpy(session.run(None, inputs)[0]), expected, atol=1e-4)


CONVERTER = """
import json, sys
model, *options = sys.argv[1:]
assert options[0::2] == ["--outfile", "--outtype"], options
assert json.load(open(model + "/config.json"))["model_type"] == "llama"
open(options[1], "w").write("GGUF " + options[3] + open(model + "/tokenizer.json").read()[:1])
"""


def test_gguf_is_converted_from_the_merged_model(run, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("DTL_GGUF_CONVERTER", raising=False)
    with pytest.raises(
        DtlError, match=r"convert_hf_to_gguf.py, which is not on PATH. Fix: run `git clone"
    ):
        api.export(run.path, format="gguf", print_line=str)
    (tmp_path / "convert_hf_to_gguf.py").write_text(CONVERTER)
    printed = []
    path = api.export(
        run.path, format="gguf", dtype="fp16", target=tmp_path / "g", print_line=printed.append
    )
    assert (path / "done-fp16.gguf").read_text() == "GGUF f16{"
    assert not list(path.glob("*.safetensors")) and "not compared" in printed[1]
    assert "| compared with the trained model | not compared |" in (path / "README.md").read_text()
    (tmp_path / "convert_hf_to_gguf.py").write_text("import sys; sys.exit('no such architecture')")
    with pytest.raises(RunFailed, match="no such architecture"):
        api.export(run.path, format="gguf", target=tmp_path / "h", print_line=str)
    assert not (tmp_path / "h").exists()


def test_int8_weights_are_saved_and_loaded(run, tmp_path):
    pytest.importorskip("bitsandbytes")
    path = api.export(
        run.path, merge=True, quantize="int8", target=tmp_path / "eight", print_line=str
    )
    from safetensors import safe_open

    with safe_open(path / "model.safetensors", framework="pt") as opened:
        name = "model.layers.0.self_attn.q_proj.weight"
        assert opened.get_tensor(name).dtype == torch.int8


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_nf4_export_has_only_the_error_of_quantization(run, tmp_path, dtype):
    """Compared with the merged model, whose linear layers are quantized and dequantized here."""
    functional = pytest.importorskip("bitsandbytes").functional
    from transformers import AutoModelForCausalLM

    printed = []
    options = {"merge": True, "dtype": dtype}
    path = api.export(
        run.path, quantize="nf4", target=tmp_path / "four", print_line=printed.append, **options
    )
    merged = api.export(run.path, target=tmp_path / "merged", print_line=str, **options)
    plain = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    trained = logits(plain, merged)
    for name, layer in plain.named_modules():
        if isinstance(layer, torch.nn.Linear) and name != "lm_head":
            levels, scales = functional.quantize_4bit(
                layer.weight.data, quant_type="nf4", compress_statistics=True
            )
            layer.weight.data = functional.dequantize_4bit(levels, scales)
    dequantized, loaded = logits(plain, merged), logits(load_export(path).model, path)
    assert torch.allclose(loaded, dequantized, atol=1e-5 * float(trained.abs().max()))
    assert not torch.allclose(loaded, trained, atol=0.01 * float(trained.abs().max()))
    card = (path / "README.md").read_text()
    (difference,) = [line for line in printed if "largest logit difference" in line]
    assert difference.strip() in card and "(tolerance 1)" in difference


def test_nf4_export_that_is_read_back_differently_fails(run, tmp_path, monkeypatch):
    """Also where that difference is much smaller than the error of quantization."""
    pytest.importorskip("bitsandbytes")

    def compute_scaled_logits(*arguments):
        return [logits * 1.001 for logits in compute_logits_in_this_process(*arguments)]

    replace_fresh_process(monkeypatch, compute_scaled_logits)
    with pytest.raises(RunFailed, match=r"0\.001 of the largest logit \(tolerance 0\.0001\)"):
        api.export(run.path, merge=True, quantize="nf4", target=tmp_path / "four", print_line=str)
    assert not (tmp_path / "four").exists()


def test_missing_run_is_reported(tmp_path):
    with pytest.raises(DtlError, match="there is no run in this folder"):
        api.export(tmp_path, print_line=str)
    assert RunFolder(tmp_path).state == "absent"
