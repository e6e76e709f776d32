"""The page in a real browser, before the real command, with a video file as the camera."""

import re
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from serving import ServerProcess, served, tiny_models

from bench.browser import CHROMIUM, Browser, until, write_y4m
from overfeat.files import ASSETS

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; Debian's package is called chromium")
READY = "document.getElementById('status')?.dataset.kind === 'ok'"
FRAMES = "Number(document.documentElement.dataset.frames ?? 0)"
PAINTED = """(() => {
  const canvas = document.getElementById('view');
  const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  let sum = 0;
  for (let i = 0; i < pixels.length; i += 97) sum = (sum * 31 + pixels[i]) % 1000003;
  return sum;
})()"""


@pytest.fixture(scope="module")
def servers():
    servers = []
    yield servers
    for server in servers:
        if server.process.poll() is None:
            server.stop()


@pytest.fixture
def server(servers):
    """A server that runs: a test may stop it."""
    if not servers or servers[-1].process.poll() is not None:
        servers.append(ServerProcess())
    return servers[-1]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A browser with a camera that sees a cup."""
    camera = tmp_path_factory.mktemp("camera") / "camera.y4m"
    write_y4m(camera, [ASSETS / "photos" / "coffee.jpg"])
    browser = Browser("about:blank", camera)
    yield browser
    browser.close()
    assert not browser.errors, browser.errors


@pytest.fixture
def without_camera():
    """A browser without a camera."""
    browser = Browser("about:blank", None)
    yield browser
    browser.close()
    assert not browser.errors, browser.errors


@pytest.fixture
def page(browser, server):
    """The server's page, opened in a new tab of the browser."""
    browser.call("Page.navigate", url=f"{server.address}/")
    browser.wait_for(f"window.opened === undefined && {READY}")
    browser.run("window.opened = true")
    return browser


def next_frames(page, count=2):
    """Wait for the answers of frames that are taken from now on."""
    now = page.run(FRAMES)
    page.wait_for(f"{FRAMES} >= {now + count}", 120)


@needs_chromium
def test_a_camera_is_classified_taught_and_lost(page):
    page.run(
        "(own => navigator.mediaDevices.getUserMedia = async (wanted) => window.stream = await own(wanted))"
        "(navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices))"
    )
    page.press("c")
    next_frames(page, 1)
    assert page.text("results").startswith("espresso")
    plain = page.run(PAINTED)
    page.press("h")
    next_frames(page)
    assert page.run(PAINTED) != plain and page.text("results").startswith("espresso")
    page.press("4")
    next_frames(page)
    page.run("document.getElementById('name').value = 'my cup'")
    page.click("#learn")
    page.wait_for("document.getElementById('results').textContent.startsWith('my cup')", 120)
    assert page.text("taught") == "my cup · 1 ✕"
    page.click("#taught button")
    page.wait_for("document.getElementById('results').textContent === ''", 120)
    page.run("stream.getVideoTracks()[0].dispatchEvent(new Event('ended'))")
    assert page.text("status").startswith("the camera was disconnected") and page.text("camera") == "Camera"


@needs_chromium
def test_boxes_of_a_picture_before_and_after_merging(page):
    page.run(
        "(model => { model.value = 'digit-detector'; model.dispatchEvent(new Event('change', {bubbles: true})) })"
        "(document.getElementById('model'))"
    )
    page.click("#samples button:nth-child(4)")
    next_frames(page, 1)
    count = int(re.search(r"Objects \((\d+)\)", page.text("results-title"))[1])
    assert count >= 3 and " of " in page.text("results")
    merged = page.run(PAINTED)
    page.press("b")
    next_frames(page, 1)
    assert page.run(PAINTED) != merged
    assert page.text("results-title") == f"Objects ({count})"


@needs_chromium
def test_a_refused_camera_and_a_server_that_restarts_are_told(without_camera):
    models, page = tiny_models(), without_camera
    with served(models) as address:
        page.call("Page.navigate", url=f"{address}/")
        page.wait_for(READY)
        page.press("c")
        page.wait_for("document.getElementById('status').textContent.startsWith('the camera was refused')")
        page.click("#samples button")
        next_frames(page, 1)
    page.wait_for("document.getElementById('status').textContent.startsWith('the server does not answer')")
    page.click("#samples button:nth-child(2)")
    with served(models, port=int(address.rpartition(":")[2])):
        page.wait_for(READY, 90)
        page.click("#samples button:nth-child(2)")
        next_frames(page, 1)
        assert "birch" in page.text("results")


