"""Images as people's programs hold them: the same results as those of the tensor, or one clear error."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import overfeat
from overfeat.data.arrays import as_tensor, check_value_range, to_pixels
from overfeat.dense import inputs
from overfeat.densify.convert import densify
from overfeat.errors import ArgumentError, InputError
from overfeat.models.box_regressor import BoxRegressor
from overfeat.models.multibox import MultiBox

SCALES = [1.0]


def drawn(height=60, width=70, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (channels, height, width), generator=generator, dtype=torch.uint8)


@pytest.fixture
def net(make_net):
    return make_net("small")


@pytest.fixture
def image():
    return drawn()


@pytest.fixture
def kinds(image, tmp_path):
    """The image as everything that one image can be."""
    array = image.permute(1, 2, 0).numpy()
    picture = Image.fromarray(array)
    picture.save(tmp_path / "image.png")
    read_only = array.copy()
    read_only.flags.writeable = False
    return {
        "tensor": image, "batch of one": image[None], "path": tmp_path / "image.png",
        "text of a path": str(tmp_path / "image.png"), "PIL": picture, "array": array, "read-only array": read_only,
        "reversed array": np.ascontiguousarray(array[..., ::-1])[..., ::-1],
    }  # fmt: skip


def test_every_kind_of_image_gives_the_same_result(net, image, kinds):
    """In every function; of a detector's own image the kinds differ in nothing but their type."""
    regressor, model = BoxRegressor(net.architecture), MultiBox(net.architecture, 5)
    boxes = torch.tensor([[3.0, 4, 40, 50]])
    functions = {
        "classify": lambda x, **kw: overfeat.classify(net, x, scales=SCALES, **kw),
        "centre_crop": lambda x, **kw: overfeat.centre_crop(net, x, **kw),
        "ten_views": lambda x, **kw: overfeat.ten_views(net, x, **kw),
        "score_maps": lambda x, **kw: overfeat.score_maps(net, x, scales=SCALES, flip=False, **kw)[0].scores,
        "candidates": lambda x, **kw: overfeat.candidates(net, regressor, x, scales=SCALES, **kw).boxes,
        "localize": lambda x, **kw: overfeat.localize(net, regressor, x, scales=SCALES, **kw).boxes,
        "propose": lambda x, **kw: overfeat.propose(model, x, **kw).boxes,
        "classify_boxes": lambda x, **kw: overfeat.classify_boxes(net, x, boxes, **kw),
        "detect_multibox": lambda x, **kw: overfeat.detect_multibox(model, net, x, score_threshold=0, **kw).scores,
    }
    net.background = True
    functions["detect"] = lambda x, **kw: overfeat.detect(net, regressor, x, scales=SCALES, min_score=0, **kw).scores
    for name, function in functions.items():
        expected, of_floats = function(image), function(image.float())
        assert expected.numel() and expected.isfinite().all(), name
        for kind, value in kinds.items():
            assert torch.equal(function(value), expected), f"{name} {kind}"
        array = image.permute(1, 2, 0).numpy()
        assert torch.equal(function(array.astype(np.int64), value_range=(0, 255)), of_floats), name
        assert torch.equal(function(array.astype(">f8")), function(image.double())), name
        fractions = function(image.float() / 255, value_range=(0, 1))
        torch.testing.assert_close(fractions, of_floats, rtol=1e-3, atol=1e-3, msg=name)


def test_lists_generators_and_batches(net, kinds, image, tmp_path, monkeypatch):
    other = drawn(64, 50, seed=1)
    listed = [kinds["path"], other, kinds["PIL"], kinds["array"], drawn(seed=2), torch.stack([other, other])]
    tensors = [image, other, image, image, drawn(seed=2), other, other]
    expected = torch.cat([overfeat.classify(net, t, scales=SCALES) for t in tensors])
    for images in (listed, iter(listed), tuple(listed)):
        torch.testing.assert_close(overfeat.classify(net, images, scales=SCALES), expected)
    monkeypatch.setattr(inputs, "GATHERED_BYTES", 2 * image.nbytes)  # in several parts
    torch.testing.assert_close(overfeat.classify(net, listed, scales=SCALES), expected)
    assert overfeat.classify(net, []).shape == (0, 5)
    maps = overfeat.score_maps(net, (t for t in (image, image.numpy().transpose(1, 2, 0))), scales=SCALES)
    assert len(maps[0].scores) == 2 and torch.equal(maps[0].scores[0], maps[0].scores[1])
    with pytest.raises(InputError, match=r"all of one size; they are of 60x70, 64x50; call it for each"):
        overfeat.score_maps(net, [image, other])
    with pytest.raises(InputError, match="at least one, all of one size; there is none"):
        overfeat.score_maps(net, [])
    for images in ([image, other], [], torch.stack([image, image])):
        with pytest.raises(InputError, match="one image at a time, not"):
            overfeat.localize(net, BoxRegressor(net.architecture), images)
    assert overfeat.localize(net, BoxRegressor(net.architecture), [kinds["path"]], scales=SCALES).boxes.shape[1] == 4


