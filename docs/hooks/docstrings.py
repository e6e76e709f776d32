"""Short forms of docstrings, written out."""

import re

from public_names import PATHS

SHARED = re.compile(r"^( +)((?:\*{0,2}\w+, )+\*{0,2}\w+): (.*(?:\n\1 +.*)*)", re.MULTILINE)
NAME = re.compile(r"(?<!`)`(?:overfeat\.)?(\w+)`(?!`)")
COMMENT = re.compile(r"  # (?!noqa|type:|fmt:)(.+)")


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
