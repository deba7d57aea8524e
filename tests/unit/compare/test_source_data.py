"""`compare.source_data` is read with the options of `data`, whichever head scores it."""

from __future__ import annotations

import json

import pytest

from dtl.compare import forgetting
from dtl.config.load import load_config
from dtl.config.schema import Source

OPTIONS = {
    "encoding": "cp1252",
    "delimiter": ";",
    "column_names": ["body", "label"],
    "columns": {"text": "body"},
    "on_bad_row": "skip",
    "max_bad_fraction": 0.5,
}


@pytest.mark.parametrize("has_pretrained_head", [True, False])
def test_source_data_has_the_options_of_the_data(has_pretrained_head, tmp_path, monkeypatch):
    config = {
        "model": {"path": "base"},
        "task": "text_classification",
        "data": {"train": "train.csv", "mix": ["more.csv"], "eval_fraction": 0.5, **OPTIONS},
        "strategy": "full",
        "train": {"steps": 1},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(config), encoding="utf-8")
    seen = []
    monkeypatch.setattr(forgetting, "_uses_pretrained_head", lambda config: has_pretrained_head)
    monkeypatch.setattr(forgetting, "score_base", lambda config, **_: seen.append(config.data))
    source = Source(path="source.csv", encoding="latin-1")
    forgetting.score_source(
        load_config(tmp_path / "run.yaml"), source, None, out=None, print_line=print
    )
    (data,) = seen
    assert data.eval == source and data.eval_fraction is None
    read = data.with_file_options(data.eval)
    assert read.encoding == source.encoding, "its own option comes first"
    assert (read.delimiter, read.column_names) == (";", ("body", "label"))
    assert data.columns == {"text": "body"}
    assert (data.on_bad_row, data.max_bad_fraction) == ("skip", 0.5)
    if not has_pretrained_head:
        assert data.train == source and data.mix == ()
