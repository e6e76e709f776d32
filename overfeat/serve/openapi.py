"""The OpenAPI document, from the table of parameters."""

from collections.abc import Mapping
from typing import Any

import overfeat
from overfeat.serve.body import FIELD, FORM, OTHER_TYPES
from overfeat.serve.config import ServeConfig
from overfeat.serve.models import TASKS, Model
from overfeat.serve.query import FORMATS, PARAMETERS, default_model

SUMMARIES = {
    "classify": "The best classes of an image, from every window of all scales",
    "detect": "The objects in an image, with boxes and accumulated confidence",
    "localize": "Up to `top_k` classes of an image with a box each",
    "features": "The output of a layer",
}
MEDIA_TYPES = {"json": "application/json", "png": "image/png", "npz": "application/octet-stream"}
ERRORS = {
    "400": "A form that cannot be read", "404": "No such net", "408": "The request did not arrive in time",
    "413": "The request is too large", "415": "The content is no image", "422": "A bad parameter, or a bad image",
    "503": "The server is busy; try again after Retry-After seconds", "504": "The answer was not ready in time",
}  # fmt: skip
_BOX = {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4}
_SIDE = {"type": "integer", "minimum": 1}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


_NAMED: dict[str, Any] = {"class": {"type": "string"}, "score": {"type": "number"}}
_MAP = _object(
    scaled={"type": "array", "items": _SIDE}, flipped={"type": "boolean"}, shape={"type": "array", "items": _SIDE},
    box=_BOX, max={"type": "number"}, values={"type": "string", "description": "Bytes, 0 to 255, in base64"},
)  # fmt: skip
_COMMON: dict[str, Any] = {
    "model": {"type": "string"}, "image": _object(height=_SIDE, width=_SIDE),
    "ms": {"type": "object", "additionalProperties": {"type": "number"}},
}  # fmt: skip
_OBJECTS = {"objects": {"type": "array", "items": _object(
    **_NAMED, box=_BOX, confidence_sum={"type": "number"}, count={"type": "integer"}
)}}  # fmt: skip
_ANSWERS: dict[str, dict[str, Any]] = {
    "classify": {"classes": {"type": "array", "items": _object(**_NAMED)}}, "detect": _OBJECTS, "localize": _OBJECTS,
    "features": {
        "layer": {"type": ["string", "integer"]}, "shape": {"type": "array", "items": {"type": "integer"}},
        "values": {"type": "array", "items": {"type": "number"}},
    },
}  # fmt: skip
_RAW = {"raw": {"type": "array", "items": _object(**_NAMED, scale={"type": "integer"}, box=_BOX)}}
_MAPS = {"maps": _object(label={"type": "string"}, scales={"type": "array", "items": _MAP})}
_OPTIONAL = {"classify": _MAPS, "detect": _RAW, "localize": _RAW, "features": {}}


def openapi_document(models: Mapping[str, Model], config: ServeConfig) -> dict[str, Any]:
    """The document of a server with these nets."""
    paths: dict[str, Any] = {f"/v1/{task}": {"post": _operation(task, models, config)} for task in TASKS}
    described = {"type": "array", "items": {"type": "object"}}
    paths["/v1/models"] = {"get": {
        "summary": "The nets", "responses": _responses(config, {"200": _content("The nets", "application/json", _object(
            models=described, samples=described
        ))}),
    }}  # fmt: skip
    health = _content("The server runs", "application/json", _object(status={"type": "string"}))
    paths["/healthz"] = {"get": {"summary": "Whether the server runs", "security": [], "responses": {"200": health}}}
    text = _content("Counts and times", "text/plain", {"type": "string"})
    paths["/metrics"] = {"get": {"summary": "For Prometheus", "responses": _responses(config, {"200": text})}}
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "overfeat", "version": overfeat.__version__,
            "description": "A ConvNet at every position and scale of an image. Camera frames: docs/guides/serve.md.",
        },
        "paths": paths,
    }  # fmt: skip
    if config.token is not None:
        document["components"] = {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}}
        document["security"] = [{"token": []}]
    return document


def _operation(task: str, models: Mapping[str, Model], config: ServeConfig) -> dict[str, Any]:
    names = [name for name, model in models.items() if task in model.tasks]
    own: dict[str, tuple[dict[str, Any], str]] = {
        "model": ({"type": "string", "enum": names, "default": default_model(task, models)}, "The net."),
        "format": ({"type": "string", "enum": list(FORMATS[task]), "default": FORMATS[task][0]}, "Of the answer."),
    }
    own |= {name: (schema, text) for name, (tasks, schema, text) in PARAMETERS.items() if task in tasks}
    binary = {"type": "string", "contentMediaType": "application/octet-stream"}
    bodies: dict[str, Any] = {
        kind: {"schema": binary} for kind in ("image/jpeg", "image/png", "image/*", *OTHER_TYPES[:1])
    }
    bodies[FORM] = {"schema": _object(**{FIELD: {"type": "string", "format": "binary"}})}
    schema = _object(**_COMMON, **_ANSWERS[task])
    schema["properties"] |= _OPTIONAL[task]
    contents = {MEDIA_TYPES[kind]: {"schema": schema if kind == "json" else binary} for kind in FORMATS[task]}
    errors = {status: _content(text, "application/json", _ERROR) for status, text in ERRORS.items()}
    return {
        "summary": SUMMARIES[task], "operationId": task,
        "parameters": [
            {"name": name, "in": "query", "schema": schema, "description": text} for name, (schema, text) in own.items()
        ],
        "requestBody": {"required": True, "content": bodies},
        "responses": _responses(config, {"200": {"description": "The answer", "content": contents}, **errors}),
    }  # fmt: skip


_ERROR = _object(error={"type": "string"})


def _responses(config: ServeConfig, responses: dict[str, Any]) -> dict[str, Any]:
    """Responses, and that of a missing token if the server has one."""
    if config.token is not None:
        responses["401"] = _content("The token is missing or wrong", "application/json", _ERROR)
    return responses


def _content(description: str, media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {media_type: {"schema": schema}}}
