"""The REST interface: its answers are those of the library, and what it refuses."""

import asyncio
import io
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from serving import served, tiny_models

import overfeat
from overfeat.data.images import read_image
from overfeat.dense.heat_maps import class_scores
from overfeat.dense.results import object_entries
from overfeat.errors import InputError
from overfeat.files import ASSETS
from overfeat.serve.batches import Batches
from overfeat.serve.config import ServeConfig
from overfeat.serve.models import load_models
from overfeat.serve.run import make_server

PHOTO = ASSETS / "scenes" / "00012.png"


@pytest.fixture(scope="module")
def models():
    return tiny_models()


@pytest.fixture(scope="module")
def client(models):
    with served(models) as address, httpx.Client(base_url=address, timeout=60) as client:
        yield client


def post(client, path, content=None, **options):
    return client.post(path, content=PHOTO.read_bytes() if content is None else content, **options)


def test_classify_answers_as_the_library_does(client, models):
    answer = post(client, "/v1/classify?scales=1.0,1.5&flip=true&top_k=2").json()
    scores = overfeat.classify(models["trees"].net, PHOTO, scales=(1.0, 1.5), flip=True)[0]
    top = scores.topk(2)
    assert [entry["class"] for entry in answer["classes"]] == [models["trees"].net.class_names[i] for i in top.indices]
    assert [entry["score"] for entry in answer["classes"]] == pytest.approx(top.values.tolist())
    assert answer["model"] == "trees" and answer["image"] == {"height": 141, "width": 171}
    assert answer["ms"]["features"] > 0 and answer["ms"]["decode"] > 0


def test_a_form_is_as_the_image_itself(client):
    form = client.post("/v1/classify", files={"image": ("a.png", PHOTO.read_bytes(), "image/png")})
    assert form.json()["classes"] == post(client, "/v1/classify").json()["classes"]
    other = client.post("/v1/classify", files={"photo": ("a.png", b"x")})
    assert other.status_code == 400 and "no file `image`" in other.json()["error"]


def test_heat_maps_as_json_arrays_and_picture(client, models):
    maps = overfeat.score_maps(models["trees"].net, PHOTO, scales=(1.0, 1.5), flip=False)
    scores, label = class_scores(maps), models["trees"].net.class_names.index("cedar")
    query = "/v1/classify?scales=1.0,1.5&flip=false&label=cedar"
    arrays = np.load(io.BytesIO(post(client, f"{query}&format=npz").content))
    assert arrays["classes"].tolist() == ["cedar"]
    np.testing.assert_allclose(arrays["scores_1"][0], maps[1].scores[0, label], rtol=1e-5)
    np.testing.assert_allclose(arrays["windows_1"], maps[1].grid.boxes(), rtol=1e-5)
    answer = post(client, f"{query}&maps=true").json()
    assert answer["maps"]["label"] == "cedar" and len(answer["maps"]["scales"]) == 2
    assert answer["maps"]["scales"][0]["max"] == pytest.approx(float(maps[0].scores[0, label].max()), rel=1e-4)
    assert answer["classes"][0]["score"] == pytest.approx(float(scores.max()))
    response = post(client, f"{query}&format=png")
    assert response.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(response.content)).size == (171, 141)


def test_boxes_as_the_library_finds_them(client, models):
    net, regressor = models["sides"].net, models["sides"].regressor
    answer = post(client, "/v1/detect?scales=1.0&flip=false&stride=coarse&min_score=0&raw=true").json()
    dense = {"scales": [1.0], "flip": False, "stride": "coarse"}
    expected = object_entries(overfeat.detect(net, regressor, PHOTO, **dense, min_score=0), net.class_names[:2])
    assert len(expected) > 0 and answer["objects"] == expected
    assert answer["raw"] and {"class", "score", "scale", "box"} == set(answer["raw"][0])
    answer = post(client, "/v1/localize?scales=1.0&flip=false&stride=coarse&top_k=1").json()
    expected = object_entries(overfeat.localize(net, regressor, PHOTO, **dense, top_k=1), net.class_names)
    assert answer["objects"] == expected and len(expected) == 1


def test_features_of_a_layer(client, models):
    arrays = np.load(io.BytesIO(post(client, "/v1/features?layer=0").content))
    expected = models["trees"].net.layer_output(read_image(PHOTO)[None].float(), 0)[0]
    torch.testing.assert_close(torch.from_numpy(arrays["features"]), expected)
    answer = post(client, "/v1/features?layer=17&format=json").json()
    assert answer["layer"] == 17 and np.prod(answer["shape"]) == len(answer["values"])


