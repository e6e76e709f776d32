"""What a request asks for: its parameters, checked, and as OpenAPI describes them."""

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from overfeat.dense.config import Scales, check_scales, parse_scales, parse_stride
from overfeat.errors import InputError, printable, shorten
from overfeat.models.geometry import Stride
from overfeat.serve.models import TASKS, Model

MAX_TOP_K = 1000
FORMATS = {"classify": ("json", "png", "npz"), "detect": ("json",), "localize": ("json",), "features": ("npz", "json")}
_SCALE = r"([0-9]+\.[0-9]+|[1-9][0-9]*x[1-9][0-9]*)"
_SCALES = f"^(six(:[1-6](,[1-6])*)?|{_SCALE}(,{_SCALE})*)$"
_BOOLEAN = {"type": "boolean", "default": False}
_TOP_K = {"type": "integer", "minimum": 1, "maximum": MAX_TOP_K, "default": 5}
# name: (tasks, JSON schema, description); `model` and `format` are of all tasks.
PARAMETERS: dict[str, tuple[tuple[str, ...], dict[str, Any], str]] = {
    "scales": (
        ("classify", "detect", "localize"), {"type": "string", "maxLength": 200, "pattern": _SCALES},
        "six, the net's six scales; some of them, such as six:1,2; factors of the image's own size, such as 0.5,1.0; "
        "sizes HEIGHTxWIDTH. The default is the net's own.",
    ),
    "stride": (
        TASKS, {"type": "string", "pattern": "^(fine|coarse|[1-9][0-9]{0,4})$"},
        "Pixels between windows, fine or coarse. The default is the net's own.",
    ),
    "flip": (("classify", "detect", "localize"), {"type": "boolean"}, "Whether the mirror image counts, too."),
    "top_k": (("classify", "localize"), _TOP_K, "How many classes."),
    "maps": (("classify",), _BOOLEAN, "With heat maps: of each scale the scores of `label` in all windows."),
    "label": (("classify",), {"type": "string", "maxLength": 200}, "The class of the heat maps; default: the best."),
    "raw": (("detect", "localize"), _BOOLEAN, "With the boxes of single windows, before merging."),
    "min_score": (
        ("detect",), {"type": "number", "minimum": 0, "maximum": 1}, "The lowest score of an object."
    ),
    "layer": (("features",), {"type": "string", "maxLength": 200}, "The layer, by its name or number."),
}  # fmt: skip


class UnknownModelError(InputError):
    """No net that is served has this name."""


@dataclass(frozen=True)
class Query:
    """A task for a net; equal queries of images of one size are evaluated together."""

    task: str
    model: str
    format: str = "json"
    scales: Scales = None
    stride: Stride | None = None
    flip: bool | None = None
    top_k: int = 5
    maps: bool = False
    label: str | None = None
    raw: bool = False
    min_score: float | None = None
    layer: str | None = None


def parse_query(task: str, given: Mapping[str, str], models: Mapping[str, Model]) -> Query:
    """The query of parameters as text. Raises InputError for unknown ones and bad values."""
    known = {name for name, (tasks, _, _) in PARAMETERS.items() if task in tasks} | {"model", "format"}
    unknown = sorted(set(given) - known)
    if unknown:
        raise InputError(f"unknown parameter {shorten(unknown)}; {task} has {', '.join(sorted(known))}")
    values: dict[str, Any] = {name: _value(name, text) for name, text in given.items()}
    model = values.setdefault("model", default_model(task, models))
    if model not in models:
        raise UnknownModelError(f"model must be one of {', '.join(models)}, not {model}")
    if task not in models[model].tasks:
        raise InputError(f"model {model} does not {task}; its tasks are {', '.join(models[model].tasks)}")
    if values.setdefault("format", FORMATS[task][0]) not in FORMATS[task]:
        raise InputError(f"format must be one of {', '.join(FORMATS[task])}, not {values['format']}")
    values["maps"] = values.get("maps", False) or values["format"] in ("png", "npz")
    return Query(task, **values)


def default_model(task: str, models: Mapping[str, Model]) -> str:
    """The first net whose main task it is, else the first that has it."""
    having = [model for model in models.values() if task in model.tasks] or list(models.values())
    return next((model for model in having if model.tasks[0] == task), having[0]).name


def _value(name: str, text: str) -> Any:
    """The value of a parameter, checked by its schema and, of scales and strides, as on the command line."""
    schema: dict[str, Any] = PARAMETERS[name][1] if name in PARAMETERS else {"type": "string"}
    try:
        if schema["type"] in ("integer", "number") and not re.fullmatch("[-+.0-9a-zA-Z]*", text):
            raise ValueError  # what Python takes beside JSON's numbers: 1_0, other scripts' digits
        if name == "scales":
            return check_scales(parse_scales(text))
        if name == "stride":
            return parse_stride(text)
        if schema["type"] == "boolean":
            return {"true": True, "false": False}[text]
        if schema["type"] == "string":
            return text
        number: float = int(text) if schema["type"] == "integer" else float(text)
    except argparse.ArgumentTypeError as error:
        raise InputError(f"{name}: {error}") from error
    except (KeyError, ValueError) as error:
        kind = {"boolean": "true or false", "integer": "a whole number", "number": "a number"}[schema["type"]]
        raise InputError(f"{name} must be {kind}, not {printable(text)!r}") from error
    if not schema["minimum"] <= number <= schema["maximum"]:
        raise InputError(f"{name} must be from {schema['minimum']} to {schema['maximum']}, not {text}")
    return number
