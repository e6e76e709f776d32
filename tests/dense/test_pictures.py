"""Results that show themselves in notebooks: the pictures, and where their images come from."""

import copy
import gc
import io
import pickle
import weakref
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

import overfeat
from overfeat.dense.detections import Detections
from overfeat.dense.grid import Grid
from overfeat.dense.maps import ScoreMap, ScoreMaps
from overfeat.dense.pictures import picture_size
from overfeat.dense.source import Source, to_rgb
from overfeat.errors import InputError
from overfeat.large import LargeConfig, detect_large, open_image

NAMES = ["ash", "oak"]
SIZE = (60, 90)


def maps_of(image=None, best=(1, 4), flipped=False, names=NAMES, count=1):
    """Maps of three classes: the second is 1 in one window of 30 x 30 pixels and 0.1 elsewhere, the others less."""
    grid = Grid((30, 30), 10, SIZE, SIZE, flipped)
    scores = torch.zeros(count, 3, *grid.shape)
    scores[:, 1] = 0.1
    scores[(-1, 1, *best)] = 1
    source = None if names is None else Source(names, SIZE, [] if image is None else [weakref.ref(image)])
    return ScoreMaps([ScoreMap(scores, grid).with_source(source)])


@pytest.fixture
def image():
    return torch.full((3, *SIZE), 200, dtype=torch.uint8)


@pytest.fixture
def nets(make_net):
    """A detector of two classes with random weights, and its regressor."""
    net = make_net("small", 3)
    net.class_names, net.background, net.scale_factors = [*NAMES, "background"], True, (1.0,)
    torch.manual_seed(0)
    return net, overfeat.BoxRegressor(net.architecture)


def pixels(picture):
    return np.asarray(picture.convert("RGB")).astype(int)


def alike(picture, other):
    """Whether two pictures are the same but for the choice of 256 colours."""
    return abs(pixels(picture) - pixels(other)).mean() < 2


def extent(picture, red, green, blue):
    """The part of a picture in this colour: (x1, y1, x2, y2), half-open."""
    y, x = np.nonzero((pixels(picture) == (red, green, blue)).all(axis=2))
    return x.min(), y.min(), x.max() + 1, y.max() + 1


def shown(result):
    """What a notebook shows of a result."""
    return Image.open(io.BytesIO(result._repr_png_()))


@pytest.mark.parametrize("flipped", [False, True])
def test_a_heat_map_over_the_image(image, flipped):
    """The best window is outlined; each score is painted at its centre; the rest of the image stays grey."""
    picture = maps_of(image, flipped=flipped).picture()
    assert picture.size == (480, 320)
    left = (90 - 30 - 40 if flipped else 40) * 480 / 90
    x1, y1, x2, y2 = extent(picture, 0, 255, 255)
    assert (x1, x2, y2) == pytest.approx((left, left + 160, 40 * 320 / 60), abs=2)
    assert y1 <= round(10 * 320 / 60)  # the label lies above
    heat, corner = pixels(picture)[round(25 * 320 / 60), round(left + 80)], pixels(picture)[-5, 5]
    assert corner.tolist() == [200, 200, 200]
    assert heat.tolist() == [round(0.2 * 200 + 0.8 * c) for c in (0xFC, 0xFF, 0xA4)]


def test_the_best_class_is_shown_unless_another_is_named(image):
    maps = maps_of(image)
    same = maps.picture("oak").tobytes()
    assert maps.picture().tobytes() == maps.picture(1).tobytes() == maps[0].picture().tobytes() == same
    for result in (maps, maps[0]):
        assert shown(result).mode == "P" and alike(shown(result), maps.picture())
    assert maps.picture("ash").tobytes() != same
    maps[0].scores[0, 2] = 2  # the background has no name, and is not shown unless it is asked for
    assert maps.picture().tobytes() == same != maps.picture(2).tobytes()
    assert repr(maps) == repr(maps[:1]) == "ScoreMaps(1 image, 3 classes, positions 4x7)"
    assert maps[:1].picture().tobytes() == maps.picture().tobytes()
    for label in ("elm", 3, -1, 1.5, True):
        with pytest.raises(InputError, match="label must be the name or number of one of 3 classes, not "):
            maps.picture(label)


