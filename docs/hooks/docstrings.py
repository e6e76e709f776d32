"""Docstrings as the API reference shows them."""

import ast
import re
from typing import Any

import griffe
from public_names import PATHS

SHARED = re.compile(r"^( +)((?:\*{0,2}\w+, )+\*{0,2}\w+): (.*(?:\n\1 +.*)*)", re.MULTILINE)
NAME = re.compile(r"(?<!`)`(?:overfeat\.)?(\w+)`(?!`)")
COMMENT = re.compile(r"  # (?!noqa|type:|fmt:)(.+)")


class Docstrings(griffe.Extension):
    """Short forms in the source, written out for the reference.

    Arguments that share a description get one each, attributes that of the comment in their line or of their option's
    help, and documented names in backticks become links.
    """

    def on_instance(self, *, obj: griffe.Object, **options: Any) -> None:
        """Change the docstring of an object when it is loaded."""
        if obj.docstring:
            obj.docstring.value = with_links(one_name_each(obj.docstring.value), obj.name)

    def on_attribute_instance(self, *, attr: griffe.Attribute, **options: Any) -> None:
        """Give an attribute of a class a docstring."""
        if attr.docstring is None and attr.parent and attr.parent.is_class and not attr.name.startswith("_"):
            text = comment_of(attr.source) or help_of(attr.source)
            if text and f"\n    {attr.name}: " not in getattr(attr.parent.docstring, "value", ""):
                attr.docstring = griffe.Docstring(with_links(text, attr.name), parent=attr)


def one_name_each(text: str) -> str:
    """Docstring in which every argument has an entry of its own."""

    def split(match: re.Match) -> str:
        indent, names, description = match.groups()
        return "\n".join(f"{indent}{name}: {description}" for name in names.split(", "))

    head, args, rest = text.partition("\nArgs:\n")
    return head + args + SHARED.sub(split, rest)


def with_links(text: str, own: str) -> str:
    """Docstring in which the documented names in backticks are links, but for its object's own."""
    return NAME.sub(lambda m: f"[{m[0]}][{PATHS[m[1]]}]" if m[1] in PATHS and m[1] != own else m[0], text)


def comment_of(source: str) -> str:
    """The comment at the end of an attribute's line, as a sentence."""
    comment = COMMENT.search(source)
    return comment[1][:1].upper() + comment[1][1:].rstrip(".") + "." if comment else ""


def help_of(source: str) -> str:
    """The help of an attribute that is an option of a command."""
    call = getattr(ast.parse(source.strip()).body[0], "value", None)
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "option":
        help = call.args[1] if len(call.args) > 1 else None
        if isinstance(help, ast.Constant) and isinstance(help.value, str):
            return help.value[:1].upper() + help.value[1:] + "."
    return ""
