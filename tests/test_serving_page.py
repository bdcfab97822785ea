"""The page at /, in a real browser: Debian's chromium, headless, with a real recording for a microphone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
import soxr
from small_server import engine_of, make_adapters, make_encoder, running

from speech_adapters.data.audio import read_audio

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
SCHEMES = ("light", "dark")
SCREENS = {"desktop": (1200, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def recording(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence of LibriSpeech at 48 kHz, as microphones have it."""
    line = json.loads((real_data / "manifests" / "asr_librispeech_dev.jsonl").read_text().splitlines()[1])
    samples = read_audio(real_data / "manifests" / line["audio_filepath"]).numpy()
    path = tmp_path_factory.mktemp("microphone") / "sentence.wav"
    soundfile.write(path, soxr.resample(samples, 16_000, 48_000), 48_000, subtype="PCM_16")
    return path


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    encoder = make_encoder(tmp_path_factory.mktemp("base") / "base")
    folder = make_adapters(encoder, tmp_path_factory.mktemp("served"), 2)
    with running(engine_of(encoder, folder)) as address:
        yield address


@pytest.fixture(scope="module")
def browser(recording: Path) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("needs a browser: apt-get install chromium")
    arguments = [
        "--no-sandbox",  # it loads one page, ours, and tests often run as root
        "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={recording}",
    ]  # fmt: skip
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=arguments)
        yield chromium
        chromium.close()


class Page:
    """A fresh page, and what its console said."""

    def __init__(self, browser: Any, address: str, scheme: str = "light", screen: str = "desktop") -> None:
        from playwright.sync_api import expect

        self.expect = expect
        expect.set_options(timeout=60_000)
        width, height = SCREENS[screen]
        self.context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height})
        self.context.grant_permissions(["microphone"])
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.goto(address)
        self.expect(self.page.locator("#models label")).to_have_count(2)

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_: object) -> None:
        assert not self.said, self.said
        self.context.close()

    def transcribe(self) -> None:
        for box in self.page.locator("#models input").all():
            box.check()
        self.page.locator("#listen").press("Enter")
        results = self.page.locator("#results")
        self.expect(results.locator("details")).to_have_count(4)  # two adapters, two tasks each
        self.expect(results.locator(".error")).to_have_count(0)


def test_record_transcribe_classify_and_play_a_word(browser: Any, address: str) -> None:
    with Page(browser, address) as page:
        record = page.page.locator("#record")
        record.click()
        page.expect(record).to_have_text("Stop")
        page.expect(page.page.locator("#clock")).to_have_text("2 s")
        record.click()
        page.expect(page.page.locator("#facts")).to_contain_text("recording.wav")
        seconds = float(page.page.locator("#facts").inner_text().split(", ")[1].removesuffix(" s"))
        assert 1.5 < seconds < 10
        bright = page.page.evaluate(
            """() => { const canvas = document.querySelector("#spectrogram");
            const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            return data.filter((value, i) => i % 4 === 1 && value > 60).length / (data.length / 4); }"""
        )
        assert 0.02 < bright < 0.98  # speech, not silence
        page.transcribe()
        assert page.page.locator("#results .bars").count() == 2
        command = page.page.locator("#results pre").first.text_content()
        assert command.startswith(f"curl {address}/v1/audio/transcriptions") and "-F 'file=@recording.wav'" in command
        word = page.page.locator(".words button").first
        word.click()
        page.expect(page.page.locator(".words button.now").first).to_be_visible()
        page.page.wait_for_timeout(100)
        start = float(word.get_attribute("data-start"))
        assert page.page.evaluate("document.querySelector('#player').currentTime") >= start - 0.06


def test_files_are_verified_on_the_calibrated_scale(browser: Any, address: str, recording: Path) -> None:
    with Page(browser, address) as page:
        page.page.set_input_files("#file-enrolment", str(recording))
        page.expect(page.page.locator("#compare")).to_be_disabled()
        page.page.set_input_files("#file-test", str(recording))
        page.page.locator("#compare").click()
        verdict = page.page.locator("#verdict")
        page.expect(verdict).to_contain_text("times more likely if one person speaks (log-likelihood ratio 4.00)")
        assert "70%" in verdict.locator(".mark").get_attribute("style")  # 4 on a scale from -10 to 10


