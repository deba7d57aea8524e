"""Synthesizes the clips of mini:spoken and mini:accents with eSpeak NG.

`python -m dtl.mini.make_speech FOLDER` writes a Parquet file per split (needs `dtl[mini,speech]`).
The synthesizer is not deterministic within a process, so the clips are shipped. Nothing else in dtl
loads the synthesizer.
"""

import argparse
import ctypes
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("bath", "bird", "dance", "door", "garden", "market", "north", "river", "star", "water"),
)
SOURCE, TARGET, OTHER = "en-us", "en-gb-x-rp", "en-gb-x-gbcwmd"  # accents
SOURCE_SPEAKERS = (
    *("m1", "m3", "m4", "m6", "m8", "f1", "f2", "f4", "Alex", "Andrea", "Andy", "AnxiousAndy"),
    *("Denis", "Diogo", "Gene", "Gene2", "Hugo", "Jacky", "Lee", "Marco", "Michael", "Nguyen"),
    *("Reed", "RicishayMax", "RicishayMax2", "RicishayMax3", "Tweaky", "adam", "anika"),
    *("announcer", "antonio", "benjamin", "boris", "david", "ed", "edward", "edward2"),
    *("grandpa", "gustave", "ian", "iven", "iven2", "iven3", "iven4", "kaukovalta", "klatt"),
    *("klatt3", "klatt4", "linda", "max", "michel", "norbert", "pablo", "paul", "pedro", "rob"),
    *("steph", "steph2", "steph3", "victor", "Annie", "Mario", "caleb", "f5", "john", "klatt5"),
    *("klatt6", "quincy", "zac"),
)
HELDOUT_SPEAKERS = ("m5", "m7", "f3", "Alicia", "Henrique", "Mike", "belinda", "miguel", "robert")
DEVELOPMENT_SPEAKERS = (
    *("aunty", "grandma", "klatt2", "marcelo", "mike2", "sandro", "shelby", "travis"),
)
SAMPLE_RATE = 8000  # Hz
PEAK_AMPLITUDE = 0.7
SILENCE_LEVEL = 0.01  # share of the peak; below it both ends are trimmed
MARGIN_SECONDS = 0.05
COMPRESSION = 0.985  # of Opus, 0 to 1: about 10 kbit/s


@dataclass(frozen=True)
class SpeakerVariation:
    """The variation between utterances: minimum and maximum of each parameter."""

    pitches: tuple[int, int] = (20, 80)
    rates: tuple[int, int] = (130, 190)  # words a minute
    stretches: tuple[float, float] = (0.9, 1.1)  # below 1: faster and higher


WIDE_VARIATION = SpeakerVariation(pitches=(5, 95), rates=(110, 220), stretches=(0.82, 1.2))


@dataclass(frozen=True)
class Split:
    """The clips of one file."""

    file: str
    clips: int
    accent: str
    speakers: tuple[str, ...]
    min_words: int = 3  # per clip; some have one or two more
    variation: SpeakerVariation = SpeakerVariation()


SPLITS = (
    Split("spoken-train", 3000, SOURCE, SOURCE_SPEAKERS, variation=WIDE_VARIATION),
    Split("spoken-heldout", 120, SOURCE, HELDOUT_SPEAKERS),
    Split("accents-train", 40, TARGET, SOURCE_SPEAKERS, min_words=10),
    Split("accents-heldout", 120, TARGET, HELDOUT_SPEAKERS),
)
DEVELOPMENT_SPLITS = (  # not shipped: used to choose all settings
    Split("development-source", 120, SOURCE, DEVELOPMENT_SPEAKERS),
    Split("development-train", 40, OTHER, SOURCE_SPEAKERS, min_words=10),
    Split("development-heldout", 120, OTHER, DEVELOPMENT_SPEAKERS),
)


@dataclass(frozen=True)
class Utterance:
    """A text and the parameters of its synthesis."""

    text: str
    speaker: str
    pitch: int
    rate: int  # words a minute
    stretch: float  # factor of the duration


