"""A run on a quantized base, from training to the export."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from dtl import api
from dtl.config import registry
from dtl.config.load import load_config
from dtl.export.load_export import load_export
from dtl.models.load import load_pretrained
from dtl.models.pretrained_config import HeadConfig
from dtl.models.quantization import quantize
from dtl.run.folder import RunFolder
from tests import tiny
from tests.unit.models.quantization.quantized_models import bits, lora


@pytest.fixture
def completed_run(cache, tmp_path, encoder) -> RunFolder:
    """A classifier on a base in nf4, loaded in bf16."""
    rows = [
        {"text": f"{label} {' '.join(tiny.WORDS[:length])}", "label": label}
        for label in ("early", "late")
        for length in range(1, 6)
    ]
    data = str(tiny.write_rows(tmp_path / "rows.jsonl", rows))
    written = {
        "run": {"dir": str(tmp_path / "runs"), "name": "done"},
        "model": {"path": str(encoder), "dtype": "bf16", "quantize": "nf4"},
        "task": "text_classification",
        "data": {"train": data, "eval": data},
        "strategy": {"name": "lora", "rank": 2},
        "optim": {"learning_rate": 0.01},
        "train": {"steps": 3, "global_batch": 4},
        "layout": {"processes_per_node": 1, "zero_stage": 0},
    }
    (tmp_path / "done.yaml").write_text(json.dumps(written))
    result = api.train(load_config(tmp_path / "done.yaml"), print_line=lambda line: None)
    assert result.exit_code == 0
    return result.run


def test_export_of_a_quantized_run_loads_on_the_same_base(completed_run, tmp_path, encoder):
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    saved = load_file(next(completed_run.checkpoints.glob("*3/part-00001.safetensors")))
    assert not any("base_layer" in name for name in saved), "checkpoints hold the adapter alone"
    data = str(tmp_path / "rows.jsonl")
    trained = completed_run.result["scores"]["adapted"]["loss"]
    assert api.evaluate(completed_run.path, data)["loss"] == pytest.approx(trained, rel=1e-2)
    card = (completed_run.export / "README.md").read_text()
    assert (
        "| base quantized to | nf4 (bitsandbytes), double quantization (scales in 8 bits)" in card
    )
    assert "To merge it, dequantize these first." in card
    code = card.split("```python\n")[1].split("```")[0]
    run = code.replace("path/of/this/folder", str(completed_run.export))
    namespace: dict[str, Any] = {}
    exec(run, namespace)
    inputs = AutoTokenizer.from_pretrained(completed_run.export)("a letter", return_tensors="pt")
    opened = load_export(completed_run.export)
    levels = [
        [bits(layer.weight) for _, layer in quantize.quantized_layers(model)]
        for model in (opened.model, namespace["base"])
    ]
    assert levels[0] and all(map(torch.equal, *levels))
    assert isinstance(opened.model, PeftModel)
    for module in namespace[
        "base"
    ].modules():  # it would repack weights, in blocks that are too wide
        module.support_avx512bf16_for_cpu = False
    with torch.no_grad():
        shares = namespace["model"].eval()(**inputs).logits[0].float().softmax(-1).tolist()
    (row,) = api.predict(completed_run.path, ["a letter"])
    assert list(row["probabilities"].values()) == pytest.approx(shares, abs=5e-3)
    merged = lora().merge(opened.model)
    with torch.no_grad():
        again = merged(**inputs).logits[0].softmax(-1).tolist()
    assert list(row["probabilities"].values()) == pytest.approx(again, abs=1e-6)

    lora_file = registry.load("strategies", "lora")
    further = lora_file.Plugin(lora_file.Options(continue_from=str(completed_run.export)))
    source = completed_run.config.model
    loaded = load_pretrained(
        source,
        head=HeadConfig("AutoModelForSequenceClassification", {}),
        random_init=False,
        seed=0,
        dtype="fp32",
    )
    assert "classifier.weight" in loaded.new_parameters
    model = further.apply(loaded.model, new_parameters=loaded.new_parameters).eval()
    further.load_initial_values(
        model, write_parameter=lambda parameter, value: parameter.data.copy_(value)
    )
    with torch.no_grad():
        begins = model(**inputs).logits[0].softmax(-1).tolist()
    assert list(row["probabilities"].values()) == pytest.approx(begins, abs=5e-3)
    assert any(value.abs().max() > 1e-3 for n, value in model.named_parameters() if "lora_B" in n)
