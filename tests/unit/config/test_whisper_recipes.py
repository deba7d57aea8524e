"""The speech recipes plan, with a small Whisper and a few clips."""

from __future__ import annotations

from pathlib import Path

import pytest

from dtl.config.load import load_config
from dtl.config.recipes import list_recipes
from dtl.prepare import prepared_run
from tests import tiny, tiny_whisper

RECIPES = {recipe.name: recipe.path for recipe in list_recipes()}


@pytest.mark.parametrize(
    ("name", "learns"),
    [("speech/whisper-small", "all"), ("speech/whisper-large-v3-lora", "adapters")],
)
def test_a_whisper_recipe_plans(
    name: str, learns: str, whisper: Path, tmp_path: Path, cache: Path
) -> None:
    """Rows as the corpus has them, with `transcript`; of all layers, only positions stay."""
    clips = tmp_path / "clips"
    tiny_whisper.write_clips(clips, 20)
    rows = tiny.write_rows(
        clips / "corpus.jsonl",
        [
            {"audio": f"{place}.wav", "transcript": text}
            for place, text in enumerate(tiny_whisper.texts(20))
        ],
    )
    given = [f"model.path={whisper}", f"data.train={rows}", f"data.eval={rows}"]
    if learns == "all":
        given.append("task.max_seconds=2")
    config = load_config(RECIPES[name], given)
    prepared = prepared_run.prepare_run(config)
    counts = prepared.plan.parameters
    positions = 100 * 32
    if learns == "all":
        assert counts.frozen == positions
    else:
        # In 2 x 2 blocks, of which the decoder's attend twice: q and v of 6 attentions.
        assert counts.trainable == 6 * 2 * 32 * (32 + 32)
    assert len(prepared.data.train) == 20
    assert prepared.data.dataset_stats["language"] == "de"
