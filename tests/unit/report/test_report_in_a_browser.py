"""A report in a real browser: all is there, and nothing is asked of anybody else."""

import numpy as np
import pytest

from dtl.report.write import write
from dtl.run.folder import write_json
from tests.browser import browser
from tests.tiny_run import comparison, stopped_run

__all__ = ["browser"]  # a fixture

UNSEEN = """
[...document.querySelectorAll('svg')].filter(svg => {
  const box = svg.getBoundingClientRect();
  return box.width < 200 || box.height < 60 || !svg.querySelector('path, rect');
}).map(svg => svg.textContent)
"""
SIDEWAYS = "document.documentElement.scrollWidth - window.innerWidth"
GROUND = "getComputedStyle(document.body).backgroundColor"
DURATION = """
new Promise((done, fail) => {
  const sound = document.querySelector('audio');
  if (sound.readyState > 0) done(sound.duration);
  sound.onloadedmetadata = () => done(sound.duration);
  sound.onerror = () => fail(sound.error.message);
})
"""
SMALLEST_TEXT = """
Math.min(...[...document.querySelectorAll('svg text')].map(
  text => parseFloat(getComputedStyle(text).fontSize) *
    text.ownerSVGElement.getBoundingClientRect().width /
    text.ownerSVGElement.viewBox.baseVal.width))
"""


def held_pictures(folder, count):
    from PIL import Image

    pixels = np.random.default_rng(2).integers(256, size=(count, 24, 24, 3), dtype=np.uint8)
    for number in range(count):
        Image.fromarray(pixels[number]).save(folder / f"{number}.png")
    return [{"image": f"{number}.png"} for number in range(count)]


def held_sounds(folder, count):
    import soundfile

    for number in range(count):
        samples = np.sin(np.arange(8000) * (0.1 + number / 50)) / 2
        soundfile.write(folder / f"{number}.wav", samples, 16000)
    return [{"audio": f"{number}.wav"} for number in range(count)]


def asked_for(browser):
    """What the page has not brought along."""
    return [one for one in browser.requests if not one.startswith("data:")]


def report_of(folder, fields, name):
    run = stopped_run(folder, fields, labels=["low", "high"], name=name)
    return write(run.path, png=False).page.as_uri()


def test_all_is_seen_and_nothing_is_asked_for(tmp_path, browser):
    page = tmp_path / "asks.html"
    page.write_text('<img src="http://127.0.0.1:9/x.png"><script>nothing.at.all()</script>')
    browser.open(page.as_uri())
    assert "http://127.0.0.1:9/x.png" in browser.requests and browser.errors, "the test is blind"

    address = report_of(tmp_path, held_pictures(tmp_path, 8), "image_classification")
    for width, dark in ((1280, False), (390, True)):
        browser.shows(width=width, dark=dark)
        browser.open(address)
        assert browser.errors == [] and asked_for(browser) == [address]
        assert browser.ask("document.querySelectorAll('svg').length") == 9
        assert browser.ask(UNSEEN) == []
        assert browser.ask(SIDEWAYS) <= 0, "it scrolls sideways"
        assert browser.ask(SMALLEST_TEXT) > 8.5
        sizes = browser.ask("[...document.images].map(image => image.naturalWidth)")
        assert sizes == [24] * 8
        red, green, blue = (int(part) for part in browser.ask(GROUND)[4:-1].split(","))
        assert (red + green + blue < 150) == dark
        assert len(browser.picture()) > 20_000


def test_a_comparison_is_seen(tmp_path, browser):
    found = comparison(("scratch", "frozen", "full")).to_dict()
    write_json(tmp_path / "comparison.json", found)
    address = write(tmp_path, png=False).page.as_uri()
    for width, dark in ((1280, True), (390, False)):
        browser.shows(width=width, dark=dark)
        browser.open(address)
        assert browser.errors == [] and asked_for(browser) == [address]
        assert browser.ask("document.querySelectorAll('svg').length") == 4
        assert browser.ask(UNSEEN) == [] and browser.ask(SIDEWAYS) <= 0


def test_sounds_can_be_played(tmp_path, browser):
    pytest.importorskip("soundfile")
    address = report_of(tmp_path, held_sounds(tmp_path, 3), "audio_classification")
    browser.open(address)
    assert browser.ask(DURATION) == pytest.approx(0.5, abs=0.01)
    assert browser.errors == []
