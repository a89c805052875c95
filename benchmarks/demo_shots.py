"""Pictures of every tab of the demo at two widths, for `docs/demo/`: `python -m benchmarks.demo_shots`."""

import io
import tempfile
from pathlib import Path

from jsonargparse import auto_cli
from PIL import Image
from selenium.webdriver.common.keys import Keys

from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.console import hush_libraries, say
from sliders.files import replacing
from sliders.page.app import launch
from sliders.page.opening import open_session
from tests.page.browser import Page, chromium

WIDTHS = (1280, 390)
COLOURS = 128


def demo_shots(
    out: Path = Path("docs/demo"), shots: tuple[str, ...] = ("images", "text", "algebra", "explain", "compare")
) -> None:
    """Open the page, use each tab, and keep what it looks like; the Algebra tab twice, the second time explaining.

    Args:
        out: folder of the pictures.
        shots: which.
    """
    hush_libraries()
    found: list[str] = []
    with tempfile.TemporaryDirectory() as folder, chromium(Path(folder)) as driver:
        judge = Path("data/avatars/judge.safetensors")
        language = CausalLMBackbone("smollm2")
        session = open_session(UNetBackbone("data/avatars/model"), language, None, Path(folder) / "run", judge, 32)
        app = launch(session, ready=found.append, block=False)
        page = Page(driver, found[0])
        page.open()
        for shot in shots:
            tab, use = _SHOTS[shot]
            page.tab(tab)
            use(page)
            for width in WIDTHS:
                page.size(width)
                picture = Image.open(io.BytesIO(page.shot())).convert("RGB")
                file = out / f"{shot}_{width}.png"
                with replacing(file) as new:
                    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(new, optimize=True)
                say(f"{file}  {file.stat().st_size // 1024} KB")
            page.size(WIDTHS[0])
        app.close(verbose=False)


def _images(page: Page) -> None:
    for dial, key in (("smile", Keys.END), ("glasses", Keys.END)):
        before, handle = page.source("turned"), page.dial(dial)
        page.focus(handle)
        handle.send_keys(key)
        page.until(lambda before=before: page.source("turned") != before, f"{dial} to redraw")
    page.click(page.button("A strip or a grid"))
    page.click(page.button("Draw it"))
    page.until(lambda: page.all("#grid img"), "the strip", 900)


def _text(page: Page) -> None:
    handle = page.dial("sentiment")
    page.focus(handle)
    handle.send_keys(Keys.END)
    page.click(page.one("#write"))
    page.until(lambda: "60 tokens" in page.driver.page_source or "64 tokens" in page.driver.page_source, "text", 900)


def _algebra(page: Page) -> None:
    page.click(page.one("#relate"))
    page.until(lambda: page.all("#studies img"), "heatmaps", 900)


def _explain(page: Page) -> None:
    page.click(page.one("#explain"))
    page.until(lambda: [h for h in page.all("#studies h2") if h.text == "What it is"], "the explanation", 900)


def _compare(page: Page) -> None:
    page.click(page.one("#look"))
    page.until(lambda: page.all("#comparison img"), "the close look", 1800)


_SHOTS = {
    "images": ("Images", _images),
    "text": ("Text", _text),
    "algebra": ("Algebra", _algebra),
    "explain": ("Algebra", _explain),
    "compare": ("Compare", _compare),
}

if __name__ == "__main__":
    auto_cli(demo_shots, as_positional=False)
