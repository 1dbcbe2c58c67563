"""Draws docs/report-wide.png and docs/report-narrow.png: a report of `evaluate` in a real browser.

python benchmarks/report_pictures.py report.html

Chromium opens the file without a screen, 1280 pixels wide in light colours and 390 wide in dark
ones. Fails on whatever the browser complains about, where the page is wider than its window, and
where a table cannot be reached with the keyboard.
Needs selenium, and chromium and chromedriver (Debian: apt-get install chromium chromium-driver).
"""

import base64
import io
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

DOCS = Path(__file__).parents[1] / "docs"
MOST_BYTES = 300_000
FIRST_PART = "document.querySelector('main section')"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@dataclass(frozen=True)
class View:
    """One way to look at the page.

    Attributes:
        name: of the picture.
        width: of the window, in CSS pixels.
        scheme: light or dark.
    """

    name: str
    width: int
    scheme: str


VIEWS = (View("report-wide", 1280, "light"), View("report-narrow", 390, "dark"))


@contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    """Chromium without a screen, in an empty profile."""
    driver = shutil.which("chromedriver")
    if driver is None:
        sys.exit("chromedriver is missing; apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        chrome = webdriver.Chrome(options, Service(driver))
        try:
            yield chrome
        finally:
            chrome.quit()


def look(chrome: webdriver.Chrome, page: Path, view: View) -> Image.Image:
    """Open the page and take a picture of its first part; ends the program on what is wrong."""
    size = {"width": view.width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"features": [{"name": "prefers-color-scheme", "value": view.scheme}]}
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
    chrome.get(page.resolve().as_uri())
    if messages := chrome.get_log("browser"):
        sys.exit(f"{view.name}: the browser says {messages}")
    found = chrome.execute_script("return document.documentElement.scrollWidth")
    if found > view.width:
        sys.exit(f"{view.name}: the page is {found} pixels wide, more than {view.width}")
    check_keyboard(chrome, view)
    bottom = chrome.execute_script(f"return {FIRST_PART}.getBoundingClientRect().bottom + scrollY")
    clip = {"x": 0, "y": 0, "width": view.width, "height": bottom, "scale": 1}
    taken = chrome.execute_cdp_cmd(
        "Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True}
    )
    return Image.open(io.BytesIO(base64.b64decode(taken["data"])))


def check_keyboard(chrome: webdriver.Chrome, view: View) -> None:
    """End the program unless Tab goes to the link past the menu, and on to every table."""
    reached = []
    for _ in range(200):
        ActionChains(chrome).send_keys(Keys.TAB).perform()
        where = "return document.activeElement.className || document.activeElement.tagName"
        reached.append(chrome.execute_script(where))
        if reached[-1] == "BODY":
            break
    tables = chrome.execute_script("return document.querySelectorAll('table').length")
    if reached[0] != "skip" or reached.count("scroll") != tables:
        sys.exit(f"{view.name}: Tab goes to {reached}, and there are {tables} tables")
    chrome.execute_script("document.activeElement.blur(); scrollTo(0, 0)")


def main() -> None:
    """Take both pictures of the report that is given."""
    (report,) = map(Path, sys.argv[1:])
    if not report.is_file():
        sys.exit(f"{report}: no such file; lipdeploy evaluate MODEL DATA --report {report}")
    with browser() as chrome:
        for view in VIEWS:
            path = DOCS / f"{view.name}.png"
            picture = look(chrome, report, view).convert("RGB").quantize(256)
            picture.save(path, optimize=True)
            if (size := path.stat().st_size) > MOST_BYTES:
                sys.exit(f"{path}: {size} bytes, limit {MOST_BYTES}; make the picture lower")
            print(f"{path.name}: {picture.width} x {picture.height}, {size} bytes")


if __name__ == "__main__":
    main()
