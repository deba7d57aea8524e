"""Findings on audio and images, each at its row with its fix."""

import numpy as np

from tests import tiny_sound, tiny_vision
from tests.unit.inspect.check.checker import create_recordings, get_only_finding, is_at


def test_silent_audio_is_found(checker):
    rows = create_recordings(tiny_sound.wav(np.zeros((8000, 1))))
    found = get_only_finding(checker.check("audio_classification", rows), "silence")
    assert is_at(found, "train.jsonl", 5) and "remove" in found.fault.fix and not found.is_fatal


def test_clipped_audio_is_found(checker):
    loud = np.clip(5 * tiny_sound.tone("deep", seed=9), -1, 1)
    found = get_only_finding(
        checker.check("audio_classification", create_recordings(tiny_sound.wav(loud))), "clipping"
    )
    assert is_at(found, "train.jsonl", 5) and "lower level" in found.fault.fix


def test_mixed_sampling_rates_are_found(checker):
    slow = tiny_sound.wav(tiny_sound.tone("deep", seed=9, rate=8000), rate=8000)
    found = get_only_finding(
        checker.check("audio_classification", create_recordings(slow)), "mixed_sampling_rates"
    )
    assert is_at(found, "train.jsonl", 5) and "8000, 16000 Hz" in found.fault.problem
    assert "check their origin" in found.fault.fix


def test_short_and_empty_audio_is_skipped_and_not_silent(checker):
    rows = create_recordings(tiny_sound.wav(tiny_sound.tone("deep", seed=9)[:100]))
    rows[7].update(offset=60.0, duration=1.0)
    report = checker.check("audio_classification", rows)
    found = get_only_finding(report, "skipped_rows")
    assert is_at(found, "train.jsonl", 5) and "train.jsonl:8" in found.fault.problem
    assert "shorter than 0.05 s" in found.fault.problem


def test_small_image_is_found(checker):
    rows = tiny_vision.pictures(9)
    rows[3]["image"] = tiny_vision.png(tiny_vision.pixels("blue", seed=4)[:4, :20])
    found = get_only_finding(checker.check("image_classification", rows), "small_images")
    assert is_at(found, "train.jsonl", 4) and "below 8 pixels" in found.fault.problem


def test_blank_image_is_found(checker):
    rows = tiny_vision.pictures(9)
    rows[3]["image"] = tiny_vision.png(np.full((40, 40, 3), 7, dtype=np.uint8))
    found = get_only_finding(checker.check("image_classification", rows), "blank_images")
    assert is_at(found, "train.jsonl", 4) and "remove" in found.fault.fix
