"""A real headless browser for tests of html, and of what a page asks the network for; tests skip where there is none."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


def found() -> tuple[str, str] | None:
    """Chromium and its driver, where both and selenium are installed."""
    program, driver = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
    try:
        import selenium  # noqa: F401
    except ImportError:
        return None
    return (program, driver) if program and driver else None


needs_browser = pytest.mark.skipif(found() is None, reason="no Chromium with its driver and selenium here")


class Browser:
    """A Chromium with one window.

    Attributes:
        driver: selenium's.
    """

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Show a file, and wait until its scripts are done."""
        self.command("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.driver.get_log("performance")
        self.driver.get(page.as_uri())
        self.wait("return document.documentElement.dataset.ready === 'yes'")

    def command(self, name: str, **arguments: Any) -> Any:
        """A command of the browser's own protocol."""
        return self.driver.execute_cdp_cmd(name, arguments)

    def script(self, text: str, *arguments: Any) -> Any:
        """The value that a script returns."""
        return self.driver.execute_script(text, *arguments)

    def wait(self, condition: str, seconds: float = 20) -> None:
        """Wait until a script returns true."""
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, seconds, poll_frequency=0.02).until(lambda _: self.script(condition))

    def all(self, selector: str) -> list[Any]:
        """Elements that a CSS selector finds."""
        return list(self.driver.find_elements("css selector", selector))

    def one(self, selector: str) -> Any:
        """The first element that a CSS selector finds."""
        return self.driver.find_element("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        """Their texts, seen or not."""
        return list(self.script("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector))

    def point(self, element: Any, x: float = 0, y: float = 0) -> None:
        """Move the pointer to a place of an element, in pixels from its middle."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).move_to_element_with_offset(element, int(x), int(y)).perform()

    def click(self, element: Any, x: float = 0, y: float = 0) -> None:
        """Click on a place of an element, in pixels from its middle."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).move_to_element_with_offset(element, int(x), int(y)).click().perform()

    def settle(self) -> None:
        """Wait until what was drawn last is sharp."""
        self.driver.execute_async_script("setTimeout(arguments[0], 600)")

    def complaints(self) -> list[str]:
        """What the console says that is not well."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]

    def requests(self) -> list[str]:
        """Addresses asked for since `open`, the page itself left out."""
        events = [json.loads(e["message"])["message"] for e in self.driver.get_log("performance")]
        asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        asked = [url for url in asked if not url.startswith("data:")]
        return [url for n, url in enumerate(asked) if n or not url.startswith("file:")]


@contextmanager
def running() -> Iterator[Browser]:
    """A browser with a new, empty profile."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    places = found()
    assert places is not None
    with tempfile.TemporaryDirectory(prefix="plait-browser-") as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = places[0]
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        # A new tab's page loads hundreds of files, and on a slow machine asks for some of them after `open`.
        options.add_experimental_option("prefs", {"session.restore_on_startup": 4, "session.startup_urls": ["about:blank"]})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(places[1]))
        try:
            yield Browser(driver)
        finally:
            driver.quit()
