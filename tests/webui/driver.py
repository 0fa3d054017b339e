"""What a user does in the panel, for tests that drive a browser."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.webui.gradios import ROOT

WAIT_MS = 45_000  # networks are loaded on a machine that runs other tests, too


class PanelPage:
    """One open page."""

    def __init__(self, browser: Any, address: str, tab: str = "txt2img", theme: str = "light") -> None:
        self.page = browser.new_page(viewport={"width": 1500, "height": 1100})
        self.page.set_default_timeout(WAIT_MS)
        self.failures: list[str] = []
        self.page.on("pageerror", self._failed)
        self.page.goto(f"{address}/?__theme={theme}")
        self.page.wait_for_selector("#txt2img_generate")
        self.page.add_script_tag(path=str(ROOT / "javascript" / "dp_adapter.js"))
        self.go(tab)

    def _failed(self, error: object) -> None:
        self.failures.append(str(error))

    def go(self, tab: str) -> None:
        self.tab = tab
        self.page.locator(".tab-nav > button", has_text=tab).click()
        self.page.locator(f"#{tab}_generate").wait_for()

    def id(self, item: str) -> str:
        return f"#script_{self.tab}_dpadapter_{item}"

    def switch_on(self) -> None:
        self.page.check(f"{self.id('enabled-checkbox')} input")

    def open(self, group: str) -> None:
        """A closed group. What the server answers meanwhile can move it from under the mouse: then once more."""
        from playwright.sync_api import TimeoutError

        head = f"{self.id(f'group_{group}')} .label-wrap"
        for _ in range(4):
            self.page.click(head)
            with suppress(TimeoutError):
                self.page.wait_for_selector(f"{head}.open", timeout=5000)
                return
        raise AssertionError(f"the group {group!r} does not open")

    def click(self, item: str) -> None:
        self.page.click(self.id(item))

    def choose(self, item: str, value: str) -> None:
        """An entry of a dropdown, opened anew where a list from the server came in between."""
        from playwright.sync_api import TimeoutError

        for _ in range(4):
            with suppress(TimeoutError):
                self.options(item).get_by_text(value, exact=False).first.click(timeout=5000)
                return
            self.page.locator(f"{self.id(item)} input").blur()
        self.options(item).get_by_text(value, exact=False).first.click()

    def options(self, item: str) -> Any:
        """The entries of a dropdown, opened. A list that comes from the server meanwhile closes it again."""
        field = self.page.locator(f"{self.id(item)} input")
        entries = self.page.locator(f"{self.id(item)} ul li, ul.options li")
        for _ in range(5):
            field.click()
            self.page.wait_for_timeout(500)
            if entries.count():
                break
            field.blur()
        return entries

    def radio(self, item: str, value: str) -> None:
        self.page.locator(f"{self.id(item)} label", has_text=re.compile(f"^\\s*{value}\\s*$")).click()

    def type(self, item: str, text: str) -> None:
        self.page.fill(f"{self.id(item)} textarea, {self.id(item)} input", text)

    def slide(self, item: str, value: float) -> None:
        """Types a slider's number."""
        number = self.page.locator(f"{self.id(item)} input[type=number]")
        number.fill(str(value))
        number.press("Enter")
        number.blur()

    def drag(self, element: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Moves the pressed mouse over an element, by fractions of its size."""
        element.scroll_into_view_if_needed()
        area = element.bounding_box()
        points = [(area["x"] + x * area["width"], area["y"] + y * area["height"]) for x, y in (start, end)]
        self.page.mouse.move(*points[0])
        self.page.mouse.down()
        self.page.mouse.move(*points[1], steps=5)
        self.page.mouse.up()

    def drop(self, photos: Sequence[Path]) -> None:
        self.page.set_input_files(f"{self.id('drop')} input[type=file]", photos)

    def photos(self, captions: Sequence[str]) -> None:
        """Waits until the gallery shows photos with these captions."""
        self.texts(f"{self.id('gallery')} .caption-label", captions)

    def faces(self, captions: Sequence[str]) -> None:
        self.texts(f"{self.id('faces')} .caption-label", captions)

    def texts(self, selector: str, expected: Sequence[str]) -> None:
        self.until(lambda: self.page.locator(selector).all_inner_texts(), list(expected))

    def pick(self, gallery: str, number: int) -> None:
        self.page.locator(f"{self.id(gallery)} .thumbnail-item").nth(number).click()

    def says(self, item: str, words: str) -> None:
        """Waits until an element shows these words."""
        self.page.locator(self.id(item), has_text=words).first.wait_for()

    def request(self) -> dict[str, Any]:
        """What "Generate" asks for, without the version."""
        result = json.loads(self.generate())
        assert result.pop("version") == 1
        return result

    def generate(self) -> str:
        """The text that "Generate" shows."""
        box = self.page.locator(f"#{self.tab}_result textarea")
        self.page.evaluate("box => { box.value = ''; box.dispatchEvent(new Event('input')) }", box.element_handle())
        self.page.click(f"#{self.tab}_generate")
        self.page.wait_for_function("box => box.value !== ''", arg=box.element_handle())
        return box.input_value()

    def paste(self, settings: dict[str, Any]) -> None:
        """As the host does with a picture's parameters: sets every component."""
        self.page.fill(f"#{self.tab}_paste textarea", json.dumps(settings))
        self.page.click(f"#{self.tab}_paste_button")

    def until(self, look: Callable[[], Any], expected: Any) -> None:
        """Waits until something is as expected; says what it was at last."""
        seen: Any = None
        for _ in range(WAIT_MS // 100):
            seen = look()
            if seen == expected:
                return
            self.page.wait_for_timeout(100)
        raise AssertionError(f"seen at last: {seen!r}; expected: {expected!r}")

    def close(self) -> None:
        self.page.close()
        assert not self.failures
