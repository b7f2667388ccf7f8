"""A headless Chromium driven by the DevTools protocol over two pipes; needs nothing but the browser itself."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

SECONDS = 30  # for one answer of the browser


def find_chromium() -> str | None:
    """The path of an installed Chromium or Chrome."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


class Chromium:
    """One browser with one page, as a context manager.

    `events` are all that the browser told since the page was opened, as (method, parameters).
    """

    def __init__(self, executable: str) -> None:
        self._folder = tempfile.mkdtemp(prefix="chromium-")
        read_commands, self._commands = (_high(end) for end in os.pipe())
        self._answers, write_answers = (_high(end) for end in os.pipe())
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        flags += ["--no-first-run", "--disable-background-networking", "--disable-extensions", "--disable-sync"]
        flags += ["--remote-debugging-pipe", f"--user-data-dir={self._folder}", "about:blank"]
        self._process = os.posix_spawn(
            executable,
            [executable, *flags],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, read_commands, 3),  # where Chromium expects them
                (os.POSIX_SPAWN_DUP2, write_answers, 4),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            ],
        )
        os.close(read_commands)
        os.close(write_answers)
        self._pending = b""
        self._count = 0
        self._session: str | None = None
        self.events: list[tuple[str, dict[str, Any]]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, *_: object) -> None:
        """End the browser, by force if it does not answer, and remove its profile."""
        self._session = None
        try:
            self.call("Browser.close")
        except (OSError, TimeoutError):
            os.kill(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
        os.close(self._commands)
        os.close(self._answers)
        shutil.rmtree(self._folder, ignore_errors=True)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; what else arrives goes to `events`.

        Raises `RuntimeError` for a command that the browser refuses, `TimeoutError` where it does not answer, `OSError`
        where it has ended.
        """
        self._count += 1
        number = self._count
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") != number:
                self.events.append((answer.get("method", ""), answer.get("params", {})))
            elif "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']}")
            else:
                result: dict[str, Any] = answer["result"]
                return result

    def open(self, address: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Show a page in a window of this size and scheme, and wait until it is loaded."""
        self.resize(width, height, dark=dark)
        self.events.clear()
        self.call("Page.navigate", url=address)
        end = time.monotonic() + SECONDS
        while not any(method == "Page.loadEventFired" for method, _ in self.events):
            if time.monotonic() > end:
                raise TimeoutError(address)
            answer = self._receive()
            self.events.append((answer.get("method", ""), answer.get("params", {})))

    def resize(self, width: int, height: int = 900, *, dark: bool = False) -> None:
        """Give the page another size and colour scheme; below 700 pixels it is a phone."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 700
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press and release a key, as "Tab" with its code 9; `text` is what it writes."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=text)

    def screenshot(self, path: Path, *, clip: dict[str, float] | None = None) -> None:
        """Write a PNG of the window, or of a part of the page given by x, y, width, height and scale."""
        found = self.call("Page.captureScreenshot", **({"clip": clip, "captureBeyondViewport": True} if clip else {}))
        path.write_bytes(base64.b64decode(found["data"]))

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._pending:
            if not select.select([self._answers], [], [], SECONDS)[0]:
                raise TimeoutError("the browser does not answer")
            part = os.read(self._answers, 1 << 16)
            if not part:
                raise OSError("the browser has ended")
            self._pending += part
        text, _, self._pending = self._pending.partition(b"\0")
        answer: dict[str, Any] = json.loads(text)
        return answer


def _high(end: int) -> int:
    """The same pipe end under a number that is in nobody's way when 3 and 4 are given out."""
    moved = fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(end)
    return moved
