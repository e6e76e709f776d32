"""The stream of frames: answers in order, what is taught, and what goes wrong."""

import json

import pytest
from serving import served, tiny_models
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

import overfeat
from overfeat.files import ASSETS

PHOTO = ASSETS / "scenes" / "00012.png"
OTHER = ASSETS / "scenes" / "00001.png"


@pytest.fixture(scope="module")
def models():
    return tiny_models()


@pytest.fixture(scope="module")
def url(models):
    with served(models) as address:
        yield address.replace("http", "ws") + "/v1/live"


@pytest.fixture
def ask(url):
    """Send a message, settings or the path of a frame, and return the answer."""
    with connect(url, max_size=None) as stream:

        def ask(message):
            stream.send(message.read_bytes() if hasattr(message, "read_bytes") else message)
            return json.loads(stream.recv(timeout=60))

        ask.settings = lambda **settings: ask(json.dumps(settings))
        yield ask


def test_frames_are_answered_as_settings_say(ask, models):
    assert ask.settings(task="classify", scales="1.0", flip="false", maps="true", top_k="2") == {"ready": "trees"}
    answer = ask(PHOTO)
    scores = overfeat.classify(models["trees"].net, PHOTO, scales=[1.0], flip=False)[0].topk(2).values
    assert [entry["score"] for entry in answer["classes"]] == pytest.approx(scores.tolist())
    assert answer["maps"]["label"] == answer["classes"][0]["class"] and answer["total_ms"] > answer["ms"]["features"]
    assert ask.settings(task="detect", scales="1.0", flip="false", stride="coarse", raw="true") == {"ready": "sides"}
    assert {"objects", "raw", "image", "ms", "total_ms"} == set(ask(PHOTO))


def test_errors_leave_the_stream_open(ask):
    assert ask(PHOTO)["error"].startswith("send the settings")
    for text in ("junk", "[1]", '{"top_k": 3}', "[" * 100_000):
        assert ask(text)["error"] == "settings must be a JSON object of texts"
    assert "task must be one of classify, detect, localize, taught" in ask.settings(task="features")["error"]
    assert "unknown parameter colour" in ask.settings(task="classify", colour="red")["error"]
    assert ask.settings(task="classify", scales="1.0", token="of no use") == {"ready": "trees"}
    assert ask(ASSETS / "imagenet.txt")["status"] == 422
    assert len(ask(PHOTO)["classes"]) == 3


def test_a_class_is_taught_found_and_forgotten(ask, models):
    assert "choose the task taught first" in ask.settings(teach="seven")["error"]
    assert ask.settings(task="taught", scales="1.0", flip="false", maps="true") == {"ready": "trees"}
    assert ask(PHOTO)["classes"] == []
    assert "name must be a text of 1 to 10000 characters" in ask.settings(teach="")["error"]
    assert ask.settings(teach="one") == {"ready": "one"}
    assert ask(PHOTO)["taught"] == {"one": 1}
    ask.settings(teach="two")
    assert ask(OTHER)["taught"] == {"one": 1, "two": 1}
    answer = ask(PHOTO)
    prototypes = overfeat.Prototypes(models["trees"].net)
    prototypes.add("one", PHOTO)
    prototypes.add("two", OTHER)
    expected = prototypes.classify(PHOTO, scales=[1.0], flip=False)
    assert [(e["class"], e["score"]) for e in answer["objects"]] == [
        (n, pytest.approx(s, abs=1e-3)) for n, s in expected
    ]
    assert answer["objects"][0]["class"] == "one" and answer["maps"]["label"] == "one"
    assert ask.settings(forget="one") == {"taught": {"two": 1}}
    assert [entry["class"] for entry in ask(PHOTO)["classes"]] == ["two"]
    assert "must be one of the classes (two)" in ask.settings(forget="one")["error"]


