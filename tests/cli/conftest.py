"""What every message of a command line must hold."""

import re

import pytest

from overfeat.cli import main

FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
OTHER_COMMAND = re.compile(r"`(overfeat|vips) [^`]*`|overfeat [a-z-]+ --.*")  # that a message suggests


@pytest.fixture(autouse=True)
def messages_name_own_flags(monkeypatch):
    """An error's message names no flag that the command lacks."""
    fail = main._fail

    def checked(args, message, *rest):
        if "parser" in args:
            lacking = set(FLAG.findall(OTHER_COMMAND.sub("", message))) - set(args.parser._option_string_actions)
            assert not lacking, f"{args.command} has no {lacking}: {message}"
        return fail(args, message, *rest)

    monkeypatch.setattr(main, "_fail", checked)
