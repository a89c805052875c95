"""The page as a person sees it: in Debian's chromium, on the embedded models and the sliders in the repository."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

pytest.importorskip("gradio")
pytest.importorskip("selenium")
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.evaluation.pictures.sampling import Sampling, Scene, sample
from sliders.formats import diffusers
from sliders.page.app import PROMPT, launch
from sliders.page.opening import open_session
from sliders.page.requests import Canvas
from sliders.page.session import Session
from sliders.resources import fetch
from tests.page.browser import Page, chromium
from tests.page.test_files import FOREIGN, changed

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SLIDER = ROOT / "data/avatars/sliders/smile.safetensors"
CANVAS = Canvas(PROMPT)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """On what a fresh checkout has."""
    folder = tmp_path_factory.mktemp("run")
    language = CausalLMBackbone("smollm2")
    return open_session(UNetBackbone(str(ROOT / "data/avatars/model")), language, None, folder, None, 8)


@pytest.fixture(scope="module")
def page(session: Session, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """Served, and open in a browser."""
    found: list[str] = []
    with chromium(tmp_path_factory.mktemp("browser")) as driver:
        app = launch(session, ready=found.append, block=False)
        try:
            yield Page(driver, found[0])
        finally:
            app.close(verbose=False)


@pytest.fixture(autouse=True)
def calm(page: Page) -> Iterator[None]:
    """Whatever a test does, nothing is left in the console and nobody elsewhere is asked."""
    page.open()
    yield
    assert page.console() == []
    assert page.strangers() == []


def move(page: Page, dial: str, key: str) -> str:
    """Move a dial by a key until the picture is another one, and return that."""
    before = page.source("turned")
    handle = page.dial(dial)
    page.focus(handle)
    handle.send_keys(key)
    return page.until(lambda: now if (now := page.source("turned")) != before else None, f"{dial} to redraw")


def test_a_moved_dial_changes_the_result_and_the_base_stays(page: Page) -> None:
    base = page.source("base")
    assert page.source("turned") == base  # all dials at 0
    moved = move(page, "smile", Keys.END)
    assert moved != base
    assert page.source("base") == base
    both = move(page, "glasses", Keys.END)
    assert len({base, moved, both}) == 3
    assert page.source("base") == base
    page.click(page.button("All dials to 0"))
    page.until(lambda: page.source("turned") == base, "the base again")


def test_a_dial_is_moved_by_hand(page: Page) -> None:
    base, handle = page.source("base"), page.dial("smile")
    page.focus(handle)
    ActionChains(page.driver).move_to_element_with_offset(handle, handle.size["width"] // 4, 0).click().perform()
    page.until(lambda: page.source("turned") != base, "a click on the dial to redraw")
    assert page.source("base") == base


def test_pictures_have_words(page: Page) -> None:
    assert all(image.get_attribute("alt") for image in page.all("#result img"))
    assert PROMPT in (page.one("#result .turned img").get_attribute("alt") or "")


def test_text_is_streamed_beside_the_base(page: Page) -> None:
    if not (fetch.cache_folder() / "smollm2" / "config.json").exists():
        pytest.skip("the language model has not been fetched")
    page.tab("Text")
    message = page.one("#message textarea")
    message.clear()
    message.send_keys("How was your day?")
    handle = page.dial("sentiment")
    page.focus(handle)
    handle.send_keys(Keys.HOME)
    page.click(page.one("#write"))
    lengths: list[int] = []

    def grown() -> bool:
        length = len(page.one("#turned-text textarea").get_attribute("value") or "")
        lengths.append(length)
        return length > 60

    page.until(grown, "an answer")
    assert len(set(lengths)) > 2  # it came bit by bit
    page.click(page.one("#stop"))
    texts = [page.one(f"#{name}-text textarea").get_attribute("value") for name in ("base", "turned")]
    assert all(texts)
    assert texts[0] != texts[1]


@pytest.fixture
def upload(page: Page) -> Callable[[Path], str]:
    """Choose a file in the Images tab, and return what the page says."""
    page.click(page.button("Slider files"))

    def choose(file: Path) -> str:
        known = page.messages()
        page.until(lambda: page.driver.find_elements("css selector", "#upload-pictures input[type=file]"), "upload")
        page.driver.find_element("css selector", "#upload-pictures input[type=file]").send_keys(str(file))

        def said() -> str | None:
            new = [text for text in page.messages() if text not in known]
            done = [one.text for one in page.all("#uploaded-pictures") if "is a dial now" in one.text]
            return next(iter([*new, *done]), None)

        return page.until(said, "a word about the file")

    return choose


def test_a_valid_slider_becomes_a_dial(page: Page, upload: Callable[[Path], str], tmp_path: Path) -> None:
    file = Path(shutil.copy(SLIDER, tmp_path / "mine.safetensors"))
    found = re.search(r"smile-[0-9a-f]{6}", upload(file))
    assert found
    base = page.source("base")
    own = move(page, found[0], Keys.END)
    assert own != base


@pytest.mark.parametrize(
    ("damage", "why"), [("cut", "cannot be read: it is cut off"), ("foreign", "made for another model")]
)
def test_what_is_no_slider_of_this_model_gets_a_message(
    page: Page, upload: Callable[[Path], str], tmp_path: Path, damage: str, why: str
) -> None:
    file = Path(shutil.copy(SLIDER, tmp_path / "theirs.safetensors"))
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-1000])
    else:
        file = changed(file, FOREIGN)
    assert why in upload(file)


def test_the_composition_is_downloaded_and_plain_diffusers_draws_the_same(
    page: Page, session: Session, tmp_path: Path
) -> None:
    move(page, "smile", Keys.END)
    move(page, "beard", Keys.HOME)
    page.click(page.button("Slider files"))
    page.click(page.button("Download all dials"))
    link = page.until(lambda: page.driver.find_elements("css selector", "#download-pictures a[href]"), "the file")[0]
    page.click(link)
    file = page.until(lambda: next(iter(page.downloads.glob("*.safetensors")), None), "the download")
    pipeline = StableDiffusionPipeline.from_pretrained(
        session.backbone.base_model, safety_checker=None, dtype=torch.float32
    )
    pipeline.load_lora_weights(str(file))
    plain = UNetBackbone(session.backbone.base_model)
    plain.use(pipeline)
    picture = sample(plain, [Scene(CANVAS.prompt, 0)], Sampling(CANVAS.steps, CANVAS.guidance))[0]
    shown = session.draw("test", CANVAS, {"smile": 2.0, "beard": -2.0})
    assert float((picture - shown.turned).abs().max()) < 0.02
    assert float((shown.base - shown.turned).abs().max()) > 0.2
    assert diffusers.load(file).name.startswith("beard-2_smile-2")


@pytest.mark.parametrize("width", [1280, 390])
def test_no_tab_is_wider_than_the_screen(page: Page, width: int) -> None:
    page.open(width)
    for name in ("Images", "Text", "Algebra", "Compare"):
        page.tab(name)
        assert page.driver.execute_script("return document.documentElement.scrollWidth") <= width, name


BROKEN = """
const lines = text => {
  const range = document.createRange();
  range.selectNodeContents(text);
  return new Set([...range.getClientRects()].map(box => Math.round(box.top))).size;
};
return [...document.querySelectorAll("#comparison .grid th span")].flatMap(label => [...label.childNodes])
  .filter(part => part.nodeType === Node.TEXT_NODE && lines(part) > 1).map(part => part.textContent);
"""
"""Words of a grid's labels that are on two lines."""


def test_the_algebra_and_the_close_look_show_pictures_with_words(page: Page) -> None:
    page.tab("Algebra")
    page.click(page.one("#relate"))
    assert len(page.until(lambda: page.all("#studies img"), "heatmaps")) == 3
    assert all(image.get_attribute("alt") for image in page.all("#studies img"))
    page.click(page.one("#explain"))
    page.until(lambda: "What it is" in [title.text for title in page.all("#studies h2")], "the explanation", 600)
    assert len(page.all("#studies img")) == 6  # spectra, place, entropy, nearest, prompts, words
    assert all(image.get_attribute("alt") for image in page.all("#studies img"))
    page.tab("Compare")
    page.click(page.one("#look"))
    images = page.until(lambda: page.all("#comparison img"), "the comparison", 600)
    assert len(images) > 20
    assert all(image.get_attribute("alt") for image in images)
    assert page.driver.execute_script(BROKEN) == []
    assert len({image.size["width"] for image in page.all("#comparison .study .grid img")}) == 1
    page.size(390)
    assert page.driver.execute_script(BROKEN) == []
    assert page.driver.execute_script("return document.documentElement.scrollWidth") <= 390
