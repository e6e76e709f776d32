"""Headless Chromium, driven by its DevTools protocol, with a video file as its camera."""

import base64
import itertools
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from overfeat.data.images import read_image
from overfeat.data.resize import resize

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage", "--mute-audio",
    "--remote-debugging-port=0", "--use-fake-device-for-media-stream",
]  # fmt: skip


def write_y4m(path: Path, images: list[Path], size=(240, 320), frames=10):
    """A video of images, each shown for a number of frames, as Chromium's camera reads it."""
    height, width = size
    with open(path, "wb") as file:
        file.write(f"YUV4MPEG2 W{width} H{height} F10:1 Ip A1:1 C420jpeg\n".encode())
        for image in images:
            pixels = resize(read_image(image)[None].float(), size)[0]
            red, green, blue = pixels.double()
            y = 0.299 * red + 0.587 * green + 0.114 * blue
            chroma = [128 + (channel - y) * factor for channel, factor in ((blue, 0.564), (red, 0.713))]
            planes = [y, *(torch.nn.functional.avg_pool2d(plane[None, None], 2)[0, 0] for plane in chroma)]
            frame = b"".join(plane.round().clamp(0, 255).numpy().astype(np.uint8).tobytes() for plane in planes)
            file.write((b"FRAME\n" + frame) * frames)


KEYS = {  # that are no characters: number, and the text that they type
    "Tab": (9, ""), "Enter": (13, "\r"), " ": (32, " "), "ArrowLeft": (37, ""), "ArrowRight": (39, ""),
    "ArrowDown": (40, ""),
}  # fmt: skip


class Browser:
    """A page in Chromium; `camera` is a y4m file, None for none that is allowed."""

    def __init__(self, url: str, camera: Path | None, size=(1280, 900)):
        from websockets.sync.client import connect

        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        allowed = [f"--use-file-for-fake-video-capture={camera}", "--use-fake-ui-for-media-stream"]
        flags = [
            *FLAGS,
            *(allowed if camera else ["--deny-permission-prompts"]),
            f"--user-data-dir={self._profile.name}",
        ]
        command = [CHROMIUM, *flags, f"--window-size={size[0]},{size[1]}", "about:blank"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port_file = Path(self._profile.name, "DevToolsActivePort")
        until(lambda: port_file.exists() and port_file.read_text().count("\n"), 60)
        port = port_file.read_text().split()[0]
        pages = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/json"))
        address = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
        self._stack = ExitStack()
        self._socket, self._ids = self._stack.enter_context(connect(address, max_size=None)), itertools.count(1)
        self.errors: list[str] = []
        for method in ("Page.enable", "Runtime.enable", "Log.enable"):
            self.call(method)
        self.call("Page.navigate", url=url)

    def call(self, method: str, **params):
        """The result of a command of the protocol."""
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(message["params"])[:1000])
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    def run(self, code: str):
        """The value of an expression of JavaScript in the page."""
        result = self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, code: str, seconds: float = 60):
        """Wait until an expression is true."""
        until(lambda: self.run(code), seconds, lambda: f"{code}; status: {self.text('status')}; {self.errors}")

    def text(self, id: str) -> str:
        """The text of an element."""
        return self.run(f"document.getElementById({id!r})?.textContent")

    def click(self, selector: str):
        """Click an element."""
        self.run(f"document.querySelector({selector!r}).click()")

    def press(self, key: str):
        """Press a key: a character, or one of KEYS."""
        number, text = KEYS.get(key, (0, key))
        pressed = {"key": key, "windowsVirtualKeyCode": number} if number else {"key": key}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **pressed)
        self.call("Input.dispatchKeyEvent", type="keyUp", **pressed)

    def screenshot(self, path: Path, quality: int | None = None):
        """Write a picture of the page."""
        kind = {"format": "png"} if quality is None else {"format": "jpeg", "quality": quality}
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", **kind)["data"]))

    def close(self):
        """End the browser."""
        self._stack.close()
        self._process.terminate()
        self._process.wait(20)
        self._profile.cleanup()


def until(condition, seconds: float, report=lambda: ""):
    """Wait until a condition is true, up to some seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, report()
        time.sleep(0.1)
