"""The command-line reference: a page for each command, from its parser."""

import argparse
import re

from overfeat.cli.main import build_parser

FOLDER = "reference/command-line"


def pages() -> dict[str, str]:
    """The text of each page by its path in the site, the list of all commands first."""
    parser = build_parser()
    leaves = list(_leaves(parser))
    rows = [f"| [overfeat {' '.join(names)}]({_name(names)}) | {_escape(help)} |" for names, help, _ in leaves]
    parts = [
        "# Command line",
        _usage(parser),
        "\n".join(["| command | |", "| --- | --- |", *rows]),
        *(_group(group) for group in parser._action_groups),
        "`overfeat COMMAND --help` prints the same, and `--fast` goes before the command.",
    ]
    index = {f"{FOLDER}/index.md": _join(parts)}
    return index | {f"{FOLDER}/{_name(names)}": _page(names, help, leaf) for names, help, leaf in leaves}


def _leaves(parser: argparse.ArgumentParser, names: tuple[str, ...] = ()):
    """(names, help, parser) of every command that has no subcommands."""
    for action in parser._subparsers._group_actions if parser._subparsers else ():
        help = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for name, command in action.choices.items():
            if command._subparsers:
                yield from _leaves(command, (*names, name))
            else:
                yield (*names, name), help[name], command


def _name(names: tuple[str, ...]) -> str:
    """The file name of a command's page."""
    return "-".join(names) + ".md"


def _page(names: tuple[str, ...], help: str, parser: argparse.ArgumentParser) -> str:
    title = " ".join(("overfeat", *names))
    examples = (parser.epilog or "").partition("examples:\n")[2]
    summary = help[:1].upper() + help[1:] + "."
    parts = [f"# {title}", *map(_escape, (summary, parser.description or "")), _usage(parser)]
    parts += ["## Examples", _code(examples, "sh")] if examples else []
    return _join([*parts, *map(_group, parser._action_groups)])


def _usage(parser: argparse.ArgumentParser) -> str:
    """The usage, wrapped to the same width on every terminal."""
    formatter = argparse.HelpFormatter(parser.prog, width=78)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups, prefix="")
    return _code(_plain(formatter.format_help()))


def _group(group: argparse._ArgumentGroup) -> str:
    """A heading and a list of a group's options; nothing for a group without any."""
    left_out = argparse._SubParsersAction, argparse._HelpAction
    actions = [a for a in group._group_actions if a.help and not isinstance(a, left_out)]
    if not actions:
        return ""
    title, _, note = _title(group).partition("\n")
    return _join([f"## {title}", note, *map(_entry, actions)])


def _title(group: argparse._ArgumentGroup) -> str:
    """The title of a group; what it has in brackets is a line below."""
    title, _, note = (group.title or "").partition(" (")
    title = {"positional arguments": "Arguments"}.get(title, title[:1].upper() + title[1:])
    note = note.removesuffix(")")
    return f"{title}\n{_escape(note[:1].upper() + note[1:] + '.') if note else ''}"


def _entry(action: argparse.Action) -> str:
    """An option's forms, with its value, and its help below."""
    formatter = argparse.HelpFormatter("overfeat", width=1000)
    forms = _plain(formatter._format_action_invocation(action)) if action.option_strings else _positional(action)
    return f"`{forms}`\n:   {_escape(formatter._expand_help(action))}"


def _positional(action: argparse.Action) -> str:
    metavar = action.metavar or action.dest
    return " ".join(metavar) if isinstance(metavar, tuple) else metavar


def _plain(text: str) -> str:
    """Text without the colours that argparse gives it from Python 3.14 on."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _escape(text: str) -> str:
    """Text as Markdown shows it, on one line; flags, and text in backticks, are code."""
    parts = re.split(r"(`[^`]*`|(?<![\w-])--[a-z][a-z-]*)", " ".join(text.split()))
    parts[1::2] = [f"`{part.strip('`')}`" for part in parts[1::2]]
    parts[::2] = [re.sub(r"([*_<>\[\]\\])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def _code(text: str, language: str = "") -> str:
    lines = text.strip("\n").splitlines()
    indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return "\n".join([f"```{language}", *(line[indent:] for line in lines), "```"])


def _join(parts: list[str]) -> str:
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"