def test_models_health_metrics_and_the_page(client):
    described = {model["name"]: model for model in client.get("/v1/models").json()["models"]}
    assert described["trees"]["classes"] == ["ash", "birch", "cedar"] and described["trees"]["tasks"][0] == "classify"
    assert described["sides"]["tasks"][0] == "detect" and described["sides"]["classes"] == ["left", "right"]
    assert client.get("/healthz").json() == {"status": "ok"}
    post(client, "/v1/classify")
    text = client.get("/metrics").text
    assert 'overfeat_requests_total{endpoint="classify",status="200"}' in text
    assert 'le="+Inf"' in text and "process_resident_memory_bytes" in text
    page = client.get("/")
    assert (
        "<title>overfeat live</title>" in page.text and "default-src 'self'" in page.headers["content-security-policy"]
    )
    assert client.get("/samples/0").headers["content-type"] == "image/jpeg"


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("classify?colour=red", 422, "unknown parameter colour; classify has"),
        ("classify?model=oak", 404, "model must be one of trees, sides, not oak"),
        ("detect?model=trees", 422, "model trees does not detect; its tasks are classify, features"),
        ("classify?scales=7", 422, "a factor is written 7.0"),
        ("classify?scales=0.01", 422, "less than"),
        ("classify?scales=900.0", 422, "would become"),
        ("classify?stride=zero", 422, "neither fine, coarse"),
        ("classify?top_k=0", 422, "top_k must be from 1 to 1000, not 0"),
        ("classify?top_k=many", 422, "top_k must be a whole number, not 'many'"),
        ("classify?top_k=1_0", 422, "top_k must be a whole number, not '1_0'"),
        ("classify?top_k=%D9%A3", 422, "top_k must be a whole number"),
        ("detect?min_score=%D9%A0", 422, "min_score must be a number"),
        ("detect?min_score=nan", 422, "min_score must be from 0 to 1, not nan"),
        ("classify?flip=perhaps", 422, "flip must be true or false"),
        ("classify?label=oak", 422, "trees has no class 'oak'"),
        ("classify?format=gif", 422, "format must be one of json, png, npz, not gif"),
        ("classify?top_k=1&top_k=2", 422, "given twice"),
        ("features?layer=99", 422, "layer must be one of 0..19"),
        ("features?stride=3", 422, "stride does not apply"),
    ],
)
def test_bad_parameters_are_refused_in_words(client, path, status, words):
    response = post(client, f"/v1/{path}")
    assert response.status_code == status and words in response.json()["error"]


def test_other_methods_and_paths_are_errors_in_json(client):
    response = client.get("/v1/classify")
    assert response.status_code == 405 and response.headers["allow"] == "POST"
    assert response.json() == {"error": "Method Not Allowed"}
    assert client.post("/healthz").status_code == 405
    assert client.get("/v2").status_code == 404 and client.get("/v2").json() == {"error": "Not Found"}


def test_bad_bodies_are_refused_in_words(client):
    for content, kind, status, words in [
        (b"", "image/png", 422, "empty (0 bytes)"),
        (b"junk", "image/png", 422, "not an image"),
        (PHOTO.read_bytes()[:500], "image/png", 422, "damaged or cut short"),
        (b"{}", "application/json", 415, "Content-Type must be image/*"),
        (b"junk", "multipart/form-data", 400, "the form cannot be read"),
        (b"junk", "multipart/form-data; boundary=x", 400, ""),
    ]:
        response = post(client, "/v1/classify", content, headers={"content-type": kind})
        assert response.status_code == status and words in response.json()["error"], (content, kind)


def test_limits_of_size_pixels_and_work(models):
    with served(models, max_body=1 << 20, max_pixels=171 * 140, max_work=0.001) as address:
        with httpx.Client(base_url=address) as client:
            assert post(client, "/v1/classify", b"x" * (1 << 20)).status_code == 422
            for content in (b"x" * ((1 << 20) + 1), iter([b"x" * (1 << 19)] * 3)):  # with and without a length
                response = post(client, "/v1/classify", content)
                assert response.status_code == 413 and "more than 1 MiB" in response.json()["error"]
            assert "more than the limit of 23,940" in post(client, "/v1/classify").json()["error"]
            file = io.BytesIO()
            Image.open(PHOTO).crop((0, 0, 100, 100)).save(file, "PNG")
            response = post(client, "/v1/classify?scales=1.0", file.getvalue())
            assert response.status_code == 422 and "billion multiplications, more than" in response.json()["error"]


def test_no_file_of_the_server_is_readable(client):
    for path in (
        "/../pyproject.toml",
        "/samples/../../pyproject.toml",
        "/samples/99",
        "/static/app.js",
        "//etc/passwd",
    ):
        assert client.get(path).status_code == 404, path
        assert client.get(path.replace("/", "%2f").replace("%2f", "/", 1)).status_code == 404, path


