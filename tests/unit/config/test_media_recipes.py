"""The recipes for pictures and sounds plan, with a small model of the same kind and a few rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dtl.config.load import load_config
from dtl.config.recipes import list_recipes
from dtl.prepare import prepared_run
from tests import tiny_sound, tiny_vision

RECIPES = {recipe.name: recipe.path for recipe in list_recipes()}


@pytest.mark.parametrize(
    ("name", "base", "rows", "column", "learns"),
    [
        ("vision/vit", tiny_vision.vit, tiny_vision.pictures, "labels", "all"),
        ("vision/convnext", tiny_vision.convnext, tiny_vision.pictures, "label", "all"),
        ("vision/resnet-50", tiny_vision.resnet, tiny_vision.pictures, "label", "head"),
        ("speech/keywords", tiny_sound.wav2vec2, tiny_sound.tones, "label", "most"),
    ],
)
def test_a_recipe_plans(
    name: str, base: Any, rows: Any, column: str, learns: str, tmp_path: Path, cache: Path
) -> None:
    """Columns are named as the data set of the recipe has them."""
    import pyarrow as pa
    from pyarrow import parquet

    columns = load_config(RECIPES[name]).data.columns
    assert columns.get("label", "label") == column
    theirs = [{columns.get(key, key): value for key, value in row.items()} for row in rows(12)]
    parquet.write_table(pa.Table.from_pylist(theirs), tmp_path / "rows.parquet")
    given = [f"model.path={base(tmp_path / 'model')}"]
    given += [f"data.{part}={tmp_path / 'rows.parquet'}" for part in ("train", "eval")]
    prepared = prepared_run.prepare_run(load_config(RECIPES[name], given))
    counts = prepared.plan.parameters
    assert len(prepared.data.train) == 12
    assert {"all": counts.frozen == 0, "head": counts.trainable < counts.frozen}.get(
        learns, counts.trainable > counts.frozen > 0
    )
