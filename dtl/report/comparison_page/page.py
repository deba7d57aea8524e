"""Builds the report page of a comparison."""

from __future__ import annotations

import time
from pathlib import Path

from dtl.compare.formatting import format_label_count, format_seed_count
from dtl.compare.records import Comparison, load_comparison
from dtl.report.comparison_page.charts import make_cost_charts, make_label_charts
from dtl.report.comparison_page.tables import (
    make_difference_tables,
    make_missing_table,
    make_rates_table,
    make_runs_table,
    make_summary_table,
)
from dtl.report.page import Block, Charts, Page, Section, Text, Tile


def build_comparison_page(folder: Path) -> Page:
    """Return the page of a comparison, as far as it has been run."""
    comparison = load_comparison(folder)
    better = "higher" if comparison.higher_is_better else "lower"
    return Page(
        title=comparison.name,
        state="finished" if comparison.is_finished else "unfinished",
        subtitle=f"{comparison.task} · {comparison.score_name}, {better} is better · "
        f"{', '.join(comparison.strategies)} · {format_seed_count(comparison)}",
        tiles=_make_tiles(comparison),
        sections=_make_sections(comparison),
        footer=f"dtl report, {time.strftime('%Y-%m-%d %H:%M:%S %z')}, from {folder}",
    )


def _make_tiles(comparison: Comparison) -> tuple[Tile, ...]:
    return tuple(
        Tile(
            f"with {format_label_count(one.labels, classes=comparison.classes)}",
            one.choice,
            "" if one.verdict == one.choice else one.verdict,
        )
        for one in comparison.recommendations
    )


def _make_sections(comparison: Comparison) -> tuple[Section, ...]:
    most = max(comparison.labels)
    cost_charts = make_cost_charts(comparison, most)
    costs = Charts(tuple(cost_charts)) if cost_charts else Text("No finished runs yet.")
    cost_title = f"Cost, with {format_label_count(most, classes=comparison.classes)}"
    return (
        Section("Recommendation", _recommendation_blocks(comparison)),
        Section(
            "Score and number of labels",
            (Charts(tuple(make_label_charts(comparison))), make_summary_table(comparison)),
        ),
        Section(cost_title, (costs,)),
        Section("Paired differences", make_difference_tables(comparison)),
        Section("Method", tuple(_method_blocks(comparison))),
    )


def _recommendation_blocks(comparison: Comparison) -> tuple[Block, ...]:
    """Return the recommendations, that for the most labels first."""
    texts = [one.text for one in reversed(comparison.recommendations)]
    if not texts:
        return (Text("No recommendation yet: too few runs are finished."),)
    return tuple(Text(text, is_strong=index == 0) for index, text in enumerate(texts))


def _method_blocks(comparison: Comparison) -> list[Block]:
    """Return the notes, the feature probe, the learning-rate search and all runs."""
    return [
        *(Text(f"Note: {note}.") for note in comparison.notes),
        _feature_probe_text(comparison),
        make_rates_table(comparison),
        make_runs_table(comparison),
        *make_missing_table(comparison),
    ]


def _feature_probe_text(comparison: Comparison) -> Text:
    probe = comparison.feature_probe
    if probe is None:
        return Text(f"No feature probe: {comparison.no_feature_probe}.")
    return Text(
        "Feature probe before any training: accuracy on features of the unadapted base, with "
        f"{format_label_count(probe.labels, classes=comparison.classes)}: linear probe "
        f"{probe.linear_probe:.3f}, nearest neighbors {probe.nearest_neighbors:.3f}, majority "
        f"class {probe.majority_class:.3f}."
    )
