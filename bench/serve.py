"""The server under load, and frames of a camera: python -m bench.serve

A server process is asked by many clients at once, of which some leave early, send junk or too much; before and after,
a bare loop classifies the same images in a process of its own. Then frames go over the stream one by one, and, where
Chromium is installed, the page shows what a camera (a video file) sees.
"""

import argparse
import asyncio
import io
import itertools
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx
from PIL import Image
from websockets.sync.client import connect

from bench.browser import CHROMIUM, Browser, write_y4m
from bench.common import write_results
from overfeat.files import ASSETS

COMMAND = "python -m bench.serve"
PHOTOS = ("coffee.jpg", "chelsea.png", "rocket.jpg")
DIGITS = ASSETS / "multi-object" / "test" / "00012.png"
SIZE = (320, 240)
SCALES = "1.0"
ABORTED, JUNK, OVERSIZE = 0.04, 0.03, 0.002  # fractions of the requests
TOO_MUCH = b"\0" * ((16 << 20) + 1)
LIVE = {
    "classify, squeezenet": {"task": "classify", "model": "squeezenet", "scales": SCALES},
    "detect, digit-detector": {"task": "detect", "model": "digit-detector"},
}


def frames() -> list[bytes]:
    """JPEG files of 320x240 pixels, crops of the photographs that ship."""
    contents = []
    for name, number in itertools.product(PHOTOS, range(8)):
        with Image.open(ASSETS / "photos" / name) as photo:
            left, top = (number % 4) * (photo.width - SIZE[0]) // 3, (number // 4) * (photo.height - SIZE[1])
            file = io.BytesIO()
            photo.convert("RGB").crop((left, top, left + SIZE[0], top + SIZE[1])).save(file, "JPEG", quality=90)
            contents.append(file.getvalue())
    return contents


def bare_loop(seconds: float) -> float:
    """Images a second, decoded and classified one after the other in this process."""
    import overfeat.fast as overfeat
    from overfeat.data.images import decode_image

    net, contents = overfeat.squeezenet(), frames()
    for content in contents[:3]:
        overfeat.classify(net, decode_image(content), scales=[float(SCALES)])
    start, count = time.perf_counter(), 0
    while time.perf_counter() < start + seconds:
        overfeat.classify(net, decode_image(contents[count % len(contents)]), scales=[float(SCALES)])
        count += 1
    return count / (time.perf_counter() - start)


def loop_in_process(seconds: float) -> float:
    """`bare_loop` in a process of its own."""
    command = [sys.executable, "-m", "bench.serve", "--loop", str(seconds)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


class Load:
    """Clients of a server, for a time; what they were answered."""

    def __init__(self, address: str, seconds: float):
        self.url, self.stop = f"{address}/v1/classify?scales={SCALES}", time.monotonic() + seconds
        self.contents, self.latencies = frames(), []
        self.answers: Counter[str] = Counter()

    async def client(self, session: httpx.AsyncClient, number: int) -> None:
        rng = random.Random(number)
        while time.monotonic() < self.stop:
            draw, content = rng.random(), rng.choice(self.contents)
            limit = None
            if draw < ABORTED:
                limit = rng.random() * 0.5
            elif draw < ABORTED + JUNK:
                content = rng.randbytes(rng.randrange(5000))
            elif draw < ABORTED + JUNK + OVERSIZE:
                content = TOO_MUCH
            start = time.monotonic()
            try:
                response = await asyncio.wait_for(session.post(self.url, content=content), limit)
                self.answers[str(response.status_code)] += 1
                if response.status_code == 200:
                    self.latencies.append(time.monotonic() - start)
                elif response.status_code == 503:
                    await asyncio.sleep(int(response.headers["retry-after"]))
            except TimeoutError:
                self.answers["left"] += 1
            except httpx.HTTPError as error:
                refused = content is TOO_MUCH  # the server answers before all was sent
                self.answers["refused" if refused else type(error).__name__] += 1

    async def run(self, clients: int, address: str) -> list[float]:
        """Run the clients; returns the server's memory in MiB by seconds."""
        memory = []
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=clients)
        async with httpx.AsyncClient(timeout=120, limits=limits) as session:
            tasks = [asyncio.create_task(self.client(session, number)) for number in range(clients)]
            while time.monotonic() < self.stop:
                await asyncio.sleep(5)
                memory.append(memory_of((await session.get(f"{address}/metrics")).text))
            await asyncio.gather(*tasks)
        return memory


def memory_of(metrics: str) -> float:
    """The server's memory in MiB, from its metrics."""
    match = re.search(r"^process_resident_memory_bytes (\S+)", metrics, re.MULTILINE)
    assert match
    return float(match[1]) / 2**20


