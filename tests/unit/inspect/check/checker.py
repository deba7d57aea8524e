"""Writes rows with one fault and checks them."""

import random

import yaml

import dtl
from tests import tiny, tiny_sound

TASKS = {  # the base of each task
    "causal_lm": "decoder",
    "text_classification": "encoder",
    "seq2seq": "t5",
    "token_classification": "encoder",
    "dpo": "decoder",
    "audio_classification": "wav2vec2",
    "image_classification": "vit",
    "asr_seq2seq": "whisper",
}


class DataChecker:
    """Writes rows and a config that names them, and checks it."""

    def __init__(self, folder, base_of):
        self.folder = folder
        self._base_of = base_of

    def config(self, task, train, *, held_out=None, base=None, data=None, **options):
        self.write("train.jsonl", train)
        named = {"train": str(self.folder / "train.jsonl"), **(data or {})}
        if held_out is not None:
            self.write("held_out.jsonl", held_out)
            named["eval"] = str(self.folder / "held_out.jsonl")
        path = self.folder / "run.yaml"
        config = {
            "model": {"path": str(base or self._base_of(TASKS[task]))},
            "task": {"name": task, **options},
            "data": named,
            "strategy": "lora",
            "train": {"steps": 1},
        }
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        return path

    def write(self, name, rows):
        """Sounds and pictures go into files of their own."""
        reported = []
        for number, row in enumerate(rows):
            row = dict(row)
            for column in ("audio", "image"):
                if isinstance(row.get(column), bytes):
                    file = self.folder / f"{name}-{number}.{column}"
                    file.write_bytes(row[column])
                    row[column] = file.name
            reported.append(row)
        tiny.write_rows(self.folder / name, reported)

    def check(self, *args, **kwargs):
        return dtl.check(dtl.load_config(self.config(*args, **kwargs)))


def get_only_finding(report, kind):
    """The one finding of the one kind that there is."""
    assert [finding.kind for finding in report.findings] == [kind], report.format_lines()
    return report.findings[0]


def get_finding(report, kind):
    found = [finding for finding in report.findings if finding.kind == kind]
    assert len(found) == 1, report.format_lines()
    return found[0]


def is_at(finding, name, line):
    return finding.fault.location.split(" ")[0].endswith(f"{name}:{line}")


def create_texts(count, *, seed=1, longest=12):
    """All different."""
    rng = random.Random(seed)
    made = dict.fromkeys(tiny.sentence(rng, longest) for _ in range(3 * count + 20))
    return list(made)[:count]


def create_labeled(count, *, seed=1):
    return [
        {"text": text, "label": ("early", "late")[number % 2]}
        for number, text in enumerate(create_texts(count, seed=seed))
    ]


def create_prompts(count, *, seed=1):
    return [
        {"prompt": f"{text} ->", "completion": f" {text[::-1]}"}
        for text in create_texts(count, seed=seed, longest=5)
    ]


def create_chats(count):
    return [
        {
            "messages": [
                {"role": "user", "content": text},
                {"role": "assistant", "content": text.upper()},
            ]
        }
        for text in create_texts(count, longest=4)
    ]


def create_translations(count, *, seed=1):
    return [{"source": text, "target": text[:20]} for text in create_texts(count, seed=seed)]


def create_tagged(count, *, seed=1):
    return [tiny.tag(f"{text} stone river stone house") for text in create_texts(count, seed=seed)]


def create_recordings(change=None, *, place=4, count=9):
    rows = tiny_sound.tones(count)
    if change is not None:
        rows[place]["audio"] = change
    return rows
