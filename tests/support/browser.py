"""A real browser: pages as people open them, and what the browser says against them."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
)  # fmt: skip
HARDWARE = """
    const getParameter = WebGLRenderingContext.prototype.getParameter;
    WebGLRenderingContext.prototype.getParameter = function (name) {
        return name === 0x9246 ? "a GPU" : getParameter.call(this, name); // UNMASKED_RENDERER_WEBGL
    };
"""
OF_THE_DRIVER = "GL Driver Message"  # software rendering is slow, it says


def executable() -> str:
    """Chromium's path: ``CHROME``, or the first of its names that is installed."""
    found = os.environ.get("CHROME") or next(filter(None, map(shutil.which, NAMES)), None)
    assert found, f"these tests need Chromium: install one of {', '.join(NAMES)}, or set CHROME to its path"
    return found


@contextmanager
def chromium() -> Iterator[Browser]:
    """Headless, with WebGL in software, and a profile of its own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Opened:
    """A page, what it requested from the network, and what went wrong on it."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def note(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and OF_THE_DRIVER not in message.text:
            self.complaints.append(message.text)


@contextmanager
def opened(browser: Browser, path: Path, width: int = 1280, height: int = 800, gpu: bool = False) -> Iterator[Opened]:
    """A file in a window of its own, once it says ``data-ready``. ``gpu``: it is set so that WebGL runs on one."""
    context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True, color_scheme="light")
    if gpu:
        context.add_init_script(HARDWARE)
    seen = Opened(context.new_page())
    seen.page.on("request", lambda request: None if request.url.startswith("data:") else seen.requests.append(request.url))
    seen.page.on("console", seen.note)
    seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    try:
        seen.page.goto(path.as_uri())
        seen.page.wait_for_selector("body[data-ready]", timeout=60_000)
        yield seen
    finally:
        context.close()
