"""A real browser: Debian's Chromium, driven by Playwright. These tests run alone, not beside others (see the Makefile).

Nothing waits for a time: each step waits for what it needs to see, at most as long as PATIENCE says.
Screenshots go to runs/browser/, to be looked at.
"""

import shutil

import pytest
from patience import PATIENCE, SHOTS
from playwright.sync_api import sync_playwright


@pytest.fixture(scope="session")
def chromium():
    """The browser; a missing one is an error that says what to install."""
    path = shutil.which("chromium")
    if path is None:
        pytest.fail("these tests drive Chromium, which is not installed: apt-get install chromium", pytrace=False)
    SHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def new_page(chromium):
    """new_page(**options of the context)."""
    contexts = []

    def new(**options):
        contexts.append(chromium.new_context(viewport={"width": 1300, "height": 950}, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(1000 * PATIENCE)
        return page

    yield new
    for context in contexts:
        context.close()
