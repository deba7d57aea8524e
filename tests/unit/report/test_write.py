"""A report shows what its run folder contains, loads nothing and escapes all text."""

import csv
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest

from dtl.cli.app import main
from dtl.compare import formatting, terminal
from dtl.compare.records import ConfidenceInterval, PairedDifference
from dtl.core.errors import DtlError
from dtl.core.files import write_record
from dtl.core.lock import Lease
from dtl.report import png_charts
from dtl.report.axis import Axis
from dtl.report.charts import LinePlot, Series, downsample, moving_average
from dtl.report.run_page.predictions import make_numbers_section
from dtl.report.svg_charts import draw_svg
from dtl.report.write import write_report
from tests.tiny_run import comparison, stopped_run

ATTACK = '<script>alert("x")</script><img src=x onerror=alert(1)>'
LABELS = ["calm", "loud & <b>bold</b>", "$odd_"]


@pytest.fixture
def run(tmp_path):
    """A classification with an attack in a text, stopped after 60 of 120 steps."""
    texts = [ATTACK if number == 3 else f"text {number}" for number in range(40)]
    return stopped_run(tmp_path, [{"text": text} for text in texts], labels=LABELS, why=ATTACK)


class Elements(HTMLParser):
    """The tags, addresses and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.texts = Counter(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.addresses += [v for k, v in attrs if k in ("src", "href", "action", "data", "srcset")]
        assert not any(name.startswith("on") for name, _ in attrs), attrs

    def handle_data(self, data):
        self.texts.append(data)


def render(run):
    return write_report(run.path, png=False).page.read_text(encoding="utf-8")


def read_csv(file):
    with file.open(newline="") as opened:
        return list(csv.reader(opened))


def test_text_of_the_data_is_escaped(run):
    text = render(run)
    page = Elements(text)
    assert page.tags["script"] == page.tags["img"] == page.tags["b"] == 0
    assert ATTACK in "".join(page.texts) and LABELS[1] in "".join(page.texts)
    assert all(address.startswith("data:") for address in page.addresses)
    assert not re.search(r"https?://|url\(|@import|<link rel=\"stylesheet", text)


def test_every_chart_has_title_description_and_csv(run):
    text = render(run)
    svgs = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]
    assert len(svgs) == 9  # scores, six curves, confusion, groups
    for svg in svgs:
        title, description = svg[0], svg[1]
        assert svg.get("role") == "img" and title.tag == "title" and description.tag == "desc"
        assert svg.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
        assert title.text and description.text
    tables = read_csv(run.path / "report" / "loss.csv")
    assert tables[0] == ["step", "loss"] and len(tables) == 61
    assert tables[7] == ["7", ""], "a loss that is not finite is a gap"
    assert [float(row[1]) for row in tables[1:7]] == [3.0 / step for step in range(1, 7)]
    assert read_csv(run.path / "report" / "loss_over_time.csv")[-1][0] == "30.0"


def test_confusion_matrix_and_group_scores_match_sklearn(run):
    from sklearn.metrics import confusion_matrix, f1_score

    render(run)
    outcomes = run.read_eval_records(60)
    labels, predicted = ([one[key] for one in outcomes] for key in ("label", "predicted"))
    counts = [row[1:] for row in read_csv(run.path / "report" / "confusion.csv")[1:]]
    assert np.array_equal(np.array(counts, dtype=int), confusion_matrix(labels, predicted))
    for group, examples, score, low, high in read_csv(run.path / "report" / "groups.csv")[1:]:
        members = [n for n, label in enumerate(labels) if LABELS[label] == group]
        expected = f1_score(
            [labels[n] for n in members], [predicted[n] for n in members], average="macro"
        )
        assert (int(examples), float(score)) == (len(members), pytest.approx(expected))
        assert float(low) <= float(score) <= float(high)


def test_page_lists_events_and_worst_examples_first(run):
    text = " ".join("".join(Elements(render(run)).texts).split())
    assert "stopped early" in text and "of 120" in text
    assert "phase 2: full" in text and "loss spike at step 50" in text and "9.5" in text
    assert "the gradient is inf" in text and "Skipped rows: 1" in text
    assert "520 B (weights 400 B, gradients 40 B, optimizer 80 B)" in text and "3.00 GiB" in text
    assert "text 36" in text and text.index("loss 9") < text.index("loss 1.39"), "worst first"
    write_launches(run)
    assert "Launches: 2." in render(run)


def write_launches(run):
    run.usage.mkdir()
    for number in (1, 2):
        note = {"began": 1e9 + number, "seconds": 60.0, "devices": {"card": 2}}
        write_record(run.usage / f"launch-{number}.json", note | {"energy_joules": None})


def test_state_is_running_stopped_or_finished(run):
    with Lease(run.path):
        assert '<span class="state running">running</span>' in render(run)
    not_scores = ("kind", "step", "model")
    scores = {key: v for key, v in list(run.read_metrics())[-1].items() if key not in not_scores}
    best = {"step": None, "score": None}
    run.finish({"steps": 60, "scores": {"adapted": scores}, "best": best, "weights": "adapted"})
    assert '<span class="state finished">finished</span>' in render(run)


def test_run_without_steps_has_a_page(run):
    (run.path / "metrics.jsonl").unlink()
    text = "".join(Elements(render(run)).texts)
    assert "No training step yet" in text and "No evaluation yet" in text


def test_rows_are_not_shown_if_the_data_has_changed(run, tmp_path):
    with (tmp_path / "held.jsonl").open("a") as file:
        file.write('{"text": "one more", "label": "calm"}\n')
    text = "".join(Elements(render(run)).texts)
    assert "the data has changed since the run began" in text and "text 36" not in text
    (tmp_path / "held.jsonl").unlink()
    assert "file not found" in "".join(Elements(render(run)).texts)


def test_png_charts_are_written_if_matplotlib_is_installed(run, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    report = write_report(run.path)
    files = sorted(path.stem for path in report.charts_folder.glob("*.png"))
    assert files == sorted(path.stem for path in report.charts_folder.glob("*.csv"))
    assert report.has_png and len(files) == 9
    assert all(p.read_bytes()[:4] == b"\x89PNG" for p in report.charts_folder.glob("*.png"))
    monkeypatch.setattr(png_charts, "has_matplotlib", lambda: False)
    with pytest.raises(DtlError, match=r"matplotlib is not installed\. Fix: run pip install"):
        write_report(run.path, png=True)
    assert main(["report", str(run.path)]) == 0
    assert "no PNG: matplotlib is not installed" in capsys.readouterr().out


def test_comparison_charts_match_comparison_json(tmp_path):
    names = ("scratch", ATTACK, "full")
    write_record(tmp_path / "comparison.json", comparison(names).to_dict())
    page = Elements(write_report(tmp_path, png=False).page.read_text(encoding="utf-8"))
    text = "".join(page.texts)
    assert page.tags["script"] == page.tags["img"] == 0 and page.tags["svg"] == 4
    assert f"Pareto-optimal in peak memory and f1: {names[1]}, full" in text
    charts = tmp_path / "report"
    over_labels = read_csv(charts / "score_over_labels.csv")
    assert over_labels[0] == ["series", "labels per class", "f1", "low", "high"]
    assert over_labels[3] == [names[1], "5", "0.6", "0.55", "0.65"] and len(over_labels) == 7
    over_time = read_csv(charts / "score_over_time.csv")
    values = [float(cell) for cell in over_time[1][1:]]
    assert values == pytest.approx([2.5, 0.3, 0.2, 0.4]), "the mean of two seeds"


def test_forgetting_that_is_not_significant_has_a_question_mark(tmp_path):
    lost = [
        PairedDifference(
            labels, "unadapted", "full", value, ConfidenceInterval(low, 0.2), p, 2 * p, p < 0.025
        )
        for labels, value, low, p in ((5, 0.1, 0.05, 0.01), (20, 0.08, -0.01, 0.04))
    ]
    made = comparison(("scratch", "frozen", "full"))
    made = replace(made, source="mini:glyphs", source_differences=tuple(lost))
    write_record(tmp_path / "comparison.json", made.to_dict())
    page = write_report(tmp_path, png=False).page.read_text(encoding="utf-8")
    text = "|".join(word.strip() for word in Elements(page).texts if word.strip())
    assert "mini:glyphs, paired by seeds and examples" in text
    assert "5 labels per class|unadapted - full|+0.1|0.05 to 0.2|0.02|yes" in text
    assert "20 labels per class|unadapted - full|+0.08|-0.01 to 0.2|0.08|no" in text
    forgetting = [formatting.format_forgetting(made, one) for one in made.summaries]
    assert forgetting == ["", "", "0.100", "", "", "0.080?"]
    assert "|forgetting|" in text and "|0.080?|" in text
    table = [line.split() for line in terminal.format_comparison(made)]
    assert ["export", "size", "forgetting"] in [line[-3:] for line in table]
    assert [line[-1] for line in table if line[:1] == ["full"]] == ["0.100", "0.080?"]


def test_folder_without_run_or_comparison_is_an_error(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "contains neither a run nor a comparison" in capsys.readouterr().err


def test_downsampling_keeps_outliers():
    values = [0.0] * 50_000
    values[31_007], values[44_444] = 9.0, -4.0
    short = downsample(Series("loss", range(50_000), values))
    assert len(short.x) <= 800 and list(short.x) == sorted(short.x)
    assert (31_007, 9.0) in zip(short.x, short.y, strict=True)
    assert (44_444, -4.0) in zip(short.x, short.y, strict=True)
    assert moving_average([1.0, None, 3.0, 8.0], window=2) == [1.0, 1.0, 2.0, 5.5]


@pytest.mark.parametrize(
    ("axis", "limits", "labels"),
    [
        (Axis(""), (0.0, 0.5), ["0", "0.1", "0.2", "0.3", "0.4", "0.5"]),
        (
            Axis("", "bytes"),
            (0, 3 * 2**30),
            ["0", "512 MiB", *["1 GiB", "1.5 GiB", "2 GiB", "2.5 GiB", "3 GiB"]],
        ),
        (Axis("", "seconds"), (0, 7300), ["0", "30 min", "1 h", "1.5 h", "2 h"]),
        (Axis("", log=True), (4.0, 1500.0), ["10", "30", "100", "300", "1000"]),
        (Axis("", log=True, tick_values=(5, 20, 1350)), (4.0, 1500.0), ["5", "20", "1350"]),
    ],
)
def test_ticks_are_at_round_numbers(axis, limits, labels):
    assert [tick.label for tick in axis.ticks(*limits)] == labels


@pytest.mark.parametrize("values", [[], [2.0], [2.0, 2.0], [None, None], [0.0, 1e-9], [1e9, 2e9]])
def test_chart_is_valid_svg_for_any_values(values):
    for log in (False, True):
        axis = Axis("a", log=log)
        chart = LinePlot("k", "t", "d", Axis("x"), axis, (Series("l", range(len(values)), values),))
        svg = draw_svg(chart)
        assert "nan" not in svg and "inf" not in svg and ElementTree.fromstring(svg) is not None


@pytest.mark.parametrize("names", [["LABEL_0"], ["calm", LABELS[1]]])
def test_predicted_numbers_are_plotted_against_the_true_ones(names):
    draw = np.random.default_rng(2)
    true, predicted = draw.normal(size=(2, 30, len(names))).tolist()
    records = [{"numbers": t, "predicted": p} for t, p in zip(true, predicted, strict=True)]
    folder = SimpleNamespace(dataset_stats={"labels": names})
    (charts,) = make_numbers_section(SimpleNamespace(eval_records=records, folder=folder))
    assert len(charts.charts) == len(names)
    for place, chart in enumerate(charts.charts):
        points, diagonal = chart.series
        assert list(zip(points.x, points.y, strict=True)) == [
            (t[place], p[place]) for t, p in zip(true, predicted, strict=True)
        ]
        assert diagonal.x == diagonal.y == [min(points.x), max(points.x)]
        assert str(draw_svg(chart)).count("<circle") >= 30
        ElementTree.fromstring(str(draw_svg(chart)))


def test_many_numbers_are_thinned_out_and_classes_have_no_scatter():
    records = [{"numbers": [float(n)], "predicted": [1.0]} for n in range(5000)]
    folder = SimpleNamespace(dataset_stats={"labels": ["LABEL_0"]})
    (charts,) = make_numbers_section(SimpleNamespace(eval_records=records, folder=folder))
    assert len(charts.charts[0].series[0].x) == 1000
    classes = SimpleNamespace(eval_records=[{"label": 0, "predicted": 1}], folder=folder)
    assert make_numbers_section(classes) == []
