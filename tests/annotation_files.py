"""Small pictures, and what readers of annotations say about bad files, for tests."""

import pytest
from PIL import Image

from overfeat.errors import InputError

WIDTH, HEIGHT = 20, 10


def picture(path, size=(WIDTH, HEIGHT), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path, **options)


def error_of(read, *arguments, **options):
    with pytest.raises(InputError) as caught:
        read(*arguments, **options)
    return str(caught.value)


def only_problem(read, *arguments):
    """The only problem, which the error and skip_invalid report alike, and the data set without it."""
    message = error_of(read, *arguments)
    data = read(*arguments, skip_invalid=True)
    assert message.splitlines()[0].endswith(": 1 problem in the annotations:")
    assert message.splitlines()[1:-1] == [f"  {line}" for line in data.problems]
    assert message.endswith("skip_invalid skips these boxes and images")
    return data.problems[0], data