def test_grey_images_of_every_kind(net):
    grey = drawn(channels=1)
    expected = overfeat.classify(net, grey, scales=SCALES)
    for image in (grey[0].numpy(), grey[0, :, :, None].numpy(), Image.fromarray(grey[0].numpy())):
        assert torch.equal(overfeat.classify(net, image, scales=SCALES), expected)
    levels = grey[0].numpy().astype(np.uint16) * 257
    for image, options in ((Image.fromarray(levels), {}), (levels, {"value_range": (0, 65535)})):
        torch.testing.assert_close(overfeat.classify(net, image, scales=SCALES, **options), expected)


def test_a_pil_image_is_read_as_its_file(net, tmp_path):
    """Turned by its EXIF orientation, transparent pixels over white."""
    picture, exif = Image.fromarray(drawn().permute(1, 2, 0).numpy()).convert("RGBA"), Image.Exif()
    picture.putalpha(Image.fromarray(drawn(channels=1, seed=5)[0].numpy()))
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as opened:
        assert torch.equal(as_tensor(opened), as_tensor(tmp_path / "turned.png"))
        assert as_tensor(opened).shape == (3, 70, 60)
    closed = Image.open(tmp_path / "turned.png")
    closed.close()
    with pytest.raises(InputError, match="the image cannot be read by Pillow: Operation on closed image"):
        as_tensor(closed)
    with pytest.raises(InputError, match="have no fixed range of brightness"):
        as_tensor(Image.new("F", (4, 4)))


# Values


