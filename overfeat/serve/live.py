"""The stream of frames: a WebSocket on which settings come as JSON, frames as image files, and answers as JSON."""

import json
import time
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from overfeat.errors import InputError
from overfeat.serve.batches import OverloadedError
from overfeat.serve.guard import token_matches
from overfeat.serve.query import Query, parse_query
from overfeat.serve.render import answer_entries
from overfeat.serve.service import Service

MAX_CONNECTIONS = 64
MAX_TEXT = 10_000  # characters of a message with settings
WRONG_TOKEN, TOO_MANY = 4401, 4503  # codes with which the connection is closed
TASKS = ("classify", "detect", "localize")


async def live(service: Service, websocket: WebSocket) -> None:
    """Answer a connection's messages, one after the other, until it is closed.

    Text is a JSON object with the parameters of the frames that follow, as text, and `task`; the first one has the
    `token` of a server that needs it. Bytes are a frame, the content of an image file. Each message has one answer.
    """
    await websocket.accept()
    if service.connections >= MAX_CONNECTIONS:
        await websocket.close(TOO_MANY, "too many streams are open; try again later")
        return
    service.connections += 1
    try:
        await _messages(service, websocket)
    except WebSocketDisconnect:
        pass
    finally:
        service.connections -= 1


async def _messages(service: Service, websocket: WebSocket) -> None:
    allowed = token_matches(service.config, None)
    query: Query | None = None
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return
        start, text, frame = time.monotonic(), message.get("text"), message.get("bytes")
        try:
            if text is not None:
                settings = _settings(text)
                allowed = allowed or token_matches(service.config, settings.get("token"))
                settings.pop("token", None)
            if not allowed:
                await websocket.close(WRONG_TOKEN, "this server needs its token")
                return
            if text is not None:
                query = parse_query(settings.pop("task", TASKS[0]), settings, service.models)
                answer: dict[str, Any] = {"ready": query.model}
            elif query is None:
                raise InputError("send the settings, a JSON object, before the first frame")
            else:
                answer = await _frame(service, query, frame or b"", start)
        except Exception as error:
            answer = _problem(error)
            if answer["status"] == 500:
                raise
        if text is None:
            status = str(answer.get("status", 200))
            service.metrics.count("overfeat_requests_total", endpoint="live", status=status)
            service.metrics.observe("overfeat_request_seconds", time.monotonic() - start, endpoint="live")
        await websocket.send_text(json.dumps(answer, separators=(",", ":")))


async def _frame(service: Service, query: Query, content: bytes, start: float) -> dict[str, Any]:
    with service.hold() as hold:
        hold(len(content))
        answer, image = await service.answer(query, content, hold, start + service.config.deadline)
        size = (image.shape[1], image.shape[2])
    entries = answer_entries(answer, size)
    return entries | {"total_ms": round(1000 * (time.monotonic() - start), 3)}


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


def _problem(error: Exception) -> dict[str, Any]:
    """What the client is told of an error: its text and, as in REST, its status."""
    if isinstance(error, OverloadedError):
        return {"error": str(error), "status": 503, "retry_after": error.retry_after}
    if isinstance(error, InputError):
        return {"error": str(error), "status": 422}
    if isinstance(error, TimeoutError):
        return {"error": "the answer was not ready in time", "status": 504}
    return {"error": "internal error", "status": 500}
