"""Problems of audio and images: silence, clipping, mixed sampling rates, small or blank images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from dtl.inspect.check.findings import Finding, create_finding
from dtl.inspect.check.media import AudioStats, ImageStats
from dtl.inspect.check.stats import SourceStats

SILENCE_RMS = 1e-3  # of full scale: -60 dB
CLIPPING_FRACTION = 1e-3  # of the samples
MIN_IMAGE_SIDE = 8  # pixels


def find_audio_problems(source: SourceStats) -> Iterator[Finding]:
    """Yield findings for the sampled audio files."""
    audio = [each for each in source.media if isinstance(each, AudioStats)]
    total = len(source.media)
    silent = [each.location for each in audio if each.seconds and each.rms < SILENCE_RMS]
    if silent:
        problem, fix = "sampled audio files are silent (below -60 dB)", "remove them"
        is_fatal = len(silent) == total
        yield create_finding("silence", silent, total, problem, fix, is_fatal=is_fatal)
    clipped = [each.location for each in audio if each.clipped_fraction > CLIPPING_FRACTION]
    if clipped:
        problem, fix = "sampled audio files are clipped", "record or convert them at a lower level"
        yield create_finding("clipping", clipped, total, problem, fix)
    rates = Counter(each.sampling_rate for each in audio)
    if len(rates) > 1:
        usual = rates.most_common(1)[0][0]
        others = [each.location for each in audio if each.sampling_rate != usual]
        all_rates = ", ".join(map(str, sorted(rates)))
        problem = f"sampled audio files do not have the usual {usual} Hz (rates: {all_rates} Hz)"
        fix = "check their origin: audio with a low sampling rate lacks high frequencies"
        yield create_finding("mixed_sampling_rates", others, total, problem, fix)


def find_image_problems(source: SourceStats) -> Iterator[Finding]:
    """Yield findings for the sampled images."""
    images = [each for each in source.media if isinstance(each, ImageStats)]
    total = len(source.media)
    small = [each.location for each in images if min(each.width, each.height) < MIN_IMAGE_SIDE]
    if small:
        problem = f"sampled images have a side below {MIN_IMAGE_SIDE} pixels"
        is_fatal = len(small) == total
        yield create_finding(
            "small_images", small, total, problem, "remove them", is_fatal=is_fatal
        )
    if blank := [each.location for each in images if each.is_blank]:
        problem, is_fatal = "sampled images have a single color", len(blank) == total
        yield create_finding(
            "blank_images", blank, total, problem, "remove them", is_fatal=is_fatal
        )
