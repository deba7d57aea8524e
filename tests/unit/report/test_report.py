"""A report tells what its run folder holds, in a page that loads nothing and trusts no text."""

import csv
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from dtl.cli.app import main
from dtl.compare import terminal as show
from dtl.compare.records import Difference, Interval
from dtl.core.errors import DtlError
from dtl.core.lock import Lease
from dtl.report import png_charts as pictures
from dtl.report.charts import Axis, Line, Plot, smoothed, thinned
from dtl.report.svg_charts import draw
from dtl.report.write import write
from dtl.run.folder import write_json
from tests.tiny_run import comparison, stopped_run

ATTACK = '<script>alert("x")</script><img src=x onerror=alert(1)>'
LABELS = ["calm", "loud & <b>bold</b>", "$odd_"]


@pytest.fixture
def run(tmp_path):
    """A classification with an attack in a text, stopped after 60 of 120 steps."""
    texts = [ATTACK if number == 3 else f"text {number}" for number in range(40)]
    return stopped_run(tmp_path, [{"text": text} for text in texts], labels=LABELS, why=ATTACK)


class Elements(HTMLParser):
    """What a browser would make of the page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.words = Counter(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.addresses += [v for k, v in attrs if k in ("src", "href", "action", "data", "srcset")]
        assert not any(name.startswith("on") for name, _ in attrs), attrs

    def handle_data(self, data):
        self.words.append(data)


def page_of(run, **options):
    return write(run.path, png=False, **options).page.read_text(encoding="utf-8")


def rows_of(file):
    with file.open(newline="") as opened:
        return list(csv.reader(opened))


def test_text_in_the_data_is_never_markup(run):
    text = page_of(run)
    page = Elements(text)
    assert page.tags["script"] == page.tags["img"] == page.tags["b"] == 0
    assert ATTACK in "".join(page.words) and LABELS[1] in "".join(page.words)
    assert all(address.startswith("data:") for address in page.addresses)
    assert not re.search(r"https?://|url\(|@import|<link rel=\"stylesheet", text)


def test_charts_are_drawn_told_and_tabulated(run):
    text = page_of(run)
    drawn = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]
    assert len(drawn) == 9  # scores, six curves, confusion, groups
    for svg in drawn:
        title, description = svg[0], svg[1]
        assert svg.get("role") == "img" and title.tag == "title" and description.tag == "desc"
        assert svg.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
        assert title.text and description.text
    tables = rows_of(run.path / "report" / "loss.csv")
    assert tables[0] == ["step", "loss"] and len(tables) == 61
    assert tables[7] == ["7", ""], "a loss that is not finite is a gap"
    assert [float(row[1]) for row in tables[1:7]] == [3.0 / step for step in range(1, 7)]
    assert rows_of(run.path / "report" / "loss_over_time.csv")[-1][0] == "30.0"


def test_confusions_and_groups_are_those_of_the_outcomes(run):
    from sklearn.metrics import confusion_matrix, f1_score

    page_of(run)
    outcomes = run.outcomes(60)
    truth, guess = ([one[key] for one in outcomes] for key in ("label", "predicted"))
    found = [row[1:] for row in rows_of(run.path / "report" / "confusion.csv")[1:]]
    assert np.array_equal(np.array(found, dtype=int), confusion_matrix(truth, guess))
    for group, examples, score, low, high in rows_of(run.path / "report" / "groups.csv")[1:]:
        of = [n for n, t in enumerate(truth) if LABELS[t] == group]
        expected = f1_score([truth[n] for n in of], [guess[n] for n in of], average="macro")
        assert (int(examples), float(score)) == (len(of), pytest.approx(expected))
        assert float(low) <= float(score) <= float(high)


def test_the_page_tells_what_happened(run):
    words = " ".join("".join(Elements(page_of(run)).words).split())
    assert "stopped early" in words and "of 120" in words
    assert "phase 2: full" in words and "spike at step 50" in words and "9.5" in words
    assert "the gradient is inf" in words and "Rows that were left out: 1" in words
    assert "520 B (weights 400 B, gradients 40 B, optimizer 80 B)" in words and "3.00 GiB" in words
    assert "text 36" in words and words.index("loss 9") < words.index("loss 1.39"), "worst first"
    write_json_launch(run)
    assert "Launches: 2." in page_of(run)


def write_json_launch(run):
    run.usage.mkdir()
    for number in (1, 2):
        note = {"began": 1e9 + number, "seconds": 60.0, "devices": {"card": 2}}
        write_json(run.usage / f"launch-{number}.json", note | {"energy_joules": None})


def test_running_stopped_and_finished_are_told_apart(run):
    with Lease(run.path):
        assert '<span class="state running">running</span>' in page_of(run)
    left_out = ("kind", "step", "model")
    scores = {key: v for key, v in list(run.metrics())[-1].items() if key not in left_out}
    best = {"step": None, "score": None}
    run.finish({"steps": 60, "scores": {"adapted": scores}, "best": best, "weights": "adapted"})
    assert '<span class="state finished">finished</span>' in page_of(run)


def test_a_run_that_has_not_begun_has_a_page_too(run):
    (run.path / "metrics.jsonl").unlink()
    words = "".join(Elements(page_of(run)).words)
    assert "No step has been taken yet" in words and "Nothing has been scored" in words


def test_rows_that_have_changed_are_not_shown_as_those_that_were_scored(run, tmp_path):
    with (tmp_path / "held.jsonl").open("a") as file:
        file.write('{"text": "one more", "label": "calm"}\n')
    words = "".join(Elements(page_of(run)).words)
    assert "the data has changed since the run began" in words and "text 36" not in words
    (tmp_path / "held.jsonl").unlink()
    assert "no such file" in "".join(Elements(page_of(run)).words)


def test_pictures_are_drawn_where_matplotlib_is(run, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    written = write(run.path)
    files = sorted(path.stem for path in written.charts.glob("*.png"))
    assert files == sorted(path.stem for path in written.charts.glob("*.csv"))
    assert written.drawn and len(files) == 9
    assert all(p.read_bytes()[:4] == b"\x89PNG" for p in written.charts.glob("*.png"))
    monkeypatch.setattr(pictures, "can_draw", lambda: False)
    with pytest.raises(DtlError, match="drawn by matplotlib, which is not installed; pip install"):
        write(run.path, png=True)
    assert main(["report", str(run.path)]) == 0
    assert "no PNG: matplotlib is not installed" in capsys.readouterr().out


def test_a_comparison_is_drawn_as_it_is_stored(tmp_path):
    names = ("scratch", ATTACK, "full")
    write_json(tmp_path / "comparison.json", comparison(names).to_dict())
    page = Elements(write(tmp_path, png=False).page.read_text(encoding="utf-8"))
    words = "".join(page.words)
    assert page.tags["script"] == page.tags["img"] == 0 and page.tags["svg"] == 4
    assert f"Not beaten in both peak memory and f1: {names[1]}, full" in words
    charts = tmp_path / "report"
    over_labels = rows_of(charts / "score_over_labels.csv")
    assert over_labels[0] == ["line", "labels a class", "f1", "low", "high"]
    assert over_labels[3] == [names[1], "5", "0.6", "0.55", "0.65"] and len(over_labels) == 7
    over_time = rows_of(charts / "score_over_time.csv")
    told = [float(cell) for cell in over_time[1][1:]]
    assert told == pytest.approx([2.5, 0.3, 0.2, 0.4]), "the mean of two seeds"


def test_what_is_forgotten_is_told_with_a_doubt_where_there_is_one(tmp_path):
    lost = [
        Difference(labels, "unadapted", "full", value, Interval(low, 0.2), p, 2 * p, p < 0.025)
        for labels, value, low, p in ((5, 0.1, 0.05, 0.01), (20, 0.08, -0.01, 0.04))
    ]
    made = comparison(("scratch", "frozen", "full"))
    made = replace(made, source="mini:glyphs", source_differences=tuple(lost))
    write_json(tmp_path / "comparison.json", made.to_dict())
    page = write(tmp_path, png=False).page.read_text(encoding="utf-8")
    words = "|".join(word.strip() for word in Elements(page).words if word.strip())
    assert "mini:glyphs, paired by seeds and examples" in words
    assert "5 labels a class|unadapted - full|+0.1|0.05 to 0.2|0.02|yes" in words
    assert "20 labels a class|unadapted - full|+0.08|-0.01 to 0.2|0.08|no" in words
    told = [show.forgets(made, point) for point in made.points]
    assert told == ["", "", "0.100", "", "", "0.080?"]
    assert "|forgets|" in words and "|0.080?|" in words
    table = [line.split() for line in show.lines(made)]
    assert ["memory", "stored", "forgets"] in [line[-3:] for line in table]
    assert [line[-1] for line in table if line[:1] == ["full"]] == ["0.100", "0.080?"]


def test_what_is_no_run_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "there is neither a run nor a comparison in this folder" in capsys.readouterr().err


def test_a_long_line_keeps_its_jumps():
    heights = [0.0] * 50_000
    heights[31_007], heights[44_444] = 9.0, -4.0
    short = thinned(Line("loss", range(50_000), heights))
    assert len(short.x) <= 800 and list(short.x) == sorted(short.x)
    assert (31_007, 9.0) in zip(short.x, short.y, strict=True)
    assert (44_444, -4.0) in zip(short.x, short.y, strict=True)
    assert smoothed([1.0, None, 3.0, 8.0], window=2) == [1.0, 1.0, 2.0, 5.5]


@pytest.mark.parametrize(
    ("axis", "ends", "texts"),
    [
        (Axis(""), (0.0, 0.5), ["0", "0.1", "0.2", "0.3", "0.4", "0.5"]),
        (
            Axis("", "bytes"),
            (0, 3 * 2**30),
            ["0", "512 MiB", *["1 GiB", "1.5 GiB", "2 GiB", "2.5 GiB", "3 GiB"]],
        ),
        (Axis("", "seconds"), (0, 7300), ["0", "30 min", "1 h", "1.5 h", "2 h"]),
        (Axis("", log=True), (4.0, 1500.0), ["10", "30", "100", "300", "1000"]),
        (Axis("", log=True, places=(5, 20, 1350)), (4.0, 1500.0), ["5", "20", "1350"]),
    ],
)
def test_ticks_are_round(axis, ends, texts):
    assert [tick.text for tick in axis.ticks(*ends)] == texts


@pytest.mark.parametrize("values", [[], [2.0], [2.0, 2.0], [None, None], [0.0, 1e-9], [1e9, 2e9]])
def test_whatever_the_values_a_chart_is_drawn(values):
    for log in (False, True):
        axis = Axis("a", log=log)
        chart = Plot("k", "t", "d", Axis("x"), axis, (Line("l", range(len(values)), values),))
        svg = draw(chart)
        assert "nan" not in svg and "inf" not in svg and ElementTree.fromstring(svg) is not None
