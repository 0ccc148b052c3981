"""The newcomer's path as a strip of small frames: docs/console/path.png, made of a service that is started for it.

    python -m tests.browser.filmstrip docs/console/path.png

Small networks are trained on scanned digits first, as for the walk-through of the README.
"""

import io
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from playwright.sync_api import Page, ViewportSize, expect, sync_playwright

from demo.data import load_digits, split
from demo.walk import write_files
from tests.served import Served

_SIZE: ViewportSize = {"width": 1200, "height": 860}
_COLUMNS = 5
_FRAME = (400, 287)
_CAPTION, _GAP = 30, 12
_PICTURES = 30
_INK, _PAPER = "#1d1a16", "#f7f5f0"
_MOST_MS = 180_000


class Strip:
    """Frames of a page, each with what is done there."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._frames: list[tuple[str, Image.Image]] = []

    def take(self, words: str, part: str = "h1") -> None:
        """Keep what the page shows, from an element on."""
        self._page.wait_for_load_state("networkidle")
        self._page.evaluate("part => scrollTo(0, document.querySelector(part).getBoundingClientRect().top - 80)", part)
        shot = Image.open(io.BytesIO(self._page.screenshot()))
        self._frames.append((words, shot.convert("RGB").resize(_FRAME, Image.Resampling.LANCZOS)))

    def picture(self) -> Image.Image:
        """Return the frames in rows, in few colours."""
        width, height = _FRAME
        rows = -(-len(self._frames) // _COLUMNS)
        size = (_COLUMNS * (width + _GAP) + _GAP, rows * (height + _CAPTION + _GAP) + _GAP)
        whole = Image.new("RGB", size, _PAPER)
        draw, font = ImageDraw.Draw(whole), ImageFont.load_default(18)
        for place, (words, frame) in enumerate(self._frames):
            row, column = divmod(place, _COLUMNS)
            x, y = _GAP + column * (width + _GAP), _GAP + row * (height + _CAPTION + _GAP)
            draw.text((x, y + 2), f"{place + 1}  {words}", _INK, font)
            whole.paste(frame, (x, y + _CAPTION))
            draw.rectangle((x, y + _CAPTION, x + width - 1, y + _CAPTION + height - 1), outline="#857c6e")
        return whole.quantize(128)


@contextmanager
def _opened() -> Iterator[tuple[Page, Path]]:
    """A page of a new service, and a folder with what a newcomer has: networks of two versions, and pictures."""
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        write_files(folder / "walk")
        _, gallery = split(load_digits())
        for number in range(_PICTURES):
            (folder / f"digit-{number:02}.png").write_bytes(gallery.files[number * len(gallery) // _PICTURES])
        service = Served(folder / "data")
        service.start()
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport=_SIZE)
        page.set_default_timeout(_MOST_MS)
        expect.set_options(timeout=_MOST_MS)
        page.goto(f"http://127.0.0.1:{service.port}/")
        try:
            yield page, folder
        finally:
            browser.close()
            service.stop()


def main(target: Path) -> None:
    """Walk the path, and write the strip."""
    with _opened() as (page, folder):
        strip = Strip(page)
        _register(page, folder / "walk", strip)
        _fill(page, sorted(folder.glob("digit-*.png")), strip)
        _upgrade(page, strip)
        _decide(page, strip)
        target.parent.mkdir(parents=True, exist_ok=True)
        strip.picture().save(target, optimize=True)


def _register(page: Page, files: Path, strip: Strip) -> None:
    page.get_by_role("link", name="Versions").click()
    spec = json.dumps(json.loads((files / "spec.json").read_text()))
    for number, version in enumerate(("v1", "v2"), 1):
        form = page.locator("form", has=page.get_by_role("button", name="Register the version"))
        form.get_by_label("Name").fill(version)
        form.get_by_label("Spec").fill(spec)
        form.get_by_label("φ").set_input_files(files / f"phi_{number}.safetensors")
        form.get_by_label("ψ").set_input_files(files / f"psi_{number}.safetensors")
        form.get_by_role("button", name="Register the version").click()
        expect(page.locator("#versions").get_by_role("rowheader", name=version, exact=True)).to_be_visible()
    page.reload()
    form = page.locator("form", has=page.get_by_role("button", name="Register the transformation"))
    form.locator("[name=from_version]").select_option("v1")
    form.locator("[name=to_version]").select_option("v2")
    for name in ("h", "g"):
        form.locator(f"[name={name}]").set_input_files(files / f"{name}.safetensors")
    form.get_by_role("button", name="Register the transformation").click()
    expect(page.locator("#transformations")).to_contain_text("v1 → v2")
    strip.take("register")


def _fill(page: Page, pictures: list[Path], strip: Strip) -> None:
    page.get_by_role("link", name="Galleries").click()
    page.get_by_label("Name").fill("digits")
    page.get_by_label("Model version").select_option("v1")
    strip.take("make a gallery")
    page.get_by_role("button", name="Make the gallery").click()
    page.get_by_label("Pictures", exact=True).set_input_files(pictures)
    expect(page.locator("#items .picture")).to_have_count(len(pictures))
    strip.take("upload", "#items")


def _upgrade(page: Page, strip: Strip) -> None:
    page.get_by_role("link", name="Upgrade…").click()
    page.get_by_label("To the model version").select_option("v2")
    page.get_by_role("button", name="Dry run").click()
    expect(page.get_by_role("heading", name="What it would take")).to_be_visible()
    strip.take("dry run")
    page.get_by_role("button", name="Start the upgrade to v2").scroll_into_view_if_needed()
    strip.take("start", "#start")
    page.get_by_role("button", name="Start the upgrade to v2").click()
    expect(page.get_by_role("button", name="Cut over")).to_be_visible()
    strip.take("watch")


def _decide(page: Page, strip: Strip) -> None:
    upgrade = page.url
    page.get_by_role("link", name="Before and after").click()
    expect(page.locator(".compare li").first).to_be_visible()
    strip.take("before and after", "#query")
    page.goto(upgrade)
    page.get_by_role("link", name="Report", exact=True).click()
    expect(page.get_by_text("Verdict:")).to_be_visible()
    strip.take("report")
    page.goto(upgrade)
    page.get_by_role("button", name="Cut over").click()
    expect(page.locator("#state .tag").first).to_have_text("live")
    strip.take("cut over")
    page.get_by_role("button", name="Roll back").click()
    expect(page.locator("#state .tag").first).to_have_text("rolled back")
    strip.take("roll back")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
