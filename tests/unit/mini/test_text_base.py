"""The shipped base mini:text, and the command that writes it."""

import json
from pathlib import Path

import pytest

from dtl import mini
from dtl.mini import lexicon


def test_shipped_tokenizer_decodes_what_it_encodes():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(mini.base_folder("text"))
    special_ids = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert len(special_ids) == 3 and None not in special_ids
    assert len(tokenizer) == 4096
    assert tokenizer.chat_template is None
    for text in ("The room was lovely.", "    indented\n\tcode_like(x) ", "naïve 北京 🙂", ""):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids) == text
        assert tokenizer(text).input_ids == [tokenizer.bos_token_id, *ids]


def test_sentiment_words_are_single_tokens():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(mini.base_folder("text"))
    words = lexicon.POSITIVE + lexicon.NEGATIVE
    lengths = [len(tokenizer(f" {word}", add_special_tokens=False).input_ids) for word in words]
    assert sum(lengths) / len(lengths) < 1.1


def test_command_writes_config_and_tokenizer(small_source, monkeypatch, tmp_path):
    """`python -m dtl.mini text FOLDER` on a small source: the architecture of the shipped base."""
    from transformers import AutoConfig, AutoTokenizer

    from dtl.mini.__main__ import main

    monkeypatch.setattr(mini, "load_rows", lambda name, split: small_source[split])
    assert main(["text", str(tmp_path / "base")]) == 0
    written, shipped = (
        AutoConfig.from_pretrained(folder).to_diff_dict()
        for folder in (tmp_path / "base", mini.base_folder("text"))
    )
    assert written == shipped
    assert len(AutoTokenizer.from_pretrained(tmp_path / "base")) == 4096
    names = {path.name for path in Path(tmp_path / "base").iterdir()}
    assert names == {"config.json", "tokenizer.json", "tokenizer_config.json"}


def test_command_without_arguments_prints_usage(capsys):
    from dtl.mini.__main__ import main

    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "usage" in capsys.readouterr().err


@pytest.mark.slow
def test_base_can_be_trained_and_packed_again(small_source, cache, monkeypatch, tmp_path):
    """Trains configs/mini/text.yaml at a small scale, then packs its weights."""
    from safetensors.torch import load_file

    from dtl import api
    from dtl.config.load import load_config
    from dtl.mini.__main__ import main

    monkeypatch.chdir(tmp_path)
    for split in ("train", "heldout"):
        lines = "".join(json.dumps(row) + "\n" for row in small_source[split][:24])
        (tmp_path / f"{split}.jsonl").write_text(lines)
    recipe = Path(__file__).parents[3] / "configs" / "mini" / "text.yaml"
    overrides = ["data.train=train.jsonl", "data.eval=heldout.jsonl", "task.max_length=16"]
    overrides += ["train.epochs=null", "train.steps=2", "train.global_batch=4"]
    outcome = api.train(load_config(recipe, overrides), print_line=lambda line: None)
    assert outcome.exit_code == 0
    assert main(["text", str(tmp_path / "base"), "--weights", str(outcome.run.export)]) == 0
    packed = load_file(tmp_path / "base" / "model.safetensors")
    shipped = load_file(mini.base_folder("text") / "model.safetensors")
    assert {name: (v.shape, v.dtype) for name, v in packed.items()} == {
        name: (v.shape, v.dtype) for name, v in shipped.items()
    }
    assert sum(value.numel() for value in packed.values()) == 2_557_632
