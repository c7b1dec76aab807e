"""Checks the page in a browser: nothing from the data runs, no request leaves, and nothing overflows the window."""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from anchorline.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync"]  # fmt: skip
HOSTILE = (
    "</style></details></pre><script>window.ran = 1</script><img src='http://x.invalid/a.png' onerror='window.ran = 1'>"
    "<iframe src='http://x.invalid/'></iframe><svg onload='window.ran = 1'></svg>{{ 7*7 }}\" onmouseover=\"window.ran=1"
    "\u2028\u202e" + "unbroken" * 40
)
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: install it to run the browser checks"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of a run whose every text is hostile, next to figures as they come."""
    helper = runpy.run_path(str(Path(__file__).parents[1] / "unit" / "report_folder.py"))
    folder = helper["build_run_folder"](tmp_path_factory.mktemp("run"), held_out=12, pairs=20)
    for name in ("pairs.jsonl", "failures.jsonl", "evals/answers.jsonl", "evals/drift.json", "evals/style.json",
                 "train/diagnostics.json", "measure.json", "manifest.json"):  # fmt: skip
        path = folder / name
        text = path.read_text(encoding="utf-8")
        for word in (
            "parcel",
            "unchanged",
            "repair",
            "greeting",
            "Write a short",
            "cpu",
            "torch",
            "Harbour",
            "f0",
            "a17",
        ):
            text = text.replace(word, json.dumps(word + HOSTILE)[1:-1])
        path.write_text(text, encoding="utf-8")
    (folder / "recipe.yaml").write_text(f"name: {HOSTILE}\n", encoding="utf-8")
    return write_report(folder)


def opened(browser: Browser, report: Path, *, width: int = 1280, scheme: str = "light") -> tuple[Page, list[str]]:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # pyright: ignore
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri(), wait_until="networkidle")
    return page, asked


def test_nothing_from_the_data_runs_and_no_request_leaves(browser: Browser, report: Path) -> None:
    page, asked = opened(browser, report)
    assert asked == [report.as_uri()]
    assert page.evaluate("window.ran") is None
    assert (
        page.locator("script, img, iframe, object, embed, link, form, [onload], [onerror], [onmouseover]").count() == 0
    )
    assert page.locator("style").count() == 1
    text = page.locator("body").inner_text()
    assert text.count("<script>window.ran = 1</script>") > 20
    assert "⟨U+202E⟩" in text and "49" not in page.locator("#answers h3").all_inner_texts()
    page.close()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("opened_details", [False, True])
def test_nothing_overflows_the_window(browser: Browser, report: Path, width: int, opened_details: bool) -> None:
    page, _ = opened(browser, report, width=width)
    if opened_details:
        page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # What is wider than its column must sit in a box that scrolls; a page that hides it would pass the line above.
    outside = page.evaluate(
        """(width) => [...document.querySelectorAll('main *')]
            .filter((part) => !part.closest('.scroll') && part.getBoundingClientRect().right > width + 1)
            .map((part) => part.tagName + '.' + part.className)""",
        width,
    )
    assert outside == []
    page.close()


def test_the_page_follows_the_readers_dark_mode(browser: Browser, report: Path) -> None:
    colours = []
    for scheme in ("light", "dark"):
        page, _ = opened(browser, report, scheme=scheme)
        colours.append(page.evaluate("['backgroundColor', 'color'].map((key) => getComputedStyle(document.body)[key])"))
        page.close()
    (light_page, light_ink), (dark_page, dark_ink) = colours
    assert brightness(light_page) > 200 > 80 > brightness(light_ink)
    assert brightness(dark_page) < 60 < 180 < brightness(dark_ink)


def test_charts_are_drawn_and_links_lead_to_their_sections(browser: Browser, report: Path) -> None:
    page, _ = opened(browser, report)
    assert page.locator("svg.chart").count() == 16
    for box in (chart.bounding_box() for chart in page.locator("svg.chart").all()):
        assert box is not None and box["width"] > 250 and box["height"] > 100
    page.get_by_role("navigation").get_by_role("link", name="Drift").click()
    heading = page.locator("#drift h2").bounding_box()
    assert heading is not None and 0 <= heading["y"] < 900
    page.close()


def brightness(colour: str) -> float:
    channels = [int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    return sum(channels) / len(channels)
