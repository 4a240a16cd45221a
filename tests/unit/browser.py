"""A headless Chromium that a test drives as a user would: by the mouse and the keyboard, over the DevTools protocol."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import itertools
import json
import os
import select
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

PATIENCE_SECONDS = 60.0
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-default-apps", "--disable-extensions", "--hide-scrollbars",
    "--force-color-profile=srgb", "--remote-debugging-pipe",
)  # fmt: skip
KEYS = {
    "Enter": 13,
    "Escape": 27,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
    "Home": 36,
    "End": 35,
}


class Browser:
    """A browser with one page. Use it as a context manager."""

    def __enter__(self) -> Browser:
        assert CHROMIUM is not None
        self._profile = tempfile.mkdtemp(prefix="page-")
        ends = [*os.pipe(), *os.pipe()]
        read, self._write, self._read, write = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
        for end in ends:
            os.close(end)
        argv = [CHROMIUM, *FLAGS, f"--user-data-dir={self._profile}", "about:blank"]
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        actions = [(os.POSIX_SPAWN_DUP2, read, 3), (os.POSIX_SPAWN_DUP2, write, 4), (os.POSIX_SPAWN_DUP2, nowhere, 2)]
        self._pid = os.posix_spawn(CHROMIUM, argv, os.environ, file_actions=actions, setpgroup=0)
        for end in (read, write, nowhere):
            os.close(end)
        self._numbers = itertools.count(1)
        self._buffer = b""
        self.events: list[dict[str, Any]] = []
        self._session = ""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.ask(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._write)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._read)
        shutil.rmtree(self._profile, ignore_errors=True)

    def ask(self, method: str, **parameters: Any) -> Any:
        """One command of the protocol; its result. What happens meanwhile is added to `events`."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            answer = self._message(deadline)
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _message(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(deadline - time.monotonic(), 0))
            assert ready, "the browser does not answer"
            data = os.read(self._read, 1 << 20)
            assert data, "the browser has ended"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def open(self, path: Path, *, dark: bool = False, width: int = 1200, height: int = 900) -> None:
        """Opens a file, and waits until its script has run."""
        self.events.clear()
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", media="", features=[scheme])
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.ask("Page.navigate", url=path.as_uri())
        self.wait_for("document.readyState === 'complete'")

    def wait_for(self, condition: str) -> None:
        """Waits until an expression is true."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self.evaluate(condition):
            assert time.monotonic() < deadline, f"never true: {condition}"
            time.sleep(0.05)

    def evaluate(self, expression: str) -> Any:
        """An expression's value; what it throws is an AssertionError."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def text(self, selector: str) -> str:
        """What an element says."""
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)}).textContent"))

    def texts(self, selector: str) -> list[str]:
        """What the elements say that are to be seen."""
        found = self.evaluate(
            f"Array.from(document.querySelectorAll({json.dumps(selector)}))"
            ".filter((each) => each.checkVisibility()).map((each) => each.textContent)"
        )
        return list(found)

    def choose(self, selector: str, value: str) -> None:
        """Chooses an entry of a list."""
        self.evaluate(
            f"(() => {{ const list = document.querySelector({json.dumps(selector)}); list.value = {json.dumps(value)};"
            " list.dispatchEvent(new Event('change', {bubbles: true})); })()"
        )

    def _place(self, element: str, across: float) -> tuple[float, float]:
        box = self.evaluate(
            f"(() => {{ const it = {element}; it.scrollIntoView({{block: 'center'}});"
            " const {left, top, width, height} = it.getBoundingClientRect(); return [left, top, width, height]; })()"
        )
        left, top, width, height = box
        return left + width * across, top + height / 2

    def click(self, selector: str, *, saying: str | None = None, across: float = 0.5) -> None:
        """Clicks on an element, the one that says just `saying`; `across`: how far from its left edge."""
        self.drag(selector, across, across, saying=saying)

    def drag(self, selector: str, across: float, to: float, *, saying: str | None = None) -> None:
        """Presses the mouse at one place of an element and releases it at another one."""
        found = f"Array.from(document.querySelectorAll({json.dumps(selector)}))"
        element = (
            f"{found}[0]" if saying is None else f"{found}.find((each) => each.textContent === {json.dumps(saying)})"
        )
        (start, y), (end, _) = self._place(element, across), self._place(element, to)
        button = {"button": "left", "buttons": 1, "clickCount": 1}
        self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=start, y=y)
        self.ask("Input.dispatchMouseEvent", type="mousePressed", x=start, y=y, **button)
        if end != start:
            self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=end, y=y, **button)
        self.ask("Input.dispatchMouseEvent", type="mouseReleased", x=end, y=y, **button)

    def press(self, *keys: str, shift: bool = False) -> None:
        """Presses keys, one after the other, wherever the focus is."""
        for key in keys:
            name = {"key": key, "modifiers": 8 if shift else 0, "windowsVirtualKeyCode": KEYS.get(key, 0)}
            typed = {"text": key} if len(key) == 1 else {}
            self.ask("Input.dispatchKeyEvent", type="keyDown", **name, **typed)
            self.ask("Input.dispatchKeyEvent", type="keyUp", **name)

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """The whole page as PNG, or what is to be seen of it."""
        shot = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def requests(self) -> list[str]:
        """What was loaded since the page was opened."""
        return [
            each["params"]["request"]["url"]
            for each in self.events
            if each.get("method") == "Network.requestWillBeSent"
        ]

    def complaints(self) -> list[str]:
        """Errors of the page's script, and what the browser says about the page."""
        methods = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        return [json.dumps(each["params"]) for each in self.events if each.get("method") in methods]