@pytest.mark.parametrize("name", ["classify", "centre_crop", "ten_views", "score_maps", "localize", "propose"])
def test_images_in_unit_range_are_refused(net, name):
    def call(image, **options):
        if name == "localize":
            return overfeat.localize(net, BoxRegressor(net.architecture), image, scales=SCALES, **options)
        function = getattr(overfeat, name)
        return function(MultiBox(net.architecture, 5) if name == "propose" else net, image, **options)

    fractions = drawn().float() / 255
    with pytest.raises(InputError, match=r"values from 0 to 1, not pixels in 0\.\.255; value_range=\(0, 1\) or"):
        call(fractions)
    for other in (2 * fractions - 1, 1.02 * fractions, (fractions - 0.45) / 0.225):
        with pytest.raises(InputError, match="that it is nearly black; undo a normalisation by mean and deviation"):
            call(other)
    for image, options in ((fractions, {"value_range": (0, 255)}), (torch.zeros(3, 60, 70), {}), (drawn() // 128, {})):
        call(image, **options)


def test_one_image_of_a_list_in_unit_range_is_named(net):
    image = drawn().float()
    with pytest.raises(InputError, match=r"^image 2 of the list: values from 0 to 1, not pixels"):
        overfeat.classify(net, [image, image, image / 255])
    with pytest.raises(TypeError, match=r"^image 1 of the list must be a path, a PIL image, .*, not tuple"):
        overfeat.classify(net, [image, (image, 3)])
    with pytest.raises(InputError, match=r"^the image: values from 0 to 1 in image 1 of the batch, not pixels"):
        overfeat.classify(net, torch.stack([image, image / 255]))
    with pytest.raises(InputError, match=r"^the image: values from 0 to 1912 in image 0 of the batch, far beyond"):
        overfeat.classify(net, torch.stack([image * 7.5, image]))
    overfeat.classify(net, torch.stack([image, 0 * image]))  # black


def test_nets_that_take_pixels_as_they_are_take_any_range():
    """A module converted without mean and deviation defines the range itself."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16 * 16, 3))
    fractions = torch.rand(3, 20, 20)
    own, divided = densify(module, 18), densify(module, 18, std=255)
    expected = overfeat.score_maps(own, fractions)[0].scores
    actual = overfeat.score_maps(divided, fractions, value_range=(0, 1))[0].scores
    torch.testing.assert_close(actual, expected)
    with pytest.raises(InputError, match="not pixels in 0"):
        overfeat.score_maps(divided, fractions)
    with pytest.raises(InputError, match="not pixels in 0"):
        overfeat.classify([own, divided], fractions)
    centred = densify(module, 18, mean=(104, 117, 123))
    for net in (centred, overfeat.squeezenet()):
        with pytest.raises(InputError, match="not pixels in 0"):
            overfeat.score_maps(net, fractions)


@pytest.mark.parametrize("scale", [1e9, 1e300, (1 << 40, 1 << 40)])
def test_enormous_scales(net, image, scale):
    with pytest.raises(ArgumentError, match=r"an image of 60x70 would become .* px; crop it, or scales must be"):
        overfeat.classify(net, image, scales=[scale])


def test_values_that_are_no_numbers_are_counted(net):
    images = torch.full((2, 3, 60, 70), 100.0)
    images[1, 2, 40, 7], images[1, 0, 41, 3] = torch.nan, -torch.inf
    with pytest.raises(InputError, match="2 NaN or infinite values, the first of image 1 at row 41, column 3; replace"):
        overfeat.classify(net, images)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        with pytest.raises(InputError, match="1 NaN or infinite values, the first at row 40, column 7"):
            overfeat.score_maps(net, images[1, [1, 1, 2]].to(dtype), scales=SCALES)


def test_value_ranges():
    ramp = torch.tensor([-1.0, 0.0, 1.0]).expand(3, 1, 3)
    assert to_pixels(ramp, (-1, 1), "the image")[0, 0].tolist() == [0, 127.5, 255]
    assert to_pixels(torch.ones(1, 2, 2, dtype=torch.bool), (0, 1), "the image").unique().tolist() == [255]
    assert to_pixels(ramp.double(), [-1, np.float64(1)], "the image").dtype == torch.float64
    pixels = torch.rand(3, 2, 2) * 255
    assert to_pixels(pixels, (0, 255), "the image") is pixels
    with pytest.raises(ArgumentError, match=r"^x: values from 0 to 255, far beyond 0\.\.1; value_range says which"):
        to_pixels(torch.tensor([0.0, 255]).expand(3, 2, 2), (0, 1), "x")
    with pytest.raises(ArgumentError, match=r"^x: values from 0 to 6.5e\+04, far beyond 0\.\.255; value_range says"):
        to_pixels(torch.tensor([0.0, 65000]).expand(3, 2, 2), None, "x")
    for wrong in (1, (1, 0), (0, 0), (0, float("inf")), ("0", "1"), (0, 1, 2), "01", (False, True), {}):
        with pytest.raises(ArgumentError, match="value_range must be the values of black and white"):
            check_value_range(wrong)
    with pytest.raises(InputError, match=r"must be uint8 or floating point, not int64; `value_range` says"):
        to_pixels(torch.ones(3, 2, 2, dtype=torch.int64), None, "the image")


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (np.zeros((3, 60, 70), np.uint8), InputError, r"shape \(3, 60, 70\): array.transpose\(1, 2, 0\) has"),
        (np.zeros((2, 60, 70, 3), np.uint8), InputError, r"shape \(2, 60, 70, 3\); a list of its images"),
        (np.zeros((0, 7, 3), np.uint8), InputError, r"must be \[H, W, 3\] or \[H, W\]; this array has shape"),
        (np.zeros(3), InputError, r"this array has shape \(3,\)"),
        (np.zeros((60, 70, 4), np.uint8), ValueError, r"60, 70\); PIL.Image.fromarray\(array\) is read as RGBA"),
        (np.zeros((60, 70), complex), TypeError, "must hold numbers, and is an array of complex128"),
        (np.array([["a"]]), TypeError, "must hold numbers, and is an array of <U1"),
        (torch.zeros(3, 60, 70, dtype=torch.complex64), TypeError, "must hold real numbers, .* complex64"),
        (torch.zeros(3, 60, 70).to_sparse(), TypeError, "must be a dense tensor with values, and is sparse_coo"),
        (torch.zeros(3, 60, 70, device="meta"), TypeError, "a dense tensor with values, and is on the meta device"),
        (memoryview(np.zeros((60, 70, 3), np.uint8)), TypeError, "the image must be a path, .*, not memoryview"),
    ],
)
def test_arrays_that_are_no_images(net, array, error, message):
    with pytest.raises(error, match=message):
        overfeat.classify(net, array)
