"""A report in a real browser: everything is visible, and nothing is loaded from elsewhere."""

import numpy as np
import pytest

from dtl.core.files import write_record
from dtl.report.write import write_report
from tests.browser import browser
from tests.tiny_run import comparison, stopped_run

__all__ = ["browser"]  # a fixture

EMPTY_CHARTS = """
[...document.querySelectorAll('svg')].filter(svg => {
  const box = svg.getBoundingClientRect();
  return box.width < 200 || box.height < 60 || !svg.querySelector('path, rect');
}).map(svg => svg.textContent)
"""
HORIZONTAL_OVERFLOW = "document.documentElement.scrollWidth - window.innerWidth"
BACKGROUND = "getComputedStyle(document.body).backgroundColor"
CHART_COUNT = "document.querySelectorAll('svg').length"
IMAGE_WIDTHS = "[...document.images].map(image => image.naturalWidth)"
AUDIO_DURATION = """
new Promise((done, fail) => {
  const audio = document.querySelector('audio');
  if (audio.readyState > 0) done(audio.duration);
  audio.onloadedmetadata = () => done(audio.duration);
  audio.onerror = () => fail(audio.error.message);
})
"""
SMALLEST_FONT = """
Math.min(...[...document.querySelectorAll('svg text')].map(
  text => parseFloat(getComputedStyle(text).fontSize) *
    text.ownerSVGElement.getBoundingClientRect().width /
    text.ownerSVGElement.viewBox.baseVal.width))
"""


def write_images(folder, count):
    from PIL import Image

    pixels = np.random.default_rng(2).integers(256, size=(count, 24, 24, 3), dtype=np.uint8)
    for number in range(count):
        Image.fromarray(pixels[number]).save(folder / f"{number}.png")
    return [{"image": f"{number}.png"} for number in range(count)]


def write_recordings(folder, count):
    import soundfile

    for number in range(count):
        samples = np.sin(np.arange(8000) * (0.1 + number / 50)) / 2
        soundfile.write(folder / f"{number}.wav", samples, 16000)
    return [{"audio": f"{number}.wav"} for number in range(count)]


def requested_addresses(browser):
    """All that is not embedded in the page."""
    return [one for one in browser.requests if not one.startswith("data:")]


def report_address(folder, fields, name):
    run = stopped_run(folder, fields, labels=["low", "high"], name=name)
    return write_report(run.path, png=False).page.as_uri()


def test_run_report_is_fully_visible_and_loads_nothing(tmp_path, browser):
    page = tmp_path / "requests.html"
    page.write_text('<img src="http://127.0.0.1:9/x.png"><script>nothing.at.all()</script>')
    browser.open(page.as_uri())
    assert "http://127.0.0.1:9/x.png" in browser.requests, "the test sees no requests"
    assert browser.errors, "the test sees no errors"

    address = report_address(tmp_path, write_images(tmp_path, 8), "image_classification")
    for width, dark in ((1280, False), (390, True)):
        browser.set_viewport(width=width, dark=dark)
        browser.open(address)
        assert browser.errors == [] and requested_addresses(browser) == [address]
        assert browser.evaluate(CHART_COUNT) == 9
        assert browser.evaluate(EMPTY_CHARTS) == []
        assert browser.evaluate(HORIZONTAL_OVERFLOW) <= 0
        assert browser.evaluate(SMALLEST_FONT) > 8.5
        assert browser.evaluate(IMAGE_WIDTHS) == [24] * 8
        red, green, blue = (int(part) for part in browser.evaluate(BACKGROUND)[4:-1].split(","))
        assert (red + green + blue < 150) == dark
        assert len(browser.screenshot()) > 20_000


def test_comparison_report_is_fully_visible_and_loads_nothing(tmp_path, browser):
    content = comparison(("scratch", "frozen", "full")).to_dict()
    write_record(tmp_path / "comparison.json", content)
    address = write_report(tmp_path, png=False).page.as_uri()
    for width, dark in ((1280, True), (390, False)):
        browser.set_viewport(width=width, dark=dark)
        browser.open(address)
        assert browser.errors == [] and requested_addresses(browser) == [address]
        assert browser.evaluate(CHART_COUNT) == 4
        assert browser.evaluate(EMPTY_CHARTS) == []
        assert browser.evaluate(HORIZONTAL_OVERFLOW) <= 0


def test_audio_of_worst_examples_can_be_played(tmp_path, browser):
    pytest.importorskip("soundfile")
    address = report_address(tmp_path, write_recordings(tmp_path, 3), "audio_classification")
    browser.open(address)
    assert browser.evaluate(AUDIO_DURATION) == pytest.approx(0.5, abs=0.01)
    assert browser.errors == []
