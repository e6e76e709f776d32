"""The stream of frames: a WebSocket on which settings come as JSON, frames as image files, and answers as JSON."""

import asyncio
import json
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect

from overfeat.errors import InputError
from overfeat.prototypes.predict import Prototypes, check_name
from overfeat.serve.batches import OverloadedError
from overfeat.serve.evaluate import TAUGHT
from overfeat.serve.guard import token_matches
from overfeat.serve.models import Model
from overfeat.serve.problems import problem_of
from overfeat.serve.protocol import ADMITTED
from overfeat.serve.query import Query, parse_query
from overfeat.serve.render import answer_entries
from overfeat.serve.service import Lesson, Service

MAX_CONNECTIONS = 64
SILENT_SECONDS = 60.0  # after which a stream makes room for a new one
TOKEN_SECONDS = 10.0  # for the message with the token
MAX_TEXT = 10_000  # characters of a message with settings
WRONG_TOKEN, SILENT, TOO_MANY = 4401, 4408, 4503  # codes with which the connection is closed
TASKS = ("classify", "detect", "localize", TAUGHT)
MAX_CLASSES, MAX_PICTURES = 50, 500  # that a connection is taught


async def live(service: Service, websocket: WebSocket) -> None:
    """Answer a connection's messages, one after the other, until it is closed.

    Text is a JSON object, bytes are a frame, the content of an image file. Each message has one answer, JSON. An object
    has the parameters of the frames that follow, as text, and `task`; the first one has the `token` of a server that
    needs it. With `teach`, a name, the next frame is a picture of a class of this name, which the task "taught" finds;
    after an error it is the one after that, until there are new settings. With `forget` the class is forgotten. Such
    classes are the connection's own, and end with it.
    """
    with suppress(WebSocketDisconnect):
        await websocket.accept()
        first = None
        if not token_matches(service.config, None):
            first = await _with_token(service, websocket)
            if first is None:
                await websocket.close(WRONG_TOKEN, "this server needs its token")
                return
        if len(service.streams) >= MAX_CONNECTIONS and not _make_room(service.streams):
            await websocket.close(TOO_MANY, "too many streams are open; try again later")
            return
        websocket.scope[ADMITTED] = True
        stream = _Stream(service, websocket)
        service.streams.add(stream)
        try:
            await stream.run(first)
        finally:
            service.streams.discard(stream)


def _make_room(streams: "set[_Stream]") -> bool:
    """Whether the stream that has been silent longest was closed, which has been so for SILENT_SECONDS."""
    silent = [stream for stream in streams if stream.since is not None]
    oldest = min(silent, key=lambda stream: stream.since or 0.0, default=None)
    if oldest is None or oldest.since is None or time.monotonic() - oldest.since < SILENT_SECONDS:
        return False
    streams.discard(oldest)
    oldest.end()
    return True


async def _with_token(service: Service, websocket: WebSocket) -> Message | None:
    """The first message, if it has the token and comes in time."""
    try:
        message = await asyncio.wait_for(websocket.receive(), TOKEN_SECONDS)
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect
        settings = _settings(message.get("text") or "")
    except (TimeoutError, InputError):
        return None
    return message if token_matches(service.config, settings.get("token")) else None