FOCUSED = """(() => {
  const focused = document.activeElement;
  const shown = focused.matches('.tasks input') ? focused.nextElementSibling : focused;
  const {outlineStyle, outlineWidth} = getComputedStyle(shown);
  const name = focused.labels?.[0]?.textContent || focused.ariaLabel || focused.title || focused.textContent;
  const isShown = outlineStyle !== 'none' && parseFloat(outlineWidth) >= 2;
  return [focused.id || focused.tagName.toLowerCase(), name.trim(), isShown];
})()"""


def tab(page, to=None):
    """Press Tab until an element has the focus, or through the page; returns the ids, all of which show the focus."""
    passed = []
    while len(passed) < 60:
        page.press("Tab")
        id, name, is_shown = page.run(FOCUSED)
        if id == "body" or (passed and passed[0] == id != "button"):
            break
        assert name and is_shown, (id, name)
        passed.append(id)
        if id == to:
            break
    return passed


@needs_chromium
def test_the_page_by_keyboard_alone(page):
    assert tab(page) == [
        "camera", "open", "width", *["button"] * 5, "input", "model", "scales", "stride", "maps", "label", "summary"
    ]  # fmt: skip
    tab(page, "width")
    page.press("Tab")
    page.press("Enter")  # the first picture that ships
    next_frames(page, 1)
    assert page.text("results").startswith("espresso")
    plain = page.run(PAINTED)
    tab(page, "maps")
    page.press(" ")
    next_frames(page, 1)
    assert page.run(PAINTED) != plain
    tab(page, "label")
    page.press("Tab")
    page.press("Tab")
    best = page.run(FOCUSED)[1]
    page.press(" ")  # the heat map of the second class
    next_frames(page, 1)
    assert best.startswith(page.run("document.getElementById('label').value"))
    assert page.run("document.activeElement.getAttribute('aria-pressed')") == "true"


@needs_chromium
def test_a_class_is_taught_and_forgotten_by_keyboard(page):
    page.click("#samples button")
    next_frames(page, 1)
    page.run("document.querySelector('input[name=task]').focus()")
    page.press("ArrowLeft")  # to the last task
    next_frames(page, 1)
    tab(page, "name")
    for key in "cup":
        page.press(key)
    page.press("Enter")
    page.wait_for("document.getElementById('results').textContent.startsWith('cup')", 120)
    assert tab(page)[:2] == ["learn", "button"]
    page.run("document.querySelector('#taught button').focus()")
    page.press("Enter")
    page.wait_for("document.getElementById('results').textContent === ''", 120)
    assert page.run(FOCUSED)[0] == "name" and page.text("taught") == ""


def test_the_command_answers_and_stops_when_asked(server):
    content = (ASSETS / "photos" / "coffee.jpg").read_bytes()
    answer = httpx.post(f"{server.address}/v1/classify?scales=0.6", content=content, timeout=120).json()
    assert answer["classes"][0]["class"] == "espresso" and answer["model"] == "squeezenet"
    names = [model["name"] for model in httpx.get(f"{server.address}/v1/models").json()["models"]]
    assert names == ["squeezenet", "squeezenet-neighbours", "digits", "digit-detector", "blood-cells"]


def send_junk(address):
    """Requests that fail, of which nothing may be printed."""
    form = {"content-type": "multipart/form-data; boundary=x"}
    assert httpx.post(f"{address}/v1/classify", content=b"\xff" * 100, headers=form).status_code == 400
    host, port = address.removeprefix("http://").split(":")
    upgrade = f"GET /v1/live HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    with_key = f"{upgrade}Sec-WebSocket-Key: {'A' * 22}==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    for start in (b"\xff junk\r\n\r\n", f"{upgrade}\r\n".encode(), with_key.encode() + b"\xff" * 100):
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(start)
            assert b" 400 " in connection.recv(4096) or start.startswith(with_key.encode())


def test_what_is_accepted_is_answered_before_the_server_stops(server):
    content = (ASSETS / "photos" / "coffee.jpg").read_bytes()
    send_junk(server.address)
    with ThreadPoolExecutor(1) as pool:
        url = f"{server.address}/v1/classify?scales=1.2"
        answer = pool.submit(httpx.post, url, content=content, timeout=120)
        until(lambda: "overfeat_held_bytes 0" not in httpx.get(f"{server.address}/metrics").text, 60)
        status, errors = server.stop(signal.SIGINT)
        assert answer.result().json()["classes"][0]["class"] == "espresso"
    assert status == 0 and errors == ""
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.address}/healthz")