class Synthesizer:
    """eSpeak NG. A process may create it once."""

    RETRIEVAL_MODE, RATE, PITCH, UTF8 = 2, 1, 3, 1  # constants of its C interface

    def __init__(self) -> None:
        import espeakng_loader

        self.library = espeakng_loader.load_library()
        folder = espeakng_loader.get_data_path().encode()
        self.sample_rate: int = self.library.espeak_Initialize(self.RETRIEVAL_MODE, 0, folder, 0)
        assert self.sample_rate > 0, "eSpeak NG failed to initialize"
        self.samples = bytearray()
        callback_type = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
        )
        self.callback = callback_type(
            self._on_samples
        )  # keeps a reference while the library uses it
        self.library.espeak_SetSynthCallback(self.callback)

    def _on_samples(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self.samples += ctypes.string_at(samples, 2 * count)
        return 0

    def synthesize(self, utterance: Utterance, *, accent: str) -> Any:
        """Return the samples of an utterance, float32 (time,), at `sample_rate`."""
        import numpy

        name = f"{accent}+{utterance.speaker}".encode()
        assert self.library.espeak_SetVoiceByName(name) == 0, f"no voice {name!r}"
        self.library.espeak_SetParameter(self.RATE, utterance.rate, 0)
        self.library.espeak_SetParameter(self.PITCH, utterance.pitch, 0)
        self.samples.clear()
        text = utterance.text.encode() + b"\0"
        status = self.library.espeak_Synth(
            text, ctypes.c_size_t(len(text)), 0, 0, 0, self.UTF8, None, None
        )
        assert status == 0, f"synthesis failed: {utterance}"
        return numpy.frombuffer(bytes(self.samples), numpy.int16).astype(numpy.float32) / 2**15


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dtl.mini.make_speech", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of the Parquet files")
    folder = parser.parse_args(arguments).folder
    folder.mkdir(parents=True, exist_ok=True)
    synthesizer = Synthesizer()
    for split in (*SPLITS, *DEVELOPMENT_SPLITS):
        path = folder / f"{split.file}.parquet"
        _write(
            path,
            [
                _make_row(synthesizer, one, accent=split.accent)
                for one in generate_utterances(split)
            ],
        )
        print(f"wrote {split.clips} clips, {path.stat().st_size:,} bytes, to {path}")
    return 0


def generate_utterances(split: Split) -> Iterator[Utterance]:
    """Yield the utterances of a split; all words and all speakers are equally frequent."""
    random = Random(split.file)
    words, speakers = _cycle_shuffled(WORDS, random), _cycle_shuffled(split.speakers, random)
    for number in range(split.clips):
        spoken = [next(words) for _ in range(split.min_words + number % 3)]
        yield Utterance(
            text=" ".join(spoken),
            speaker=next(speakers),
            pitch=random.randint(*split.variation.pitches),
            rate=random.randint(*split.variation.rates),
            stretch=random.uniform(*split.variation.stretches),
        )


def _cycle_shuffled(items: Sequence[str], random: Random) -> Iterator[str]:
    """Yield all items in a random order, again and again."""
    while True:
        yield from random.sample(items, len(items))


def _make_row(synthesizer: Synthesizer, utterance: Utterance, *, accent: str) -> dict[str, Any]:
    import soxr

    samples = synthesizer.synthesize(utterance, accent=accent)
    samples = _trim_silence(
        soxr.resample(samples, synthesizer.sample_rate, SAMPLE_RATE * utterance.stretch)
    )
    return {
        "audio": _encode_opus(samples),
        "text": utterance.text,
        "accent": accent,
        "speaker": utterance.speaker,
    }


def _trim_silence(samples: Any) -> Any:
    """Return the samples without silence at both ends, scaled to PEAK_AMPLITUDE."""
    import numpy

    peak = numpy.abs(samples).max()
    loud = numpy.flatnonzero(numpy.abs(samples) > SILENCE_LEVEL * peak)
    margin = int(MARGIN_SECONDS * SAMPLE_RATE)
    return samples[max(0, loud[0] - margin) : loud[-1] + margin] * (PEAK_AMPLITUDE / peak)


def _encode_opus(samples: Any) -> bytes:
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(
        buffer,
        samples,
        SAMPLE_RATE,
        format="OGG",
        subtype="OPUS",
        compression_level=COMPRESSION,
    )
    return buffer.getvalue()


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow
    from pyarrow import parquet

    columns = pyarrow.schema(
        [("audio", pyarrow.binary())]
        + [(name, pyarrow.string()) for name in ("text", "accent", "speaker")]
    )
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=columns), path, compression="zstd")


if __name__ == "__main__":
    raise SystemExit(main())
