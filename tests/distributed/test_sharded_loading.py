"""At ZeRO stage 3 a base has the weights and buffers that it has on one process."""

from __future__ import annotations

import json

import pytest

from tests.distributed import launching
from tests.zoo.bases import write_base

# Families whose initialization reads weights or their shapes, and some others.
BASES = {
    "pegasus": "seq2seq",
    "roformer": "text_classification",
    "regnet": "image_classification",
    "fsmt": "seq2seq",
    "whisper": "asr_seq2seq",
    "wav2vec2": "audio_classification",
    "funnel": "text_classification",
    "mamba": "causal_lm",
}
HEADS = {"seq2seq": "AutoModelForSeq2SeqLM", "asr_seq2seq": "AutoModelForSpeechSeq2Seq"}
HEADS["causal_lm"] = "AutoModelForCausalLM"


@pytest.fixture(scope="module")
def differences(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str] | str]:
    """What differs on two ranks, by family."""
    folder, bases = tmp_path_factory.mktemp("bases"), {}
    for model_type, task in BASES.items():
        head = HEADS.get(task, "AutoModel")
        write_base(model_type, task, head, folder / model_type)
        bases[model_type] = head
    job = {"call": "tests.distributed.sharded_loading", "bases": bases, "file": "found.json"}
    launching.run_jobs(2, [job], cwd=folder)
    return dict(json.loads((folder / "found.json").read_text()))


@pytest.mark.parametrize("model_type", BASES)
def test_base_is_the_same_at_stage_3(
    differences: dict[str, list[str] | str], model_type: str
) -> None:
    assert differences[model_type] == []
