"""The CTC recipes plan, with a small model of the same kind and a few clips."""

from __future__ import annotations

from pathlib import Path

import pytest

from dtl.config.load import load_config
from dtl.config.recipes import list_recipes
from dtl.prepare import prepared_run
from tests import tiny, tiny_sound, tiny_speech

RECIPES = {recipe.name: recipe.path for recipe in list_recipes()}
CHARACTERS = {name: n for n, name in enumerate(["<pad>", "<unk>", "|", *"aeimnost"])}


def audio_only(folder: Path) -> Path:
    return tiny_sound.wav2vec2(folder)


def of_languages(folder: Path) -> Path:
    return tiny_speech.writing(folder, {"eng": CHARACTERS, "pol": CHARACTERS}, language="eng")


@pytest.mark.parametrize(
    ("name", "base", "learns"),
    [("speech/xls-r", audio_only, "all"), ("speech/mms", of_languages, "adapters")],
)
def test_a_ctc_recipe_plans(
    name: str, base: object, learns: str, tmp_path: Path, cache: Path
) -> None:
    """Rows as the corpus has them, with `transcript`."""
    rows = []
    for place, row in enumerate(tiny_speech.transcribed(20)):
        (tmp_path / f"{place}.wav").write_bytes(row["audio"])
        rows.append({"audio": f"{place}.wav", "transcript": row["text"]})
    file = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    model = base(tmp_path / "model")  # type: ignore[operator]
    config = load_config(
        RECIPES[name], [f"model.path={model}", f"data.train={file}", f"data.eval={file}"]
    )
    prepared = prepared_run.prepare_run(config)
    counts, dataset_stats = prepared.plan.parameters, prepared.data.dataset_stats
    assert len(prepared.data.train) == 20
    if learns == "all":
        assert dataset_stats["new_head"] and counts.trainable > 9 * counts.frozen > 0
    else:
        adapter = 2 * 32 + 32 * 4 + 4 + 4 * 32 + 32  # norm, down to 4 and up again
        assert counts.trainable == 2 * adapter + 32 * 11 + 11 + 2 * 2 * 8 * (32 + 32)
        assert dataset_stats["target_lang"] == "pol"
