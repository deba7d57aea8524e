"""First jobs of a newcomer, with the defaults: tickets as a spreadsheet writes them, and recordings
in an alphabet that the model does not know."""

import csv
import json
import subprocess
import sys

import pytest

from dtl.config import registry
from dtl.config.schema import Source
from dtl.data.sources.rows import open_rows
from dtl.run.folder import RunFolder

pytestmark = pytest.mark.slow

ALPHABET = str.maketrans("abcdefghijklmnopqrstuvwxyz", "абцдефгхийклмнопярстувщхыз")
BILLS = ("charged twice; refund me", "the invoice is wrong", "my card was refused")
FAULTS = ("the page stays blank", "the app crashes at start", "error 500 on upload")
TICKETS = """\
model: {path: "mini:text"}
task: text_classification
data:
  train: tickets.csv
  eval_fraction: 0.25
  columns: {text: Beschreibung, label: Gruppe}
strategy: {name: lora, rank: 8}
train: {epochs: 3, global_batch: 4}
"""
CLIPS = """\
model: {path: "mini:speech"}
task: {name: asr_ctc, vocabulary: data}
data:
  train: train.csv
  eval: test.csv
  columns: {audio: file, text: sentence}
strategy: full
train: {epochs: 30}
"""


def dtl(*arguments, folder):
    done = subprocess.run(
        [sys.executable, "-m", "dtl", *arguments], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_tickets_with_semicolons_and_a_byte_order_mark_are_learned(tmp_path):
    lines = ["Nr;Beschreibung;Gruppe;Kunde"]
    for number in range(60):
        is_bill = number % 2
        text = (BILLS if is_bill else FAULTS)[number // 2 % 3]
        lines.append(f'{number};"{text} ({number})";{"Kasse" if is_bill else "Technik"};Müller')
    (tmp_path / "tickets.csv").write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    (tmp_path / "tickets.yaml").write_text(TICKETS)
    output = dtl("train", "tickets.yaml", folder=tmp_path)
    assert "delimiter ';', UTF-8 with a byte order mark" in output
    assert "next:" in output and "dtl predict runs/tickets" in output
    assert RunFolder.open(tmp_path / "runs/tickets").result["scores"]["adapted"]["accuracy"] > 0.9
    (tmp_path / "elsewhere").mkdir()
    inputs = ("../runs/tickets", "../tickets.csv", "--out", "answers.csv")
    dtl("predict", *inputs, folder=tmp_path / "elsewhere")
    with (tmp_path / "elsewhere/answers.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60 and {row["predicted"] for row in rows} == {"Kasse", "Technik"}


def test_a_new_ctc_head_learns_from_72_clips(tmp_path):
    """The character error rate falls below half; at the usual rate of full tuning it stays at 1."""
    module = registry.load("tasks", "asr_ctc")
    reads = module.Plugin(module.Options()).row_input
    rows = open_rows(Source(path="mini:accents/heldout"), {}, "data.eval", reads=reads)
    lines = []
    for number, row in enumerate(rows):
        (tmp_path / f"{number}.ogg").write_bytes(row.fields["audio"])
        lines.append(f"{number}.ogg,{row.fields['text'].translate(ALPHABET)}")
    lines = [line for start in range(5) for line in lines[start::5]]  # each part has all voices
    for name, part in (("train", lines[:72]), ("test", lines[72:])):
        (tmp_path / f"{name}.csv").write_text("\n".join(["file,sentence", *part]), encoding="utf-8")
    (tmp_path / "clips.yaml").write_text(CLIPS)
    dtl("train", "clips.yaml", folder=tmp_path)
    result = json.loads((tmp_path / "runs/clips/result.json").read_text())
    assert result["scores"]["adapted"]["cer"] < 0.5
    assert result["warnings"] == []
