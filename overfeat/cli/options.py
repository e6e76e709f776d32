"""Command-line options from the fields of a frozen dataclass, and the dataclass from the parsed arguments."""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from overfeat.errors import ArgumentError

Config = TypeVar("Config")
Container = argparse._ActionsContainer  # a parser or one of its argument groups


def add_options(container: Container, config: type, *, skip: tuple[str, ...] = (), **defaults: Any) -> None:
    """Add an option for every field of a dataclass that has help (`overfeat.options.option`), but for `skip`.

    `defaults` replace those of the dataclass; None stands for a value that is chosen from the data.
    """
    types = get_type_hints(config)
    for field in dataclasses.fields(config):
        if field.metadata.get("help") and field.name not in skip:
            default = defaults.get(field.name, field.default)
            is_chosen = default is None and field.default is not None
            chosen = " (default: chosen from the data)" if is_chosen else ""
            flags = field.metadata.get("flags") or ["--" + field.name.replace("_", "-")]
            arguments = _arguments(
                {**field.metadata, "help": field.metadata["help"] + chosen}, types[field.name], default
            )
            container.add_argument(*flags, dest=field.name, **arguments)


def config_from_args(config: type[Config], args: argparse.Namespace) -> Config:
    """The dataclass with the parsed values; fields without an option keep their defaults."""
    names = [field.name for field in dataclasses.fields(config)]  # type: ignore[arg-type]
    return config(**{name: getattr(args, name) for name in names if hasattr(args, name)})


def refuse_options(args: argparse.Namespace, names: Sequence[str], mode: str) -> None:
    """Raises ArgumentError where one of these options is given, which have no effect in a mode."""
    for name in names:
        if getattr(args, name) != args.parser.get_default(name):
            raise ArgumentError(name, f"does not apply to {mode}; leave it out")


def flag_of(parser: argparse.ArgumentParser, name: str) -> str | None:
    """The first long flag of the option whose value has this name; None without one."""
    flags = [flag for action in parser._actions if action.dest == name for flag in action.option_strings]
    return next((flag for flag in flags if flag.startswith("--")), None)


def _arguments(metadata: Any, annotation: Any, default: Any) -> dict[str, Any]:
    """The arguments of `add_argument` for a field."""
    text = metadata["help"].replace("%", "%%")
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    if shown is not None and shown is not False and shown != "" and "default:" not in text:
        text += f" (default: {str(shown).replace('%', '%%')})"
    given = {"default": default, "help": text}
    parse, value_type = metadata.get("parse"), _without_none(annotation)
    if parse is None and value_type is bool:
        return given | {"action": "store_true" if default is False else argparse.BooleanOptionalAction}
    choices = metadata.get("choices") or (get_args(value_type) if get_origin(value_type) is Literal else None)
    if choices and parse is None:
        return given | {"choices": tuple(choices)}
    return given | {"type": parse or _parser_of(value_type), "metavar": metadata.get("metavar") or _metavar(value_type)}


def _without_none(annotation: Any) -> Any:
    """T of `T | None`."""
    parts = [part for part in get_args(annotation) if part is not NoneType]
    return parts[0] if get_origin(annotation) in (UnionType, Union) and len(parts) == 1 else annotation


def _metavar(value_type: Any) -> str | None:
    if get_origin(value_type) is tuple:
        return f"{(item := _metavar(get_args(value_type)[0]))},{item},..."
    return {int: "N", float: "X", Path: "FILE"}.get(value_type)


def _parser_of(value_type: Any) -> Callable[[str], Any]:
    """An argparse type for the annotation; tuples are lists separated by commas."""
    if get_origin(value_type) is not tuple:
        return value_type
    item = get_args(value_type)[0]

    def parse(text: str) -> tuple:
        return tuple(item(part.strip()) for part in text.split(",") if part.strip())

    parse.__name__ = f"comma-separated {item.__name__} list"
    return parse
