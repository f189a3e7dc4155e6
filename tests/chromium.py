"""Drive a headless Chromium over its debugging pipe: enough to open a page and look at it."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

Json = dict[str, Any]

KEYS = {
    "Enter": 13, "Escape": 27, "End": 35,
    "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40,
}  # fmt: skip


def find() -> str | None:
    """Return the path of a Chromium or Chrome, if there is one."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


class Page:
    """One page of a browser of its own; use as a context manager.

    `events` holds everything the browser told since the start: console messages, uncaught
    errors and network requests among it.
    """

    def __init__(self, binary: str) -> None:
        self._profile = tempfile.mkdtemp(prefix="attrain-chromium-")
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        flags = [
            "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-dev-shm-usage", "--remote-debugging-pipe",
            f"--user-data-dir={self._profile}",
        ]  # fmt: skip
        # The browser reads its orders from descriptor 3 and answers on 4; moving both out of
        # the way first keeps one from landing on the other.
        far = [os.dup(to_browser), os.dup(from_browser)]
        while min(far) < 10:
            far = [os.dup(far[0]), os.dup(far[1])]
        order = f'exec "$0" "$@" 3<&{far[0]} 4>&{far[1]}'
        self._browser = subprocess.Popen(
            ["bash", "-c", order, binary, *flags, "about:blank"],
            pass_fds=far,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for descriptor in (*far, to_browser, from_browser):
            os.close(descriptor)
        self._rest = b""
        self._last = 0
        self._session: str | None = None
        self.events: list[Json] = []

    def __enter__(self) -> "Page":
        targets = self.send("Target.getTargets")["targetInfos"]
        page = next(target for target in targets if target["type"] == "page")
        attach = {"targetId": page["targetId"], "flatten": True}
        self._session = self.send("Target.attachToTarget", **attach)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._browser.terminate()
        self._browser.wait(timeout=20)
        os.close(self._out)
        os.close(self._in)
        shutil.rmtree(self._profile, ignore_errors=True)

    def send(self, method: str, **params: Any) -> Json:
        """Send one order and return its result."""
        self._last += 1
        order: Json = {"id": self._last, "method": method, "params": params}
        if self._session:
            order["sessionId"] = self._session
        os.write(self._out, json.dumps(order).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._last:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                result: Json = answer["result"]
                return result

    def open(
        self,
        path: Path,
        width: int = 1280,
        height: int = 900,
        dark: bool = False,
        fragment: str = "",
    ) -> None:
        """Open a file and wait until it is loaded."""
        self.resize(width, height)
        if fragment:
            # Another fragment alone would not load the page anew.
            self._navigate("about:blank")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self._navigate(path.resolve().as_uri() + fragment)

    def _navigate(self, address: str) -> None:
        seen = len(self.events)
        self.send("Page.navigate", url=address)
        while not any(e["method"] == "Page.loadEventFired" for e in self.events[seen:]):
            self._receive()

    def resize(self, width: int, height: int, density: float = 1) -> None:
        """Give the window a size in CSS pixels, each `density` pixels of the screen wide."""
        size = {"width": width, "height": height, "deviceScaleFactor": density}
        size["mobile"] = width < 600
        self.send("Emulation.setDeviceMetricsOverride", **size)

    def run(self, script: str) -> Any:
        """Run an expression in the page and return its value."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description"))
        return answer["result"].get("value")

    def wait(self, script: str, seconds: float = 10) -> Any:
        """Run an expression until its value is true, and return that."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            if time.monotonic() > end:
                raise TimeoutError(f"never true: {script}")
            time.sleep(0.02)
        return value

    def run_in_frame(self, script: str) -> Any:
        """Run an expression in the frame that is cut off from its page; hear its complaints."""
        targets = self.send("Target.getTargets")["targetInfos"]
        frame = next(target for target in targets if target["type"] == "iframe")
        attach = {"targetId": frame["targetId"], "flatten": True}
        inner = self.send("Target.attachToTarget", **attach)["sessionId"]
        outer, self._session = self._session, inner
        try:
            for domain in ("Runtime", "Log"):
                self.send(f"{domain}.enable")
            return self.wait(script)
        finally:
            self._session = outer

    def click(self, x: float, y: float) -> None:
        """Click with the mouse."""
        about: Json = {"x": x, "y": y, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, **about)

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.send("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """Press and release a key."""
        about: Json = {"key": key, "windowsVirtualKeyCode": KEYS[key]}
        if key == "Enter":
            about["text"] = "\r"
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, **about)

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """Save what the page shows, by default from top to bottom."""
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def pdf(self) -> bytes:
        """Return the printed page."""
        return base64.b64decode(self.send("Page.printToPDF")["data"])

    def complaints(self) -> list[str]:
        """Return everything that the console was told: errors, warnings, refused loads."""
        texts = []
        for event in self.events:
            params = event.get("params", {})
            if event["method"] == "Log.entryAdded":
                texts.append(params["entry"]["text"])
            elif event["method"] == "Runtime.exceptionThrown":
                texts.append(str(params["exceptionDetails"]))
            elif event["method"] == "Runtime.consoleAPICalled":
                texts.append(str(params["args"]))
        return texts

    def requests(self) -> list[str]:
        """Return the addresses of everything that the pages asked for."""
        asked = [e["params"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [params["request"]["url"] for params in asked]

    def _receive(self) -> Json:
        while b"\0" not in self._rest:
            data = os.read(self._in, 1 << 16)
            if not data:
                raise RuntimeError("the browser went away")
            self._rest += data
        text, self._rest = self._rest.split(b"\0", 1)
        message: Json = json.loads(text)
        if "id" not in message:
            self.events.append(message)
        return message
