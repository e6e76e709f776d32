"""Random crops in training, centre crops in validation."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from overfeat.classification.data import CentreCropDataset, CropDataset, centre_crop
from overfeat.data.image_cache import ImageCache, resize_shorter
from overfeat.data.image_folder import ImageFolder, LabeledImage
from overfeat.errors import InputError

SIZES = [(70, 90), (64, 64), (100, 61)]  # height, width


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    samples = []
    for label, size in enumerate(SIZES):
        path = tmp_path / f"{label}.png"
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
        samples.append(LabeledImage(path, label))
    return ImageFolder(["a", "b", "c"], samples)


def everything(data, epoch=0):
    return [data[epoch, index] for index in range(len(data))]


def test_every_image_gives_crops_and_their_mirror_images(folder):
    data = CropDataset(folder, window=48, resize=(56, 56))
    assert len(data) == 3 * 5 * 2
    items = everything(data)
    assert Counter(int(item["label"]) for item in items) == {0: 10, 1: 10, 2: 10}
    for crop, mirror in zip(items[::2], items[1::2], strict=True):
        assert crop["image"].shape == (3, 48, 48) and crop["image"].dtype == torch.uint8
        assert torch.equal(crop["image"].flip(-1), mirror["image"])
    assert len({item["image"].numpy().tobytes() for item in items}) == len(items)
    plain = CropDataset(folder, window=48, resize=(56, 56), flip=False)
    assert len(plain) == 3 * 5
    for item, crop in zip(everything(plain), items[::2], strict=True):
        assert torch.equal(item["image"], crop["image"])


def test_crops_come_from_every_position_of_the_resized_image(folder):
    data = CropDataset(folder, window=63, resize=(64, 64), crops=40, flip=False)
    image = data.cache.get(1)
    assert image.shape == (3, 64, 64)
    positions = {(y, x): image[:, y : y + 63, x : x + 63] for y in (0, 1) for x in (0, 1)}
    drawn = Counter(
        next(position for position, crop in positions.items() if torch.equal(crop, data[0, 40 + i]["image"]))
        for i in range(40)
    )
    assert set(drawn) == set(positions)


def test_crops_depend_on_seed_epoch_image_and_crop_alone(folder):
    def images(seed=0, epoch=0, **options):
        data = CropDataset(folder, window=48, resize=(50, 70), seed=seed, **options)
        return torch.stack([item["image"] for item in everything(data, epoch)])

    first = images()
    assert torch.equal(first, images())
    assert torch.equal(first, images(cache_bytes=0))
    assert not torch.equal(first, images(seed=1))
    assert not torch.equal(first, images(epoch=1))
    data = CropDataset(folder, window=48, resize=(50, 70))
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(3)).tolist()
    batches = [[(0, index) for index in order[i : i + 7]] for i in range(0, len(order), 7)]
    loaded = torch.cat([batch["image"] for batch in DataLoader(data, batch_sampler=batches, num_workers=2)])
    assert torch.equal(loaded, first[order])


def test_resize_draws_the_shorter_side_log_uniformly(folder, monkeypatch):
    sizes = []

    def spy(image, short_side):
        sizes.append(short_side)
        return resize_shorter(image, short_side)

    monkeypatch.setattr("overfeat.classification.data.resize_shorter", spy)
    everything(CropDataset(folder, window=48, resize=(50, 200), crops=100, flip=False))
    assert min(sizes) >= 50 and max(sizes) <= 200 and len(sizes) == 300
    assert 0.4 < np.mean([size < 100 for size in sizes]) < 0.6  # 100 is the middle on the log scale


def test_unreadable_images_are_replaced_by_the_next(folder):
    expected = everything(CropDataset(folder, window=48, resize=(56, 56)))
    folder.samples[2][0].write_bytes(b"broken")
    data = CropDataset(folder, window=48, resize=(56, 56))
    items = everything(data)
    assert [item["unreadable"] for item in items] == [-1] * 20 + [2] * 10
    assert [item["label"] for item in items[20:]] == [0] * 10
    for item, before in zip(items[:20], expected, strict=False):
        assert torch.equal(item["image"], before["image"])
    file, message = data.cache.error_for(2)
    assert file == str(folder.samples[2][0]) and file in message
    data.cache.check()
    for path, _ in folder.samples:
        path.write_bytes(b"broken")
    with pytest.raises(InputError, match="none of the 3 images"):
        CropDataset(folder, window=48, resize=(56, 56)).cache.check()


def test_large_and_elongated_images_are_invalid(folder, tmp_path):
    Image.fromarray(np.zeros((1, 30_000, 3), np.uint8)).save(folder.samples[0][0])
    data = CropDataset(folder, window=48, resize=(56, 100), max_pixels=64 * 64)
    assert "too elongated" in CropDataset(folder, 48, (56, 100)).cache.error_for(0)[1]
    assert [item["unreadable"] for item in everything(data)[::10]] == [0, -1, 2]


def test_the_cache_keeps_what_fits(folder):
    cache = ImageCache([path for path, _ in folder.samples], (56, 56), cache_bytes=2 * 3 * 56 * 100)
    for index in (0, 1, 2, 0):
        cache.get(index)
    assert list(cache.cached) == [0, 1] and cache.used <= cache.cache_bytes


def test_centre_crop_takes_the_middle(folder):
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    image[:, 15:25, 25:35] = 255
    assert (centre_crop(image, window=10, short_side=40) == 255).all()
    assert centre_crop(image, window=48, short_side=56).shape == (3, 48, 48)
    data = CentreCropDataset(folder, window=48, short_side=56)
    expected = centre_crop(data.cache._read(0), 48, 56)
    assert len(data) == 3 and torch.equal(data[0]["image"], expected) and data[2]["label"] == 2
    folder.samples[1][0].write_bytes(b"broken")
    assert CentreCropDataset(folder, window=48, short_side=56)[1]["label"] == -1


@pytest.mark.parametrize(("resize", "words"), [((40, 60), "window of 48"), ((60, 50), "smaller size, then the larger")])
def test_sizes_that_do_not_fit_are_refused(folder, resize, words):
    with pytest.raises(InputError, match=words):
        CropDataset(folder, window=48, resize=resize)
    with pytest.raises(InputError, match="window of 48"):
        CentreCropDataset(folder, window=48, short_side=40)
