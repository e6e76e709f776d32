"""Parts of large images at any size: their pixels are those of the whole, resized."""

import pickle

import numpy as np
import pytest
import torch

from overfeat.data.resize import resize
from overfeat.errors import ArgumentError
from overfeat.large import open_image, view
from overfeat.large.config import LargeConfig
from overfeat.large.view import View
from overfeat.models.net import as_batch


class Levels:
    """An image in memory with several levels, which counts the pixels that are read."""

    name, tile, georeference = "levels", (64, 64), None

    def __init__(self, *levels):
        self.pixels, self.levels, self.reads = levels, [tuple(level.shape[1:]) for level in levels], []

    def read(self, level, rows, columns, *, damaged=None):
        self.reads.append((level, rows.stop - rows.start, columns.stop - columns.start))
        return self.pixels[level][:, rows, columns]

    def close(self):
        pass


def noise(height, width, seed=0):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


SIZES = [((90, 131), (90, 131)), ((90, 131), (45, 65)), ((90, 131), (31, 200)), ((97, 60), (200, 7)), ((8, 9), (30, 9))]


@pytest.mark.parametrize("size, scaled", SIZES)
@pytest.mark.parametrize("limit", [view.MAX_READ, 200])
def test_parts_are_those_of_the_whole_resized(size, scaled, limit, monkeypatch):
    monkeypatch.setattr(view, "MAX_READ", limit)
    pixels, generator = noise(*size), np.random.default_rng(0)
    whole = resize(pixels[None], scaled)[0]
    part = View.of(Levels(pixels)).scaled(scaled)
    assert torch.equal(part.crop(slice(0, scaled[0]), slice(0, scaled[1])), whole)
    for _ in range(5):
        (top, bottom), (left, right) = (np.sort(generator.choice(side + 1, 2, replace=False)) for side in scaled)
        assert torch.equal(part.crop(slice(top, bottom), slice(left, right)), whole[:, top:bottom, left:right])


def test_grey_as_in_memory():
    pixels = noise(40, 50)
    part = View.of(Levels(pixels)).scaled((23, 31), channels=1)
    expected = resize(as_batch(pixels, 1), (23, 31))[0]
    assert torch.equal(part.crop(slice(0, 23), slice(0, 31)), expected)


def test_reads_are_bounded(monkeypatch):
    monkeypatch.setattr(view, "MAX_READ", 5000)
    image = Levels(noise(300, 400))
    View.of(image).scaled((30, 40)).crop(slice(0, 30), slice(0, 40))
    assert len(image.reads) > 20 and max(height * width for _, height, width in image.reads) < 2 * 5000


@pytest.mark.parametrize("scaled, level", [((100, 120), 0), ((60, 80), 0), ((50, 60), 1), ((26, 31), 1), ((25, 30), 2)])
def test_the_nearest_finer_level_is_read(scaled, level):
    image = Levels(*(noise(100 // n, 120 // n, seed=n) for n in (1, 2, 4)))
    own = View.of(image).scaled(scaled)
    expected = resize(image.pixels[level][None], scaled)[0]
    assert torch.equal(own.crop(slice(0, scaled[0]), slice(0, scaled[1])), expected) and image.reads[0][0] == level


def test_a_level_that_is_a_little_coarser_is_fine_enough():
    image = Levels(noise(1000, 400), noise(500, 200, seed=1))
    assert View.of(image).scaled((504, 201)).level == 1 and View.of(image).scaled((506, 203)).level == 0


def test_no_finer_level_than_the_views_is_read():
    image = Levels(*(noise(100 // n, 120 // n, seed=n) for n in (1, 2, 4)))
    own = View.of(image, LargeConfig(level=1))
    assert own.size == (50, 60) and own.scaled((80, 90)).level == 1 and own.scaled((25, 30)).level == 2
    assert own.to_level0(torch.tensor([[0.0, 0, 60, 50]])).tolist() == [[0, 0, 120, 100]]


def test_a_region_is_as_if_cropped():
    image = Levels(noise(100, 120), noise(50, 60, seed=1))
    own = View.of(image, LargeConfig(region=(10, 20, 50, 40)))
    assert own.size == (40, 50)
    crop = image.pixels[0][:, 20:60, 10:60]
    for scaled in ((40, 50), (33, 44), (90, 91)):
        whole = own.scaled(scaled).crop(slice(0, scaled[0]), slice(0, scaled[1]))
        assert torch.equal(whole, resize(crop[None], scaled)[0])
    coarse = own.scaled((20, 25)).crop(slice(0, 20), slice(0, 25))
    assert torch.equal(coarse, image.pixels[1][:, 10:30, 5:30])
    assert own.to_level0(torch.tensor([[1.0, 2, 3, 4]])).tolist() == [[11, 22, 13, 24]]


def test_a_region_between_the_pixels_of_a_coarser_level():
    ramp = torch.arange(60, dtype=torch.uint8).expand(3, 20, 60)
    image = Levels(torch.zeros(3, 40, 120, dtype=torch.uint8), ramp)
    own = View.of(image, LargeConfig(region=(21, 0, 40, 40)))  # columns 10.5 to 30.5 of level 1
    pixels = own.scaled((20, 20)).crop(slice(0, 20), slice(0, 20))[0, 3]
    assert (pixels[1:-1].int() - torch.arange(12, 30)).abs().max() <= 1  # rounded from the middle of two


def test_what_the_image_does_not_have_is_refused():
    image = Levels(noise(100, 120))
    with pytest.raises(ArgumentError, match="levels has 1 level; level must be from 0 to 0, not 2"):
        View.of(image, LargeConfig(level=2))
    with pytest.raises(ArgumentError, match="100 px high and 120 px wide; region must lie in it, not be 100,0,30,10"):
        View.of(image, LargeConfig(region=(100, 0, 30, 10)))
    for region in ((0, 0, 0, 5), (1, 2, 3), "all", (0.5, 0, 3, 3), (-1, 0, 5, 5)):
        with pytest.raises(ArgumentError, match=r"region must be \(x, y, width, height\) in pixels, whole numbers"):
            LargeConfig(region=region)
    with pytest.raises(ArgumentError, match="level must be a whole number"):
        LargeConfig(level=0.5)


def test_views_can_be_pickled(tmp_path):
    np.save(tmp_path / "image.npy", noise(30, 40).permute(1, 2, 0).numpy())
    own = View.of(open_image(tmp_path / "image.npy"), LargeConfig(region=(1, 2, 20, 21)))
    again = pickle.loads(pickle.dumps(own))
    assert torch.equal(
        again.scaled((9, 9)).crop(slice(0, 9), slice(0, 9)), own.scaled((9, 9)).crop(slice(0, 9), slice(0, 9))
    )
