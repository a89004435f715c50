"""A headless Chromium for the tests of pages, which are skipped without one unless DEJAVU_REQUIRE names ``browser``."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dejavu_lit.report.report import write_report
from tests.report.artifacts import FEW_FIGURES, HOSTILE, make_evaluation, make_study


def _skip_or_fail(reason: str) -> None:
    if "browser" in os.environ.get("DEJAVU_REQUIRE", "").split(","):
        pytest.fail(f"DEJAVU_REQUIRE asks for a browser, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser, driven by Playwright."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        _skip_or_fail("chromium is not installed (Debian: apt-get install chromium)")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _skip_or_fail("playwright is not installed (pip install 'dejavu-lit[test]')")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"], timeout=120_000)
        yield browser
        browser.close()


class Visit:
    """A page opened from disk, with all its requests and its errors and warnings."""

    def __init__(self, chromium: Any, page: Path, width: int = 1024, scheme: str = "light", address: str = "") -> None:
        self.context = chromium.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True, reduced_motion="reduce"
        )
        self.context.set_default_timeout(120_000)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("requestfailed", lambda request: self.errors.append(f"failed: {request.url}"))
        self.page.goto(page.resolve().as_uri() + address)

    def ready(self) -> Any:
        """The page, once its cards are loaded."""
        self.page.wait_for_selector(".pairs[data-ready]")
        return self.page

    def __enter__(self) -> "Visit":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a small evaluation with hostile captions."""
    folder = tmp_path_factory.mktemp("browser") / "evaluation"
    return write_report(make_evaluation(folder, n=60, captions=dict(enumerate(HOSTILE)), planted=True))


@pytest.fixture(scope="session")
def study_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a small study."""
    return write_report(
        make_study(
            tmp_path_factory.mktemp("browser") / "study", {"none": 0.9, "mask": 0.0}, (60,), settings=FEW_FIGURES
        )
    )