def test_maps_alone_where_the_image_is_not_known(image):
    """The colours of the scores, on white; given the image, the same as where it is known."""
    for names in (NAMES, None):
        maps = maps_of(names=names)
        picture = shown(maps)
        assert pixels(picture)[-5, 5].tolist() == [255, 255, 255]
        assert pixels(picture)[160, 200].tolist() == pytest.approx([0x1B * 0.9, 0x0C * 0.9, 4 + 0x3D * 0.9], abs=2)
    known = maps_of(image).picture()
    assert maps_of().picture(image=image).tobytes() == known.tobytes()
    words = "image must be the image that was evaluated, 60x90 pixels, not 30x30"
    with pytest.raises(InputError, match=words):
        maps.picture(image=image[:, :30, :30])


def test_one_image_of_several():
    images = torch.stack([torch.full((3, *SIZE), value, dtype=torch.uint8) for value in (50, 150)])
    maps = maps_of(images, count=2)
    assert [pixels(maps.picture(number=n))[-5, 5].tolist() for n in (0, 1)] == [[50] * 3, [150] * 3]
    assert alike(shown(maps), maps.picture(number=0))
    for number in (2, -1, "a"):
        with pytest.raises(InputError, match="number must be 0 to 1, that of an image, not "):
            maps.picture(number=number)
    with pytest.raises(InputError, match="there are no score maps to draw"):
        ScoreMaps().picture()
    assert ScoreMaps()._repr_png_() is None and repr(ScoreMaps()) == "ScoreMaps([])"


