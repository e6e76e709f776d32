"""The next image is read while one is processed."""

import threading

import pytest
import torch

from overfeat.data.read_ahead import read_ahead
from overfeat.errors import InputError


def test_the_next_is_read_meanwhile_and_no_more():
    started = {number: threading.Event() for number in range(4)}

    def read(number):
        started[number].set()
        return torch.tensor(number)

    for number, image in read_ahead(range(4), read):
        assert image.result() == number
        assert number == 3 or started[number + 1].wait(10)
        assert number >= 2 or not started[number + 2].is_set()
    assert not list(read_ahead([], read))


def test_an_error_belongs_to_its_item():
    def read(number):
        if number == 1:
            raise InputError("broken")
        return torch.tensor(number)

    for number, image in read_ahead(range(3), read):
        if number == 1:
            with pytest.raises(InputError, match="broken"):
                image.result()
        else:
            assert image.result() == number
