"""The ASGI application: the page, REST, the stream, and the errors of all of them as JSON."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute

from overfeat.errors import InputError
from overfeat.files import ASSETS
from overfeat.serve.batches import OverloadedError
from overfeat.serve.body import read_image_bytes
from overfeat.serve.config import ServeConfig
from overfeat.serve.guard import LIVE, Guard
from overfeat.serve.live import live
from overfeat.serve.models import TASKS, Model
from overfeat.serve.openapi import openapi_document
from overfeat.serve.problems import problem_of
from overfeat.serve.query import parse_query
from overfeat.serve.render import answer_entries, answer_npz, heat_map_png
from overfeat.serve.service import Service

STATIC = Path(__file__).resolve().parent / "static"
FILES = {
    "/": ("index.html", "text/html"), "/style.css": ("style.css", "text/css"),
    "/app.js": ("app.js", "text/javascript"), "/draw.js": ("draw.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}  # fmt: skip
SAMPLES = {  # the shipped pictures that the page offers, by title
    "Cup": "photos/coffee.jpg", "Cat": "photos/chelsea.png", "Rocket": "photos/rocket.jpg",
    "Digits": "multi-object/test/00012.png", "Blood cells": "cells/BloodImage_00385.jpg",
}  # fmt: skip


def make_app(models: Mapping[str, Model], config: ServeConfig, warm_up: bool = False) -> Starlette:
    """The application that serves these nets; warm_up: evaluates a frame with each of them at the start."""
    service = Service(models, config)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(service.warm_up()) if warm_up else None
        yield
        if task is not None:
            task.cancel()
        service.stop()

    routes = [
        *(Route(path, partial(_constant, *_read(STATIC / name), kind)) for path, (name, kind) in FILES.items()),
        *(Route(f"/samples/{i}", partial(_constant, *_read(ASSETS / file), None)) for i, file in _samples()),
        *(Route(f"/v1/{task}", partial(_task, service, task), methods=["POST"]) for task in TASKS),
        Route("/v1/models", partial(_models, service)), WebSocketRoute(LIVE, partial(live, service)),
        Route("/openapi.json", partial(_json, openapi_document(models, config))), Route("/healthz", _health),
        Route("/metrics", partial(_metrics, service)),
    ]  # fmt: skip
    kinds = (HTTPException, InputError, OverloadedError, TimeoutError, MemoryError, ClientDisconnect)
    app = Starlette(
        routes=routes, middleware=[Middleware(Guard, config=config)], lifespan=lifespan,
        exception_handlers=dict.fromkeys(kinds, _error),
    )  # fmt: skip
    app.state.service = service
    return app


def _samples() -> list[tuple[int, str]]:
    return list(enumerate(SAMPLES.values()))


def _read(path: Path) -> tuple[bytes, str]:
    kinds = {".jpg": "image/jpeg", ".png": "image/png"}
    return path.read_bytes(), kinds.get(path.suffix, "")


async def _constant(content: bytes, kind: str, other_kind: str | None, request: Request) -> Response:
    return Response(content, media_type=other_kind or kind)


async def _json(content: Any, request: Request) -> Response:
    return JSONResponse(content)


async def _health(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _models(service: Service, request: Request) -> Response:
    samples = [{"title": title, "path": f"samples/{i}"} for i, title in enumerate(SAMPLES)]
    return JSONResponse({"models": [m.describe() for m in service.models.values()], "samples": samples})


async def _metrics(service: Service, request: Request) -> Response:
    return Response(service.metrics_text(), media_type="text/plain; version=0.0.4")


async def _task(service: Service, task: str, request: Request) -> Response:
    """A request for a task: counted, and given up where its client leaves."""
    start, status = time.monotonic(), 500
    try:
        response = await _unless_gone(request, partial(_answer, service, task, request, start))
        status = response.status_code
        return response
    except Exception as error:
        status = problem_of(error).status
        raise
    finally:
        service.metrics.count("overfeat_requests_total", endpoint=task, status=str(status))
        service.metrics.observe("overfeat_request_seconds", time.monotonic() - start, endpoint=task)


async def _answer(service: Service, task: str, request: Request, start: float, read: Callable[[], object]) -> Response:
    pairs = request.query_params.multi_items()
    if len(dict(pairs)) < len(pairs):
        raise InputError("a parameter is given twice")
    query = parse_query(task, dict(pairs), service.models)
    until = start + service.config.deadline
    with service.hold() as hold:
        try:
            async with asyncio.timeout(until - time.monotonic()):
                content = await read_image_bytes(request, service.config.max_body, hold)
        except TimeoutError as error:
            raise HTTPException(408, "the request did not arrive in time") from error
        read()
        answer, image = await service.answer(query, content, hold, until)
        if query.format == "png":
            return Response(await service.in_thread(heat_map_png, answer, image), media_type="image/png")
        if query.format == "npz":
            return Response(await service.in_thread(answer_npz, answer), media_type="application/octet-stream")
        size = (image.shape[1], image.shape[2])
        entries = {"model": query.model} | await service.in_thread(answer_entries, answer, size)
        return JSONResponse(entries)


async def _unless_gone(request: Request, answer: Callable[[Callable[[], object]], Awaitable[Response]]) -> Response:
    """The answer; once the request is read, it is given up where the client leaves. Raises ClientDisconnect."""
    read = asyncio.Event()
    tasks = [asyncio.ensure_future(answer(read.set)), asyncio.ensure_future(_left(request, read))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientDisconnect
        return await tasks[0]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _left(request: Request, read: asyncio.Event) -> Response:
    """Wait until the client of a request that is read leaves."""
    await read.wait()
    while (await request.receive())["type"] != "http.disconnect":
        pass
    raise ClientDisconnect


async def _error(request: Request, error: Exception) -> Response:
    problem = problem_of(error)
    headers = dict((error.headers or {}) if isinstance(error, HTTPException) else {})
    if problem.retry_after is not None:
        headers["retry-after"] = str(problem.retry_after)
    return JSONResponse({"error": problem.text}, problem.status, headers)
