"""Chromium without a window, driven by its DevTools protocol over a pipe.

Only the standard library is needed, and a `chromium` on the path.
"""

import base64
import contextlib
import itertools
import json
import os
import select
import shlex
import shutil
import subprocess
import tempfile
import time

PROGRAM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)
_FLAGS = """--headless --no-sandbox --disable-gpu --no-first-run --hide-scrollbars
--disable-dev-shm-usage --disable-background-networking --disable-component-update
--disable-sync --disable-quic --remote-debugging-pipe""".split()
_SECONDS = 60  # for one answer; a page takes less than one


class Page:
    """A tab; `events` are what the browser reported: requests, errors, logs."""

    def __init__(self, write, read):
        self._write, self._read, self._rest = write, read, b""
        self._numbers, self._session, self.events = itertools.count(1), None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self):
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], _SECONDS)
            assert ready, "chromium does not answer"
            chunk = os.read(self._read, 2**20)
            assert chunk, "chromium has ended"
            self._rest += chunk
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def open(self, path, width, height=900, dark=False):
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1}
        self.call("Emulation.setDeviceMetricsOverride", **metrics, mobile=False)
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait(
            "document.readyState === 'complete' && !!document.querySelector('h2')"
        )

    def run(self, script):
        """The value of a JavaScript expression."""
        options = {"returnByValue": True, "awaitPromise": True, "userGesture": True}
        result = self.call("Runtime.evaluate", expression=script, **options)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, condition):
        end = time.monotonic() + _SECONDS
        while not self.run(condition):
            assert time.monotonic() < end, condition
            time.sleep(0.02)

    def click(self, selector):
        """Press and release the mouse in the middle of an element."""
        script = (
            f"(() => {{const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect();"
            "return [r.x + r.width / 2, r.y + r.height / 2]})()"
        )
        x, y = self.run(script)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            press = {"button": "left", "clickCount": 1} if kind != "mouseMoved" else {}
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **press)

    def screenshot(self, path):
        """The whole page as a PNG file."""
        options = {"format": "png", "captureBeyondViewport": True}
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        answer = self.call(
            "Page.captureScreenshot", clip={**size, "scale": 1}, **options
        )
        path.write_bytes(base64.b64decode(answer["data"]))

    def requests(self):
        """The addresses that the page asked for, itself and data URIs left out."""
        sent = [
            e for e in self.events if e.get("method") == "Network.requestWillBeSent"
        ]
        urls = [e["params"]["request"]["url"] for e in sent]
        return [url for url in urls if not url.startswith(("data:", "file:"))]

    def complaints(self):
        """Exceptions and what the browser logged, such as a violated policy."""
        kinds = (
            "Runtime.exceptionThrown",
            "Log.entryAdded",
            "Runtime.consoleAPICalled",
        )
        return [event for event in self.events if event.get("method") in kinds]


@contextlib.contextmanager
def chromium():
    """A page of a new browser with a profile of its own."""
    to_browser, write = os.pipe()
    read, from_browser = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        words = [PROGRAM, *_FLAGS, f"--user-data-dir={profile}"]
        # The browser reads from descriptor 3 and writes to descriptor 4.
        command = f"exec {shlex.join(words)} 3<&{to_browser} 4>&{from_browser}"
        process = subprocess.Popen(
            ["bash", "-c", command],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        try:
            yield Page(write, read)
        finally:
            process.terminate()
            process.wait()
            os.close(write)
            os.close(read)