def test_pages_of_other_sites_and_other_host_names_are_refused(client, models):
    url = str(client.base_url)
    assert client.get("/v1/models", headers={"origin": url}).status_code == 200
    for headers in ({"origin": "http://evil.example"}, {"origin": "null"}, {"host": "evil.example"}, {"host": "["}):
        assert client.get("/v1/models", headers=headers).status_code == 403, headers
    assert "access-control-allow-origin" not in client.get("/v1/models").headers
    with served(models, token="secret") as address:
        with httpx.Client(base_url=address) as other:
            assert other.get("/").status_code == other.get("/healthz").status_code == 200
            for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic secret"}):
                for path in ("/v1/models", "/metrics"):
                    assert other.get(path, headers=headers).status_code == 401
            assert other.get("/v1/models", headers={"authorization": "Bearer secret"}).status_code == 200


def test_a_full_queue_answers_503_and_what_is_accepted_is_answered(models):
    with served(models, queue_size=2, batch_size=1, max_work=1e6) as address, httpx.Client(timeout=60) as client:
        content = PHOTO.read_bytes()
        with ThreadPoolExecutor(12) as pool:
            url = f"{address}/v1/classify?scales=3.0"
            answers = list(pool.map(lambda _: client.post(url, content=content), range(12)))
        statuses = [answer.status_code for answer in answers]
        assert set(statuses) == {200, 503}
        refused = answers[statuses.index(503)]
        assert int(refused.headers["retry-after"]) >= 1 and "busy" in refused.json()["error"]


def test_a_slow_first_job_does_not_lengthen_the_wait_that_is_advised():
    free = threading.Event()

    def run(key, items):
        time.sleep(0.5) if key == "slow" else key == "held" and free.wait(60)
        return items

    async def fill():
        batches, until = Batches(run, 400, 1), time.monotonic() + 100
        for key in ("slow", *"abcdef"):
            await batches.submit(key, None, until)
        tasks = [asyncio.create_task(batches.submit("held", None, until)) for _ in range(402)]
        outcomes = await asyncio.wait(tasks, timeout=0.2)
        free.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        batches.stop()
        return [task.exception() for task in outcomes[0] if task.exception()]

    refused = asyncio.run(fill())
    assert refused and {error.retry_after for error in refused} == {1}


@pytest.fixture
def gate(monkeypatch):
    """While it is clear, the server evaluates nothing."""
    gate, evaluate = threading.Event(), Batches._evaluate

    def wait(self, batch):
        assert gate.wait(60)
        evaluate(self, batch)

    monkeypatch.setattr(Batches, "_evaluate", wait)
    yield gate
    gate.set()


def test_images_of_one_size_pass_through_the_net_together(models, gate):
    with served(models, max_work=1e6) as address, httpx.Client(base_url=address, timeout=60) as client:
        content = PHOTO.read_bytes()

        def score(_):
            return client.post("/v1/classify", content=content).json()["classes"][0]["score"]

        with ThreadPoolExecutor(8) as pool:
            first = pool.submit(client.post, "/v1/classify?scales=1.5", content=content)
            waiting = [pool.submit(score, i) for i in range(4)]
            time.sleep(0.5)
            gate.set()
            assert first.result().status_code == 200
            scores = [one.result() for one in waiting]
        assert scores == pytest.approx([scores[0]] * 4, rel=1e-4)
        counts = [
            line for line in client.get("/metrics").text.splitlines() if line.startswith("overfeat_batch_images_")
        ]
        batches, images = (int(float(line.split()[1])) for line in counts[:-3:-1])
        assert images == 5 and batches < 5


def test_a_late_answer_is_504_a_slow_body_408_and_a_slow_head_none(models, monkeypatch):
    with served(models, deadline=0.4, max_work=1e6) as address, httpx.Client(base_url=address, timeout=60) as client:
        slow = post(client, "/v1/classify?scales=3.0,3.1")
        assert slow.status_code == 504 and "not ready in time" in slow.json()["error"]
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            head = f"POST /v1/classify HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 1000\r\n\r\nsome"
            connection.sendall(head.encode())
            assert client.get("/healthz").status_code == 200  # others are not kept waiting
            assert b" 408 " in connection.recv(4096)
        monkeypatch.setattr("overfeat.serve.protocol.HEAD_SECONDS", 0.5)
        for head in ("", f"GET /healthz HTTP/1.1\r\nHost: {host}", f"GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\nGE"):
            with socket.create_connection((host, int(port)), timeout=20) as connection:
                connection.sendall(head.encode())
                answers = b"".join(iter(lambda: connection.recv(4096), b""))  # until it is closed
                assert answers.endswith(b'{"status":"ok"}') if head.endswith("GE") else answers == b""


