"""Hundreds of random nets against cropped windows."""

import pytest
from cropping import assert_like_crops, numbers
from random_nets import Generator, Members

import overfeat

STRIDES = (1, 2, 3, 5, 8)


def check(module, generator, seed):
    height, width = (side + 7 + seed % 4 for side in generator.window)
    images = numbers(2, generator.channels, height, width + 3, seed=seed)
    net = overfeat.densify(module, generator.window, channels=generator.channels, check=False)
    assert_like_crops(net, module, images, generator.window, STRIDES[seed % 2 :: 2])


@pytest.mark.parametrize("seed", range(20))
def test_one_net(seed):
    generator = Generator(seed)
    check(generator.net(), generator, seed)


@pytest.mark.parametrize("seed", range(1000, 1023))
def test_eight_nets(seed):
    generator = Generator(seed)
    module = Members(*(generator.net() for _ in range(8))).eval()
    try:
        check(module, generator, seed)
    except Exception as together:
        for net in module.nets:
            try:
                check(Members(net), generator, seed)
            except Exception as alone:
                raise AssertionError(f"{alone}\n{net}") from together
        raise