def some_detections(source=None, count=2):
    boxes = torch.tensor([[10.0, 20, 40, 50], [50, 20, 80, 50]]).repeat(count // 2, 1)
    detections = Detections.from_boxes(boxes, torch.tensor([1, 0] * (count // 2)), torch.linspace(0.9, 0.5, count))
    return detections.with_source(source)


def test_boxes_on_the_image(image):
    detections = some_detections(Source(NAMES, SIZE, [weakref.ref(image)]))
    assert detections.names == ["oak", "ash"]
    picture, factor = detections.picture(), 480 / 90
    assert alike(shown(detections), picture)
    for color, (x1, x2) in (((0x4C, 0xC9, 0xF0), (10, 40)), ((0xFF, 0x9F, 0x1C), (50, 80))):
        box = extent(picture, *color)
        assert (box[0], box[2], box[3]) == pytest.approx((x1 * factor, x2 * factor, 50 * factor), abs=2)
        assert box[1] < 20 * factor  # the label lies above
    assert detections._repr_html_() is None
    one = detections[:1]
    assert one.picture().tobytes() == detections[torch.tensor([0])].picture().tobytes() != picture.tobytes()
    assert one.clip((60, 30)).names == ["oak"]


def test_a_table_where_the_image_is_not_known(image):
    detections = some_detections(Source(["<b>", "a\nb"], SIZE))
    assert detections._repr_png_() is None
    table = detections._repr_html_()
    assert "<p>2 detections</p>" in table and "more" not in table
    row = "".join(f"<td>{cell}</td>" for cell in (0, "a\\nb", "0.90", "10.0", "20.0", "40.0", "50.0"))
    assert f"<tr>{row}</tr>" in table and "<td>&lt;b&gt;</td>" in table
    assert "<td>class 1</td>" in some_detections()._repr_html_()
    many = some_detections(count=52)._repr_html_()
    assert many.count("<tr>") == 51 and many.endswith("<p>and 2 more</p>")
    with pytest.raises(InputError, match=r"not known any more; picture\(image\) draws them on it"):
        detections.picture()
    assert detections.picture(image).size == (480, 320)
    with pytest.raises(InputError, match="60x90 pixels, not 60x50"):
        detections.picture(image[:, :, :50])


def test_names_are_drawn_as_they_are(image):
    """They need not be valid text, nor fit into the picture; boxes may lie at its edges."""
    names = ["ash\udcff\n\x1b", "o" * 300]
    boxes = torch.tensor([[0.0, 0, 90, 60], [80, 50, 90, 60]])
    detections = Detections.from_boxes(boxes, torch.tensor([0, 1]), torch.tensor([0.9, 0.5]))
    assert detections.with_source(Source(names, SIZE)).picture(image).size == (480, 320)


def test_results_keep_no_pixels(nets, tmp_path):
    """A path is kept; an image in memory is known as long as the caller has it."""
    net, regressor = nets
    array = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "image.png")
    images = {
        "path": tmp_path / "image.png", "text": str(tmp_path / "image.png"), "array": array.copy(),
        "tensor": torch.from_numpy(array.copy()).permute(2, 0, 1), "PIL": Image.fromarray(array),
        "batch": torch.from_numpy(array.copy()).permute(2, 0, 1)[None],
    }  # fmt: skip
    results = {name: overfeat.score_maps(net, image) for name, image in images.items()}
    detections = {name: overfeat.detect(net, regressor, image, min_score=0) for name, image in images.items()}
    lists = overfeat.score_maps(net, [images["path"], images["tensor"]])
    expected = results["path"].picture().tobytes()
    assert all(maps.picture().tobytes() == expected for maps in results.values())
    assert lists.picture(number=1).size == lists.picture(number=0).size
    boxes = detections["path"].picture().tobytes()
    assert all(result.picture().tobytes() == boxes for result in detections.values())
    del images["array"], images["tensor"], images["PIL"], images["batch"]
    gc.collect()
    gone = {name for name in results if results[name].picture().tobytes() != expected}
    assert gone == {"array", "tensor", "PIL", "batch"} == {n for n, d in detections.items() if d._repr_html_()}
    Image.fromarray(array[:50]).save(tmp_path / "image.png")  # it is another image by now
    assert detections["path"]._repr_png_() is None
    (tmp_path / "image.png").unlink()
    assert results["path"].picture().tobytes() == results["array"].picture().tobytes()


def test_the_source_is_no_field(nets, image):
    """Results stay what they were: six tensors, a list; copies and pickled ones are equal, without the source."""
    net, regressor = nets
    detections, maps = overfeat.detect(net, regressor, image, min_score=0), overfeat.score_maps(net, image)
    fields = ["boxes", "labels", "scores", "counts", "confidence_sum", "max_score"]
    assert list(vars(detections)) == list(asdict(detections)) == fields and detections.source.names == NAMES
    assert isinstance(maps, list) and list(vars(maps[0])) == ["scores", "grid"]
    for again in (pickle.loads(pickle.dumps(detections)), copy.deepcopy(detections)):
        assert again.source is None and torch.equal(again.boxes, detections.boxes) and again._repr_html_()
    again = pickle.loads(pickle.dumps(maps))
    assert torch.equal(again[0].scores, maps[0].scores) and again[0].grid == maps[0].grid and again.picture(1)


def test_every_function_names_its_classes(nets, make_net, image, tmp_path):
    net, regressor = nets
    model = overfeat.MultiBox(net.architecture, 5)
    prototypes = overfeat.Prototypes(net)
    prototypes.add("elm", image)
    maps = overfeat.score_maps(prototypes, image)
    prototypes.remove("elm")
    large = open_image(image.permute(1, 2, 0).numpy())
    sources = {
        "localize": overfeat.localize(net, regressor, image).source,
        "propose": overfeat.propose(model, image).source,
        "multibox": overfeat.detect_multibox(model, net, image).source,
        "boxes alone": overfeat.detect_multibox(model, None, image).source,
        "prototypes": maps[0].source,
        "large": detect_large(net, regressor, large, large=LargeConfig(), min_score=0).source,
        "maps of large images": overfeat.score_maps(net, large)[0].source,
    }
    assert {name: list(source.names) for name, source in sources.items()} == {
        **dict.fromkeys(("localize", "multibox", "large", "maps of large images"), NAMES),
        "propose": ["object"], "boxes alone": ["object"], "prototypes": ["elm"],
    }  # fmt: skip
    known = {name for name, source in sources.items() if source.pixels() is not None}
    assert known == {"localize", "propose", "multibox", "boxes alone", "prototypes"}
    assert all(source.size == SIZE for source in sources.values())


@pytest.mark.parametrize(
    ("image", "value_range", "expected"),
    [
        (torch.tensor([0.0, 0.5, 1.0]), None, [0, 128, 255]),  # not in 0..255: stretched
        (torch.tensor([-1.0, 0.0, 1.0]), (-1, 1), [0, 128, 255]),
        (torch.tensor([0.0, 100.4, 300.0]), None, [0, 100, 255]),
        (torch.tensor([0, 5000, 10000], dtype=torch.int32), (0, 10000), [0, 128, 255]),
        (torch.tensor([3, 4, 5], dtype=torch.uint8), None, [3, 4, 5]),
    ],
)
def test_pixels_to_be_looked_at(image, value_range, expected):
    flat = image.view(1, 1, 3)
    for channels in (1, 2, 3, 5):
        rgb = to_rgb(flat.expand(channels, 1, 3), (1, 3), value_range)
        assert rgb.dtype == torch.uint8 and rgb.tolist() == [[expected]] * 3


def test_pictures_have_the_size_of_a_notebook():
    assert picture_size((60, 90)) == (320, 480)
    assert picture_size((480, 640)) == (480, 640)
    assert picture_size((3000, 4000)) == (750, 1000)
    assert picture_size((1, 5000)) == (1, 1000)