class _Stream:
    """One connection: its settings, and the classes that it was taught, by net."""

    def __init__(self, service: Service, websocket: WebSocket):
        self.service, self.websocket = service, websocket
        self.since: float | None = None  # when it began to wait for a message, on time.monotonic's clock
        self._closing: asyncio.Task[None] | None = None
        self.query: Query | None = None
        self.prototypes: dict[str, Prototypes] = {}
        self.lesson: str | None = None  # the class of which the next frame is a picture

    def end(self) -> None:
        """Close the connection, without waiting for it."""
        self._closing = asyncio.ensure_future(self.websocket.close(SILENT, "a new stream replaced this one"))

    async def run(self, first: Message | None) -> None:
        """Answer the first message, where it is read already, and those that follow."""
        while True:
            self.since = time.monotonic()
            message, first = first or await self.websocket.receive(), None
            self.since = None
            if message["type"] == "websocket.disconnect":
                return
            start, text, frame = time.monotonic(), message.get("text"), message.get("bytes")
            try:
                settings = None if text is None else _settings(text)
                answer = await self._frame(frame or b"", start) if settings is None else self._configure(settings)
            except (InputError, OverloadedError, TimeoutError, MemoryError) as error:
                answer = _error_entry(error)
            if text is None:
                self._count(answer, start)
            await self.websocket.send_text(json.dumps(answer, separators=(",", ":")))

    def _count(self, answer: dict[str, Any], start: float) -> None:
        metrics, status = self.service.metrics, str(answer.get("status", 200))
        metrics.count("overfeat_requests_total", endpoint="live", status=status)
        metrics.observe("overfeat_request_seconds", time.monotonic() - start, endpoint="live")

    def _configure(self, settings: dict[str, str]) -> dict[str, Any]:
        """Settings, a lesson or what is to be forgotten."""
        settings.pop("token", None)
        if "forget" in settings:
            own = self._prototypes()
            own.remove(settings["forget"])
            return {"taught": _counts(own)}
        if "teach" in settings:
            own, name = self._prototypes(), settings["teach"]
            check_name(name)
            if name not in own.class_names and len(own.class_names) >= MAX_CLASSES:
                raise InputError(f"there are {MAX_CLASSES} classes already; forget one of them")
            if sum(own.counts) >= MAX_PICTURES:
                raise InputError(f"there are {MAX_PICTURES} pictures already; forget a class")
            self.lesson = name
            return {"ready": name}
        self.lesson = None
        task, label = settings.pop("task", TASKS[0]), None
        if task == TAUGHT:
            label = settings.pop("label", None)
        query = parse_query("classify" if task == TAUGHT else task, settings, self.service.models)
        if task == TAUGHT:
            if not self.service.models[query.model].teaches:
                raise InputError(f"{query.model} has no features to learn classes from; choose another net")
            query = replace(query, task=TAUGHT, label=label)
        self.query = query
        return {"ready": query.model}

    def _prototypes(self) -> Prototypes:
        """The classes of the net of the settings."""
        if self.query is None or self.query.task != TAUGHT:
            raise InputError(f"choose the task {TAUGHT} first")
        name = self.query.model
        if name not in self.prototypes:
            self.prototypes[name] = Prototypes(self.service.models[name].net)
        return self.prototypes[name]

    async def _frame(self, content: bytes, start: float) -> dict[str, Any]:
        query, until = self.query, start + self.service.config.deadline
        if query is None:
            raise InputError("send the settings, a JSON object, before the first frame")
        own = self._prototypes() if query.task == TAUGHT else None
        with self.service.hold() as hold:
            hold(len(content))
            if own is not None and self.lesson is not None:
                await self.service.teach(Lesson(own, self.lesson), content, hold, until)
                self.lesson = None
                return {"taught": _counts(own)}
            model = None if own is None else Model(query.model, own)
            answer, image = await self.service.answer(query, content, hold, until, model)
            size = (image.shape[1], image.shape[2])
        return answer_entries(answer, size) | {"total_ms": round(1000 * (time.monotonic() - start), 3)}


def _counts(prototypes: Prototypes) -> dict[str, int]:
    """The pictures of each class."""
    return dict(zip(prototypes.class_names, prototypes.counts, strict=True))


def _settings(text: str) -> dict[str, str]:
    """A message's settings: texts by name."""
    try:
        settings = json.loads(text) if len(text) <= MAX_TEXT else None
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict) or not all(isinstance(value, str) for value in settings.values()):
        raise InputError("settings must be a JSON object of texts")
    if settings.get("task", TASKS[0]) not in TASKS or settings.get("format", "json") != "json":
        raise InputError(f"task must be one of {', '.join(TASKS)}")
    return settings


def _error_entry(error: Exception) -> dict[str, Any]:
    """An error as an answer: its text and, as in REST, its status."""
    problem = problem_of(error)
    entry: dict[str, Any] = {"error": problem.text, "status": problem.status}
    return entry if problem.retry_after is None else entry | {"retry_after": problem.retry_after}
