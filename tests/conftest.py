"""Tiny models that tests share, made once a session. No test writes into them."""

import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.version import Version

from tests import tiny, tiny_sound, tiny_speech, tiny_vision, tiny_whisper

# Parts of the names of tests that fail below a version of transformers, by its own fault.
NEEDS = {
    "DebertaV2ForSequenceClassification]": "5.23",  # it called torch.jit.script, now deprecated
    "positions.py::test_the_longest_text_is_the_one_that_the_model_can_read[deberta-v2]": "5.23",
    "without_weights[OPTForCausalLM]": "5.23",  # it read a value of the mask
    "of_transformers[granitemoe]": "5.23",  # it lost the outputs of routers
    "of_transformers[jetmoe]": "5.23",
    "of_transformers[switch]": "5.23",
    "below_the_lowest_trained_block[True]": "5.23",  # it recomputed a frozen block as well
    "weights_are_read[kernels-community/flash-attn2]": "5.23",  # it called a missing kernel
}
NEEDS_TORCHVISION = "AutoImageProcessor requires the Torchvision library"  # of 5.17
TOGETHER = ("cluster",)  # folders whose files share what is costly to set up


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Where several processes run tests: those of a file, or of such a folder, stay together."""
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = Path(nodeid.partition("::")[0])
            folder = file.parts[1]
            return folder if folder in TOGETHER else str(file)

    return Together(config, log)


def pytest_collection_modifyitems(items):
    """Skip what the installed transformers cannot do, as `make test-lowest` has it."""
    for item in items:
        for part, version in NEEDS.items():
            if part in item.nodeid and _has_lower_transformers(version):
                item.add_marker(pytest.mark.skip(reason=f"needs transformers {version}"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Skip tests of pictures where transformers opens them with torchvision only."""
    report = yield
    needs_it = report.failed and NEEDS_TORCHVISION in str(report.longrepr)
    if needs_it and _has_lower_transformers("5.18"):
        report.outcome = "skipped"
        report.longrepr = (
            str(item.path),
            0,
            "Skipped: this transformers opens pictures with torchvision",
        )
    return report


def _has_lower_transformers(version):
    return Version(metadata.version("transformers")) < Version(version)


@pytest.fixture(scope="session")
def decoder(tmp_path_factory):
    """A Llama of 2 blocks whose output is not tied to its input; its tokenizer has a template."""
    return tiny.decoder(tmp_path_factory.mktemp("models") / "decoder", chat=True)


@pytest.fixture(scope="session")
def tied_decoder(tmp_path_factory):
    """The same with output and input embeddings tied; no chat template."""
    return tiny.decoder(tmp_path_factory.mktemp("models") / "tied-decoder", tied=True)


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    """A BERT of 2 blocks without a task head."""
    return tiny.encoder(tmp_path_factory.mktemp("models") / "encoder")


@pytest.fixture(scope="session")
def t5(tmp_path_factory):
    """A T5 of 2 blocks a side whose output is not tied to its input."""
    return tiny.t5(tmp_path_factory.mktemp("models") / "t5")


@pytest.fixture(scope="session")
def bart(tmp_path_factory):
    """A BART of 2 blocks a side."""
    return tiny.bart(tmp_path_factory.mktemp("models") / "bart")


@pytest.fixture(scope="session")
def vit(tmp_path_factory):
    """A ViT of 2 blocks without a head."""
    return tiny_vision.vit(tmp_path_factory.mktemp("models") / "vit")


@pytest.fixture(scope="session")
def resnet(tmp_path_factory):
    """A ResNet of 2 stages, with batch normalisation, without a head."""
    return tiny_vision.resnet(tmp_path_factory.mktemp("models") / "resnet")


@pytest.fixture(scope="session")
def wav2vec2(tmp_path_factory):
    """A wav2vec2 of 2 blocks that gets a padding mask, without a head."""
    return tiny_sound.wav2vec2(tmp_path_factory.mktemp("models") / "wav2vec2")


@pytest.fixture(scope="session")
def spectrogram(tmp_path_factory):
    """A transformer of 2 blocks over spectrograms, without a head."""
    return tiny_sound.spectrogram(tmp_path_factory.mktemp("models") / "spectrogram")


@pytest.fixture(scope="session")
def wav2vec2_bert(tmp_path_factory):
    """A wav2vec2-BERT of 2 blocks, without a head."""
    return tiny_speech.wav2vec2_bert(tmp_path_factory.mktemp("models") / "wav2vec2-bert")


@pytest.fixture(scope="session")
def whisper(tmp_path_factory):
    """A Whisper of 2 blocks a side that knows many languages."""
    return tiny_whisper.whisper(tmp_path_factory.mktemp("models") / "whisper")


@pytest.fixture(scope="session")
def english_whisper(tmp_path_factory):
    """The same, of English only."""
    folder = tmp_path_factory.mktemp("models") / "english-whisper"
    return tiny_whisper.whisper(folder, english_only=True)


@pytest.fixture(scope="session")
def speech_to_text(tmp_path_factory):
    """A Speech2Text of 2 blocks a side."""
    return tiny_whisper.speech_to_text(tmp_path_factory.mktemp("models") / "speech-to-text")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder of this test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("DTL_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def hub_as_before():
    """Undo what a test has found out about the Hub: another one may start a Hub of its own."""
    yield
    constants, hub = (
        sys.modules.get(name) for name in ("huggingface_hub.constants", "dtl.core.hub")
    )
    if hub is not None and constants is not None and hub.disabled_by_dtl:
        constants.HF_HUB_OFFLINE = hub.disabled_by_dtl = False