def test_what_goes_wrong_is_said(browser: Any, address: str, tmp_path: Path) -> None:
    (tmp_path / "note.wav").write_text("no audio")
    with Page(browser, address) as page:
        page.page.set_input_files("#file", str(tmp_path / "note.wav"))
        page.expect(page.page.locator("#clock")).to_have_text("note.wav: this browser cannot read it as audio")
        page.expect(page.page.locator("#listen")).to_be_disabled()


def test_what_cannot_be_read_is_not_answered_by_what_was_chosen_before(
    browser: Any, address: str, recording: Path, tmp_path: Path
) -> None:
    (tmp_path / "note.wav").write_text("no audio")
    with Page(browser, address) as page:
        page.page.set_input_files("#file", str(recording))
        page.transcribe()
        page.page.set_input_files("#file", str(tmp_path / "note.wav"))
        page.expect(page.page.locator("#clock")).to_contain_text("note.wav: this browser cannot read it")
        page.expect(page.page.locator("#listen")).to_be_disabled()
        page.expect(page.page.locator("#results details")).to_have_count(0)
        for field in ("#file-enrolment", "#file-test"):
            page.page.set_input_files(field, str(recording))
        page.page.locator("#compare").click()
        page.expect(page.page.locator("#verdict")).to_contain_text("log-likelihood ratio")
        page.page.set_input_files("#file-test", str(tmp_path / "note.wav"))
        page.expect(page.page.locator("#pair")).to_contain_text("note.wav: this browser cannot read it")
        page.expect(page.page.locator("#compare")).to_be_disabled()
        page.expect(page.page.locator("#verdict")).to_be_empty()


def test_what_was_recorded_and_cannot_be_read_is_not_answered_by_what_was_chosen_before(
    browser: Any, address: str, recording: Path
) -> None:
    with Page(browser, address) as page:
        for field in ("#file", "#file-enrolment", "#file-test"):
            page.page.set_input_files(field, str(recording))
        for send in ("#listen", "#compare"):
            page.expect(page.page.locator(send)).to_be_enabled()
        page.page.evaluate("() => { OfflineAudioContext.prototype.decodeAudioData = () => Promise.reject(); }")
        for record, send, told in (("#record", "#listen", "#clock"), ("#pair button >> nth=1", "#compare", "#pair")):
            page.page.locator(record).click()
            page.expect(page.page.locator(told)).to_contain_text("1 s")
            page.page.locator("button[aria-pressed=true]").click()
            page.expect(page.page.locator(told)).to_contain_text("recording.webm: this browser cannot read it")
            page.expect(page.page.locator(send)).to_be_disabled()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("screen", SCREENS)
def test_everyone_can_use_it(browser: Any, address: str, recording: Path, scheme: str, screen: str) -> None:
    if not AXE.is_file():
        pytest.skip("needs axe-core: npm install --no-save axe-core@4")
    with Page(browser, address, scheme, screen) as page:
        page.page.set_input_files("#file", str(recording))
        page.expect(page.page.locator("#facts")).to_contain_text("sentence.wav")
        page.transcribe()
        page.page.set_input_files("#file-enrolment", str(recording))
        page.page.set_input_files("#file-test", str(recording))
        page.page.locator("#compare").click()
        page.expect(page.page.locator("#verdict .scale")).to_be_visible()
        found = page.page.evaluate(AXE.read_text() + "; axe.run()")
        assert len(found["passes"]) > 20
        assert [(v["id"], [node["html"] for node in v["nodes"]]) for v in found["violations"]] == []
        width = page.page.evaluate("document.documentElement.scrollWidth")
        assert width <= SCREENS[screen][0], "wider than the screen"
