"""The part of YAML that data sets in YOLO's format use: texts, and lists and mappings of texts, under names."""

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from overfeat.data.readers.checks import Invalid, quoted, read_text
from overfeat.errors import InputError

MAX_YAML = 1_000_000  # bytes
KEY = re.compile(r"""(["']?)([\w.-]+)\1[ \t]*:(?:[ \t]+(.*)|)$""")
PLAIN_KEY = re.compile(r"""[^\s'"\[\]{},&*!|>%@`#][^:]*?(?=[ \t]*:(?:\s|$))""")
QUOTED = re.compile(r"""'(?:[^']|'')*'|"(?:[^"\\]|\\.)*\"""")
PLAIN = re.compile(r"(?:[^\[\]{},:\n#]|:(?=\S)|(?<=\S)#)+")  # in a list or mapping
CLOSING = {"[": "]", "{": "}"}
Value = str | list[str] | dict[str, str]
Token = tuple[bool, str]  # (punctuation, text)


def read_yaml(path: Path, keys: Collection[str]) -> dict[str, Value]:
    """The values of these keys at the top level of a YAML file, without empty ones; all other keys are ignored.

    Raises InputError for values that are neither a text of one line nor a list or mapping of such texts.
    """
    try:
        lines = read_text(path, MAX_YAML).splitlines()
    except Invalid as error:
        raise InputError(f"{path}: {error}; give a YAML file") from error
    values: dict[str, Value] = {}
    for key, number, block in _blocks(lines):
        if key in keys:
            try:
                value = _value(block)
            except Invalid as error:
                remedy = "write a text, a list [a, b] or a mapping {0: a, 1: b}; names may be in a classes.txt"
                raise InputError(f"{path}, line {number}: {key} is not understood ({error}); {remedy}") from error
            if value:
                values[key] = value
    return values


def _blocks(lines: list[str]) -> Iterator[tuple[str, int, list[str]]]:
    """(key, line, text of the value in lines) of the keys at the top level."""
    key, start, block = "", 0, list[str]()
    for number, line in enumerate(lines, 1):
        match = KEY.match(line.rstrip())
        if match:
            if key:
                yield key, start, block
            key, start, block = match[2], number, [match[3] or ""]
        elif line.strip() and not line.lstrip().startswith("#") and line.strip() not in ("---", "..."):
            block.append(line)
    if key:
        yield key, start, block


def _value(block: list[str]) -> Value:
    """The value of a block: its first line is what follows the key."""
    text = "\n".join(block).strip()
    if text[:1] in CLOSING:
        return _flow(_tokens(text))
    first = [] if not block[0].strip() or block[0].lstrip().startswith("#") else [block[0]]
    lines = [line.strip() for line in first + block[1:]]
    if first:
        if len(lines) > 1:
            raise Invalid("more than one line")
        return _scalar(lines[0])
    if all(line == "-" or line.startswith("- ") for line in lines):
        return [_scalar(line[1:].strip()) for line in lines]
    if len({len(line) - len(line.lstrip()) for line in block[1:]}) > 1:
        raise Invalid("lines of different indentation")
    return dict(map(_pair, lines))


def _pair(line: str) -> tuple[str, str]:
    """(key, value) of a line."""
    end = _quoted_end(line) if line[:1] in ("'", '"') else None
    match = None if end else PLAIN_KEY.match(line)
    end = end or (match.end() if match else 0)
    rest = line[end:].lstrip()
    if not end or not rest.startswith(":"):
        raise Invalid(f"{quoted.repr(line)} is not a key and a value")
    return _scalar(line[:end]), _scalar(rest[1:].strip())


def _quoted_end(text: str, start: int = 0) -> int:
    """The end of the text in quotes that starts there."""
    match = QUOTED.match(text, start)
    if not match:
        raise Invalid(f"{quoted.repr(text[start : start + 100])} has no closing quote")
    return match.end()


def _unquoted(text: str) -> str:
    """What a text in quotes stands for."""
    if text[0] == "'":
        return text[1:-1].replace("''", "'")
    try:
        return str(json.loads(text))
    except ValueError as error:
        raise Invalid(f"{text} has an unknown escape") from error


def _scalar(text: str) -> str:
    """The text of one line, without a comment; empty for null."""
    if text[:1] in ("'", '"'):
        end = _quoted_end(text)
        if text[end:].strip() and not re.match(r"\s+#", text[end:]):
            raise Invalid(f"{quoted.repr(text)} goes on after its quotes")
        return _unquoted(text[:end])
    text = "" if text.startswith("#") else re.split(r"\s#", text, maxsplit=1)[0].strip()
    if text[:1] in tuple("&*!|>%@`[{") or text.startswith("- "):
        raise Invalid(f"{quoted.repr(text)} is more of YAML than is read")
    return "" if text in ("~", "null", "Null", "NULL") else text


def _tokens(text: str) -> list[Token]:
    """The tokens of a list [...] or mapping {...}."""
    tokens: list[Token] = []
    position = 0
    while position < len(text):
        character = text[position]
        if character.isspace():
            position += 1
        elif character == "#":
            position = (text.find("\n", position) + 1) or len(text)
        elif character in "[]{}," or (character == ":" and tokens):
            tokens.append((True, character))
            position += 1
        else:
            if character in "'\"":
                end = _quoted_end(text, position)
                tokens.append((False, _unquoted(text[position:end])))
            else:
                match = PLAIN.match(text, position)
                if not match:
                    raise Invalid(f"{quoted.repr(text[position : position + 100])} is not understood")
                end = match.end()
                tokens.append((False, _scalar(match[0].strip())))
            position = end
    return tokens


def _flow(tokens: list[Token]) -> Value:
    """A list or mapping."""
    (_, opening), last = tokens[0], tokens[-1]
    if len(tokens) < 2 or last != (True, CLOSING[opening]):
        raise Invalid(f"no {CLOSING[opening]} at its end")
    groups: list[list[Token]] = [[]]
    for token in tokens[1:-1]:
        if token == (True, ","):
            groups.append([])
        else:
            groups[-1].append(token)
    if not groups[-1]:
        groups.pop()  # a comma may end the list
    shape = [False] if opening == "[" else [False, True, False]
    for group in groups:
        if [punctuation for punctuation, _ in group] != shape or (len(group) == 3 and group[1][1] != ":"):
            raise Invalid(f"{quoted.repr(' '.join(text for _, text in group))} in it")
    if opening == "[":
        return [group[0][1] for group in groups]
    return {group[0][1]: group[2][1] for group in groups}
