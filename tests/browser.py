"""A headless Chromium to open pages in; whoever asks for one is skipped, with the reason, where none is."""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

HEIGHT = 900  # of the window, in pixels
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser, from the system or as `playwright install chromium` leaves it."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    with api.sync_playwright() as playwright:
        system = next(filter(None, map(shutil.which, NAMES)), None)
        if system is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("needs a Chromium: apt-get install chromium, or playwright install chromium")
        browser = playwright.chromium.launch(executable_path=system, args=["--no-sandbox"])
        yield browser
        browser.close()


class Page:
    """A drawn page, opened: what it shows in numbers, and clicks where a user would click."""

    def __init__(self, browser: Any, path: Path, width: int = 1440) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.tab = browser.new_page(viewport={"width": width, "height": HEIGHT})
        self.tab.on("console", self._console)
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.context.set_offline(True)
        begin = time.perf_counter()
        self.tab.goto(path.as_uri())
        self.tab.wait_for_function("window.Bokeh?.documents[0]?.is_idle")
        self.tab.wait_for_function(f"{MODEL}('rows').data.y.length > 0")
        on_the_clock = time.perf_counter() - begin
        # Where other processes take the cores, the tab's own processor time says what an idle machine needs.
        self.seconds = min(on_the_clock, self._processor_time())

    def close(self) -> None:
        self.tab.close()

    def data(self, name: str) -> dict[str, list[Any]]:
        """The columns of one of the page's data sources."""
        code = "Object.fromEntries(Object.entries(model.data).map(([k, v]) => [k, Array.from(v)]))"
        return self.tab.evaluate(f"(() => {{ const model = {MODEL}('{name}'); return {code} }})()")

    def click_group(self, name: str) -> None:
        self.tab.get_by_text(name, exact=True).first.click()
        self.tab.wait_for_timeout(150)

    def press(self, label: str) -> None:
        self.tab.get_by_role("button", name=label).click()
        self.tab.wait_for_timeout(300)

    def search(self, text: str) -> None:
        self.tab.get_by_placeholder("Search").fill(text)
        self.tab.wait_for_timeout(300)

    def click_row(self, path: str) -> None:
        """On a row's name in the picture."""
        self.tab.mouse.click(self.box["x"] + 190, self.pixel(self.row_y(path)))
        self.tab.wait_for_timeout(300)

    def click_word(self, path: str, text: str) -> None:
        """On a word of a row's axes."""
        self.tab.mouse.click(*self._word(path, text))
        self.tab.wait_for_timeout(300)

    def hover_word(self, path: str, text: str) -> str:
        """Move onto a word, and read what appears."""
        self.tab.mouse.move(*self._word(path, text))
        tip = self.tab.locator(".bk-Tooltip").filter(visible=True).first
        tip.wait_for(timeout=3000)
        return tip.evaluate("tip => tip.shadowRoot.querySelector('.bk-tooltip-content').innerText")

    def shown(self) -> list[str]:
        """The paths of the rows that are seen, from top to bottom."""
        return self.data("rows")["path"]

    def lit(self) -> dict[str, list[str]]:
        """Path of a lit row -> the sites that lit it."""
        rows, marks = self.data("rows"), self.data("marks")
        path_at = dict(zip(rows["y"], rows["path"], strict=True))
        return {path_at[y]: names.split("\n") for y, names in zip(marks["y"], marks["names"], strict=True)}

    def lit_on_screen(self) -> list[str]:
        """The same from the picture itself: rows at whose left edge there is colour."""
        picture = self.picture()
        rows, left = self.data("rows"), round(self.box["x"]) + 3
        found = []
        for path, pixel in zip(rows["path"], self.pixels(rows["y"]), strict=True):
            if pixel < HEIGHT - 4:
                r, g, b = picture.getpixel((left, round(pixel)))
                found += [path] if max(r, g, b) - min(r, g, b) > 40 else []
        return found

    def picture(self) -> Any:
        """What is on the screen, in colours."""
        from PIL import Image

        return Image.open(io.BytesIO(self.tab.screenshot())).convert("RGB")

    def inked(self, left: float, right: float) -> list[str]:
        """Rows in which something is drawn between two places [px from the plot's left edge]."""
        picture, rows = self.picture(), self.data("rows")
        across = range(round(self.box["x"] + left), round(self.box["x"] + right))
        found = []
        for path, pixel in zip(rows["path"], self.pixels(rows["y"]), strict=True):
            lines = range(round(pixel) - 6, round(pixel) + 6)
            if pixel < HEIGHT - 12 and any(
                len({picture.getpixel((x, y)) for x in across}) > 1 for y in lines
            ):
                found.append(path)
        return found

    def width_of(self, text: str, font: str) -> float:
        """In pixels, as the browser draws it."""
        code = "([t, f]) => { const c = document.createElement('canvas').getContext('2d'); c.font = f; "
        return self.tab.evaluate(code + "return c.measureText(t).width }", [text, font])

    def row_y(self, path: str) -> float:
        rows = self.data("rows")
        return rows["y"][rows["path"].index(path)]

    def pixel(self, y: float) -> float:
        """Where a row stands in the window."""
        return self.pixels([y])[0]

    def pixels(self, ys: list[float]) -> list[float]:
        start, end = self.tab.evaluate(f"[{MODEL}('plot').y_range.start, {MODEL}('plot').y_range.end]")
        box = self.box
        return [box["y"] + (end - y) / (end - start) * box["height"] for y in ys]

    def within_view(self, paths: Iterable[str]) -> set[str]:
        """Those of the rows that need no scrolling."""
        rows = self.data("rows")
        seen = zip(rows["path"], self.pixels(rows["y"]), strict=True)
        return {path for path, pixel in seen if pixel < HEIGHT - 4} & {*paths}

    @property
    def box(self) -> dict[str, float]:
        return self.tab.locator(".bk-Figure").first.bounding_box()

    def _processor_time(self) -> float:
        session = self.tab.context.new_cdp_session(self.tab)
        session.send("Performance.enable")
        metrics = session.send("Performance.getMetrics")["metrics"]
        return next(metric["value"] for metric in metrics if metric["name"] == "ProcessTime")

    def _word(self, path: str, text: str) -> tuple[float, float]:
        words, number = self.data("words"), self.data("all_rows")["path"].index(path)
        at = next(i for i, w in enumerate(words["text"]) if (words["row"][i], w) == (number, text))
        return self.box["x"] + words["x"][at] + 3, self.pixel(words["y"][at])

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)


MODEL = "Bokeh.documents[0].get_model_by_name"