def test_a_junk_image_does_not_end_a_lesson_but_settings_do(ask):
    ask.settings(task="taught", scales="1.0", flip="false")
    ask.settings(teach="one")
    assert "not an image" in ask(ASSETS / "imagenet.txt")["error"]
    assert ask(PHOTO)["taught"] == {"one": 1}
    assert "classes" in ask(PHOTO)
    ask.settings(teach="two")
    assert ask(ASSETS / "imagenet.txt")["status"] == 422
    ask.settings(task="taught", scales="1.0", flip="false")
    assert [entry["class"] for entry in ask(PHOTO)["classes"]] == ["one"]


def test_a_silent_stream_makes_room_for_a_new_one(models, monkeypatch):
    monkeypatch.setattr("overfeat.serve.live.MAX_CONNECTIONS", 2)
    with served(models) as address:
        url = address.replace("http", "ws") + "/v1/live"
        with connect(url) as silent, connect(url) as other:
            for stream in (silent, other):
                stream.send("{}")
                assert json.loads(stream.recv(timeout=60)) == {"ready": "trees"}
            with connect(url) as third, pytest.raises(ConnectionClosed) as caught:
                third.recv(timeout=60)
            assert caught.value.rcvd.code == 4503
            monkeypatch.setattr("overfeat.serve.live.SILENT_SECONDS", 0.0)
            with connect(url) as third:
                third.send("{}")
                assert json.loads(third.recv(timeout=60)) == {"ready": "trees"}
                with pytest.raises(ConnectionClosed) as caught:
                    silent.recv(timeout=60)
                assert caught.value.rcvd.code == 4408
                other.send("{}")
                assert json.loads(other.recv(timeout=60)) == {"ready": "trees"}


def test_what_is_taught_is_of_one_connection(ask, url):
    ask.settings(task="taught")
    ask.settings(teach="one")
    assert ask(PHOTO)["taught"] == {"one": 1}
    with connect(url) as stream:
        stream.send('{"task": "taught"}')
        stream.recv(timeout=60)
        stream.send(PHOTO.read_bytes())
        assert json.loads(stream.recv(timeout=60))["classes"] == []


def test_the_token_and_the_origin_are_checked(models):
    with served(models, token="secret") as address:
        url = address.replace("http", "ws") + "/v1/live"
        for first in ("{}", '{"token": "wrong"}', b"frame"):
            with connect(url) as stream, pytest.raises(ConnectionClosed) as caught:
                stream.send(first)
                stream.recv(timeout=60)
            assert caught.value.rcvd.code == 4401
        with connect(url) as stream:
            stream.send('{"token": "secret", "task": "classify"}')
            assert json.loads(stream.recv(timeout=60)) == {"ready": "trees"}
        with pytest.raises(InvalidStatus):
            connect(url, origin="http://evil.example")


def test_streams_without_the_token_take_no_place_no_time_and_no_memory(models, monkeypatch):
    monkeypatch.setattr("overfeat.serve.live.MAX_CONNECTIONS", 1)
    monkeypatch.setattr("overfeat.serve.live.TOKEN_SECONDS", 2.0)
    with served(models, token="secret") as address:
        url = address.replace("http", "ws") + "/v1/live"
        with connect(url) as silent, connect(url) as stream:
            stream.send('{"token": "secret"}')
            assert json.loads(stream.recv(timeout=60)) == {"ready": "trees"}
            stream.send(b" " * (2 << 20))  # as large as it likes by now
            assert "not an image" in json.loads(stream.recv(timeout=60))["error"]
            with connect(url) as large, pytest.raises(ConnectionClosed):
                large.send(b" " * (2 << 20))
                large.recv(timeout=60)
            assert large.protocol.close_code == 1006  # cut off before the message's end
            with connect(url) as third, pytest.raises(ConnectionClosed) as caught:
                third.send('{"token": "secret"}')
                third.recv(timeout=60)
            assert caught.value.rcvd.code == 4503
            with pytest.raises(ConnectionClosed) as caught:
                silent.recv(timeout=60)
            assert caught.value.rcvd.code == 4401
