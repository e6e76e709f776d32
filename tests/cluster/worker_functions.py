"""What tests let workers do; they import no torch for it, since those that die are started again."""

import os

from overfeat.errors import InputError
from overfeat.files import existing_dir


def square():
    """The function on a worker: squares, an error for 5; at 7 the worker dies."""

    def function(number):
        if number == 5:
            raise InputError("five is not allowed")
        if number == 7:
            os._exit(1)
        return number * number

    return function


def missing(path):
    return existing_dir(path)