def stream_rates(address: str, count: int) -> dict[str, dict]:
    """Frames a second of one stream, and the mean milliseconds by stage."""
    rates = {}
    for name, settings in LIVE.items():
        with connect(f"{address.replace('http', 'ws')}/v1/live", max_size=None) as stream:
            stream.send(json.dumps(settings))
            stream.recv()
            answers, contents = [], frames()
            for number in range(count + 3):
                if number == 3:
                    start = time.perf_counter()
                stream.send(contents[number % len(contents)])
                answers.append(json.loads(stream.recv(timeout=120)))
            elapsed = time.perf_counter() - start
        stages = {stage for answer in answers for stage in answer["ms"]}
        ms = {stage: statistics.mean(a["ms"].get(stage, 0) for a in answers[3:]) for stage in sorted(stages)}
        rates[name] = {"frames/s": count / elapsed, "ms": ms}
    return rates


def page_rates(address: str, seconds: float) -> dict[str, dict]:
    """Frames a second of the page with a camera, and the page's own milliseconds a frame."""
    rates = {}
    with tempfile.TemporaryDirectory() as folder:
        camera = Path(folder, "camera.y4m")
        write_y4m(camera, [ASSETS / "photos" / PHOTOS[0]])
        page = Browser(f"{address}/", camera)
        try:
            page.wait_for("document.getElementById('status')?.dataset.kind === 'ok'")
            page.press("c")
            for name, settings in LIVE.items():
                if page.run(f"document.getElementById('model').value !== {settings['model']!r}"):
                    choose_model(page, settings["model"])
                count = "Number(document.documentElement.dataset.frames ?? 0)"
                first = page.run(count)
                page.wait_for(f"{count} > {first + 3}", 120)
                first, start, own = page.run(count), time.perf_counter(), []
                while time.perf_counter() < start + seconds:
                    time.sleep(0.1)
                    own.append(float(page.run("document.documentElement.dataset.own")))
                shown = page.run(count) - first
                elapsed = time.perf_counter() - start
                rates[name] = {"frames/s": shown / elapsed, "own ms": statistics.median(own)}
        finally:
            page.close()
    return rates


def choose_model(page: Browser, name: str) -> None:
    """Choose a net on the page."""
    change = "model.dispatchEvent(new Event('change', {bubbles: true}))"
    page.run(f"(model => {{ model.value = {name!r}; {change} }})(document.getElementById('model'))")


def take_screenshot(address: str, path: Path) -> None:
    """A picture of the page: digits before the camera, detected, with the boxes before merging."""
    with tempfile.TemporaryDirectory() as folder:
        camera = Path(folder, "camera.y4m")
        write_y4m(camera, [DIGITS], (480, 576))
        page = Browser(f"{address}/", camera, (1280, 1000))
        try:
            page.wait_for("document.getElementById('status')?.dataset.kind === 'ok'")
            choose_model(page, "digit-detector")
            for key in "bc":
                page.press(key)
            count = "Number(document.documentElement.dataset.frames ?? 0)"
            page.wait_for(f"{count} > 14", 300)
            page.screenshot(path, 80)
        finally:
            page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loop", type=float, metavar="S", help="run the bare loop alone for so long")
    parser.add_argument("--screenshot", type=Path, metavar="FILE.jpg", help="take a picture of the page alone")
    parser.add_argument("--seconds", type=float, default=60, metavar="S", help="of the load (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=64, metavar="N", help="at once (default: %(default)s)")
    args = parser.parse_args()
    if args.loop:
        print(bare_loop(args.loop))
        return
    others = os.getloadavg()[0]
    before = None if args.screenshot else loop_in_process(args.seconds / 4)
    command = [sys.executable, "-m", "overfeat", "serve", "--port", "0", "--queue-size", str(2 * args.clients)]
    command += ["--deadline", "300"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        match = re.search(r"http\S*[^/\s]", server.stdout.readline())
        assert match, "the server does not start"
        address = match[0]
        if args.screenshot:
            take_screenshot(address, args.screenshot)
            return
        stream_rates(address, 1)  # the nets are warmed up after the start
        results = {"load average": others, "live": stream_rates(address, 40)}
        if CHROMIUM:
            results["page"] = page_rates(address, 10)
        load = Load(address, args.seconds)
        memory = asyncio.run(load.run(args.clients, address))
    finally:
        server.terminate()
        status = server.wait(120)
    after = loop_in_process(args.seconds / 4)
    latencies = sorted(load.latencies)
    assert before is not None
    results["load"] = {
        "clients": args.clients, "seconds": args.seconds, "answers": dict(sorted(load.answers.items())),
        "requests/s": len(latencies) / args.seconds, "p50": latencies[len(latencies) // 2],
        "p99": latencies[int(0.99 * len(latencies))], "memory": memory, "loop": [before, after],
        "ratio": len(latencies) / args.seconds / statistics.mean([before, after]), "exit status": status,
    }  # fmt: skip
    write_results("serve", COMMAND, results)


if __name__ == "__main__":
    main()