def test_clients_that_send_half_of_a_request_keep_nobody_out(models, monkeypatch):
    monkeypatch.setattr("overfeat.serve.protocol.MAX_CONNECTIONS", 12)
    with served(models) as address, ExitStack() as stack, httpx.Client(base_url=address, timeout=60) as client:
        host, port = address.removeprefix("http://").split(":")
        body = f"POST /v1/classify HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 1000\r\n\r\nsome".encode()
        upgrade = f"GET /v1/live HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        starts = (b"", body, body[:40], upgrade.encode())
        connections = []
        for number in range(40):
            connections.append(stack.enter_context(socket.create_connection((host, int(port)), timeout=60)))
            connections[-1].sendall(starts[number % 4])
        assert client.get("/healthz").status_code == 200
        assert post(client, "/v1/classify").status_code == 200
        for connection in connections[:28]:
            try:
                assert connection.recv(4096) == b""  # cut off
            except ConnectionResetError:
                pass
        connections[-1].settimeout(0.2)
        with pytest.raises(TimeoutError):
            connections[-1].recv(4096)


def test_a_job_whose_client_leaves_is_not_run(models, gate):
    with served(models, max_work=1e6) as address, httpx.Client(base_url=address, timeout=60) as client:
        content = PHOTO.read_bytes()
        busy = threading.Thread(target=lambda: post(client, "/v1/classify?scales=1.5"))
        busy.start()
        time.sleep(0.2)
        for _ in range(3):
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/classify?top_k=1", content=content, timeout=0.3)
        gate.set()
        busy.join()
        assert post(client, "/v1/classify").status_code == 200
        text = client.get("/metrics").text
        assert 'overfeat_requests_total{endpoint="classify",status="499"} 3' in text
        assert "overfeat_batch_images_sum 2" in text and "overfeat_held_bytes 0" in text


def test_the_document_names_every_parameter(client):
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) >= {"/v1/classify", "/v1/detect", "/v1/localize", "/v1/features", "/v1/models"}
    names = {parameter["name"] for parameter in document["paths"]["/v1/detect"]["post"]["parameters"]}
    assert names == {"model", "format", "scales", "stride", "flip", "raw", "min_score"}
    assert json.dumps(document).count("NaN") == 0


def test_options_that_do_not_go_are_refused_in_words(tmp_path, models):
    (tmp_path / "a.pem").write_text("junk")
    for options, words in [
        ({"host": "0.0.0.0"}, "other machines reach 0.0.0.0; give a password, `token`, or let everybody"),
        ({"host": "example.com"}, "other machines reach example.com"),
        ({"token": "secret", "insecure": True}, "insecure does not go with a token"),
        ({"token": "ä"}, "token must be printable ASCII characters"),
        ({"certificate": tmp_path / "a.pem"}, "https needs both `certificate` and `key`"),
        ({"certificate": tmp_path / "a.pem", "key": tmp_path / "a.pem"}, "no certificate with its key"),
        ({"certificate": tmp_path / "none.pem", "key": tmp_path / "a.pem"}, "No such file"),
        ({"port": 70_000}, "port must be at least 0 and less than 65536"),
        ({"host": "192.0.2.1", "insecure": True}, "192.0.2.1 port 0: cannot listen there"),
    ]:
        with pytest.raises(InputError, match=re.escape(words)):
            make_server(models, ServeConfig(**{"port": 0, **options}))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl")
def test_the_password_of_a_key_is_not_asked_for(tmp_path, models):
    key, certificate = tmp_path / "key.pem", tmp_path / "a.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -subj /CN=a -passout pass:secret"
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    with pytest.raises(
        InputError, match=r"key\.pem: no certificate with its key .*; give PEM files, and a key without a"
    ):
        make_server(models, ServeConfig(port=0, certificate=certificate, key=key))


def test_weights_are_served_under_the_name_of_their_file(tmp_path, models):
    overfeat.save(models["trees"].net, tmp_path / "trees.safetensors")
    assert load_models([tmp_path / "trees.safetensors"], shipped=False)["trees"].tasks == ("classify", "features")
    for paths, words in [
        (["a/trees.safetensors", "trees.safetensors"], "no such file"),
        (["trees.pt"], "not weights of overfeat's own"),
        (["trees.safetensors", "trees.safetensors"], "two files of weights have one name"),
    ]:
        with pytest.raises(InputError, match=words):
            load_models([tmp_path / path for path in paths], shipped=False)
