"""Debian's chromium, headless, driven as a person would: by labels and by what is shown."""

import base64
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

T = TypeVar("T")

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--disable-dev-shm-usage", "--force-color-profile=srgb",
)  # fmt: skip
PATIENCE = 180.0
"""Seconds; the machine may have much else to do."""


@contextmanager
def chromium(folder: Path) -> Iterator[webdriver.Chrome]:
    """A browser with nothing in it, whose downloads go into ``folder``; skips where there is none."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("Debian's chromium and chromium-driver are not installed")
    options = Options()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(folder / "downloads")})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))  # a given path: nothing is looked up elsewhere
    try:
        yield opened
    finally:
        opened.quit()


class Page:
    """The demo in a browser."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self.driver, self.url = driver, url
        driver.set_script_timeout(PATIENCE)

    def size(self, width: int, height: int = 900) -> None:
        """Give the page so much room."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        time.sleep(1)  # for what moves

    def open(self, width: int = 1280) -> None:
        """Load it at this width, until its first picture is there; what was said before is forgotten."""
        self.driver.get("about:blank")
        self.size(width)
        for log in ("browser", "performance"):
            self.driver.get_log(log)
        self.driver.get(self.url)
        self.until(lambda: self.source("base"), "the first picture")

    def until(self, ready: Callable[[], T | None], what: str, patience: float = PATIENCE) -> T:
        """What ``ready`` gives as soon as it gives something."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            try:
                if found := ready():
                    return found
            except StaleElementReferenceException:
                pass
            time.sleep(0.1)
        raise AssertionError(f"waited {patience:g} s for {what}; the page says {self.messages()}")

    def all(self, css: str) -> list[WebElement]:
        """What a selector finds and can be seen."""
        return [element for element in self.driver.find_elements(By.CSS_SELECTOR, css) if element.is_displayed()]

    def one(self, css: str) -> WebElement:
        """The first of them, as soon as there is one."""
        return self.until(lambda: next(iter(self.all(css)), None), css)

    def click(self, element: WebElement) -> None:
        """Scroll to it and click it."""
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def focus(self, element: WebElement) -> None:
        """Scroll to it and give it the keyboard."""
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'}); arguments[0].focus()", element)

    @property
    def downloads(self) -> Path:
        """Where the browser puts files."""
        return Path(self.driver.capabilities["chrome"]["userDataDir"]).parent / "downloads"

    def tab(self, name: str) -> None:
        """Open a tab, also where it hides in the menu of a narrow page."""
        tabs = [tab for tab in self.all('button[role="tab"]') if tab.text.strip() == name]
        if not tabs:
            self.click(self.one(".overflow-menu > button"))
            tabs = [tab for tab in self.all(".overflow-dropdown button") if tab.text.strip() == name]
        self.click(tabs[0])

    def button(self, text: str) -> WebElement:
        """The button of that name."""
        return self.until(lambda: next((b for b in self.all("button") if b.text.strip().startswith(text)), None), text)

    def dial(self, name: str) -> WebElement:
        """The handle of a dial."""
        return self.until(
            lambda: next((d for d in self.all(".dial") if d.text.strip().startswith(name)), None), f"the dial {name}"
        ).find_element(By.CSS_SELECTOR, 'input[type="range"]')

    def source(self, which: str) -> str:
        """The picture that is shown as ``base`` or ``turned``."""
        found = self.driver.find_elements(By.CSS_SELECTOR, f"#result .picture.{which} img")
        return (found[0].get_attribute("src") or "") if found else ""

    def messages(self) -> list[str]:
        """The messages that are shown."""
        return [toast.text for toast in self.all(".toast-body")]

    def console(self) -> list[str]:
        """The errors in the browser's console."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def strangers(self) -> list[str]:
        """Addresses elsewhere that the page has asked for."""
        sent = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        urls = [e["params"]["request"]["url"] for e in sent if e["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith((self.url, "data:", "blob:", "chrome://"))]

    def shot(self) -> bytes:
        """The whole page as a PNG."""
        size = self.driver.execute_script("return [document.body.scrollWidth, document.body.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": size[0], "height": min(size[1], 6000), "scale": 1}
        taken = self.driver.execute_cdp_cmd(
            "Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True, "clip": clip}
        )
        return base64.b64decode(taken["data"])
