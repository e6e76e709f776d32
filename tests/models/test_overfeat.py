"""The nets: their layers as released, and dense evaluation against cropping every window."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from layer_shape import layer_shape

import overfeat
from bench.tolerance import assert_matches
from overfeat.errors import InputError
from overfeat.models.architecture import ARCHITECTURES, Architecture, Conv
from overfeat.models.overfeat import OverFeat, build
from overfeat.models.receptive_field import output_size

NETS = ["small", "thin fast", "thin accurate"]
STRIDES = ["coarse", "fine"]
# kinds of layer by number, as the released program prints them
BEGINNING = "normalise conv threshold pool conv threshold pool pad conv threshold pad conv threshold"
MORE = " pad conv threshold"
END = " pool full threshold full threshold full"
RELEASED = {"fast": BEGINNING + MORE + END, "accurate": BEGINNING + MORE + MORE + END}


def pixels(height, width, count=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def image_for(net, rows, columns, count=1):
    """An image with rows x columns windows at fine stride and a few pixels over."""
    window, step = net.architecture.window, net.architecture.fine_stride
    return pixels(window + step * (rows - 1) + 1, window + step * (columns - 1) + 2, count)


def crops(images, window, step):
    """Every window of one image as a batch, and the number of rows and columns."""
    tops = range(0, images.shape[2] - window + 1, step)
    lefts = range(0, images.shape[3] - window + 1, step)
    crops = [images[:, :, y : y + window, x : x + window] for y in tops for x in lefts]
    return torch.cat(crops), (len(tops), len(lefts))


def as_map(outputs, shape):
    """[positions, classes, 1, 1] in reading order to [1, classes, rows, columns]."""
    return outputs.flatten(1).T.reshape(1, -1, *shape)


# Layers


@pytest.mark.parametrize(("name", "features", "classes"), [("fast", 19, 21), ("accurate", 22, 24)])
def test_layers_are_numbered_as_released(name, features, classes):
    architecture = ARCHITECTURES[name]
    kinds = [layer.kind for layer in architecture.layers]
    assert kinds == RELEASED[name].split()
    assert len(kinds) == classes + 1 and architecture.feature_layer == features
    assert kinds[features] == "full" and architecture.layers[classes].index == 2
    hidden = architecture.hidden[-1]
    window = architecture.window
    assert layer_shape(architecture, features, window, window, 1000) == (hidden, 1, 1)
    assert layer_shape(architecture, classes, window, window, 1000) == (1000, 1, 1)


@pytest.mark.parametrize("name", NETS)
def test_every_layer_has_the_shape_it_should(make_net, name):
    net = make_net(name)
    images = image_for(net, 4, 7, count=2)
    for number in range(len(net.architecture.layers)):
        with torch.no_grad():
            output = net.layer_output(images, number)
        assert (2, *layer_shape(net.architecture, number, *images.shape[2:], 5)) == output.shape


@pytest.mark.parametrize("name", NETS)
def test_each_layer_follows_from_the_one_before(make_net, name):
    """Kind by kind, in plain torch, from the weights."""
    net = make_net(name).double()
    architecture = net.architecture
    x = image_for(net, 4, 7)
    for number, layer in enumerate(architecture.layers):
        conv = architecture.convs[layer.index] if layer.kind in ("pad", "conv", "pool") else None
        weights = {"conv": net.conv_layers, "full": net.fc_layers}.get(layer.kind, [None] * 9)[layer.index]
        step = {
            "normalise": lambda x: (x.double() - 118.380948) / 61.896913,
            "pad": lambda x, conv=conv: F.pad(x, [conv.pad] * 4),
            "conv": lambda x, conv=conv, w=weights: F.conv2d(x, w.weight, w.bias, conv.stride),
            "full": lambda x, w=weights: F.conv2d(x, w.weight, w.bias),
            "threshold": torch.relu,
            "pool": lambda x, conv=conv: F.max_pool2d(x, conv.pool),
        }[layer.kind]
        with torch.no_grad():
            expected = step(x)
            x = net.layer_output(image_for(net, 4, 7), number)
        assert_matches(x, expected, torch.float64)
    assert_matches(net(image_for(net, 4, 7)), x, torch.float64)


@pytest.mark.parametrize("number", [-1, 20, 1000])
def test_layers_that_are_not_there(make_net, number):
    with pytest.raises(InputError, match=rf"has layers 0\.\.19, not {number}; its features are layer 17"):
        make_net("small").layer_output(pixels(60, 60), number)


# One pass against many


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_small_net_equals_cropping_every_window(make_net, stride, rows):
    net = make_net("small")
    images = image_for(net, rows, 7)
    windows, shape = crops(images, net.architecture.window, net.architecture.stride(stride))
    with torch.no_grad():
        actual, expected = net(images, stride), net(windows)
    assert actual.shape[2:] == shape
    assert_matches(actual, as_map(expected, shape), torch.float32)


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("name", NETS)
def test_classifier_stage_equals_cropping_the_last_maps(make_net, name, stride):
    """From the last maps on the padded nets are exact too: crop, pool, classify, position by position."""
    net = make_net(name).double()
    architecture = net.architecture
    with torch.no_grad():
        maps = net.features(image_for(net, 5, 7))
        side = architecture.kernel * architecture.pool
        windows, shape = crops(maps, side, 1 if stride == "fine" else architecture.pool)
        x = F.max_pool2d(windows, architecture.pool)
        for i, full in enumerate(net.fc_layers):
            x = F.conv2d(x.relu() if i else x, full.weight, full.bias)
        assert_matches(net.classifier(maps, stride), as_map(x, shape), torch.float64)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("rows", [1, 2, 3, 6])
def test_every_pool_th_position_of_fine_stride_is_coarse_stride(make_net, name, rows):
    net = make_net(name)
    images = image_for(net, rows, rows + 1, count=2)
    pool = net.architecture.pool
    with torch.no_grad():
        coarse, fine = net(images), net(images, stride="fine")
    assert fine.shape[2:] == (rows, rows + 1)
    assert_matches(fine[:, :, ::pool, ::pool], coarse, torch.float32)


@pytest.mark.parametrize("name", ["fast", "accurate"])
def test_sizes_follow_from_the_steps(make_net, name):
    net = make_net(f"thin {name}")
    architecture = net.architecture
    for height in range(architecture.window, architecture.window + 40, 7):
        images = pixels(height, architecture.window + 50)
        with torch.no_grad():
            maps = net.features(images)
        assert maps.shape[2] == output_size(architecture.feature_steps, height)
        assert net.classifier(maps).shape[2] == output_size(architecture.steps, height)
        fine = net.classifier(maps, "fine")
        assert fine.shape[2] == (height - architecture.window) // architecture.fine_stride + 1


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("name", NETS)
def test_a_list_of_maps_equals_one_by_one(make_net, name, stride):
    net = make_net(name)
    with torch.no_grad():
        sizes = [(1, 1, 1), (5, 9, 2), (3, 7, 1)]
        maps = [net.features(image_for(net, *size)) for size in sizes]
        together = net.classifier(maps, stride)
        assert isinstance(together, list)
        for one, other in zip(together, maps, strict=True):
            assert_matches(one, net.classifier(other, stride), torch.float32)


@pytest.mark.parametrize("stride", STRIDES)
def test_gradients_equal_those_of_cropping(make_net, stride):
    net = make_net("small").double()
    images = image_for(net, 4, 5)
    windows, shape = crops(images, net.architecture.window, net.architecture.stride(stride))
    dense, cropped = net(images, stride), as_map(net(windows), shape)
    wave = torch.arange(dense.numel(), dtype=torch.float64).sin().reshape(dense.shape)
    leaves = list(net.parameters())
    actual = torch.autograd.grad((dense * wave).sum(), leaves)
    assert_matches(actual, torch.autograd.grad((cropped * wave).sum(), leaves), torch.float64)


def test_both_strides_run_on_a_gpu_as_on_the_cpu(make_net, device):
    net = make_net("thin accurate")
    images = image_for(net, 4, 5, count=2)
    with torch.no_grad():
        expected = [net(images, stride) for stride in STRIDES]
        net.to(device)
        assert_matches([net(images.to(device), stride) for stride in STRIDES], expected, torch.float32)


# Inputs


@pytest.mark.parametrize("name", NETS)
def test_images_of_any_type_and_layout(make_net, name):
    net = make_net(name)
    images = image_for(net, 2, 3, count=2)
    with torch.no_grad():
        expected = net(images, "fine")
        for same in (images.float(), images.double(), images.half(), images.int()):
            assert torch.equal(net(same, "fine"), expected)
        floats = images.float()
        last = floats.contiguous(memory_format=torch.channels_last)
        assert net.normalise(floats).is_contiguous(memory_format=torch.channels_last)
        before = last.clone()
        assert_matches(net(last, "fine"), expected, torch.float32)
        assert torch.equal(last, before), "the images were changed"
        whole = torch.zeros(2, 4, images.shape[2] + 1, images.shape[3] + 2)
        whole[:, 1:, 1:, 1:-1] = floats
        assert_matches(net(whole[:, 1:, 1:, 1:-1], "fine"), expected, torch.float32)


@pytest.mark.parametrize("stride", STRIDES)
def test_no_images_give_no_scores(make_net, stride):
    net = make_net("small")
    assert net(torch.zeros(0, 3, 55, 59), stride).shape == (0, 5, *((1, 2) if stride == "coarse" else (3, 4)))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(3, 60, 60), r"images must be \[N, 3, H, W\]; these have shape \(3, 60, 60\)"),
        (torch.zeros(1, 4, 60, 60), r"images must be .* shape \(1, 4, 60, 60\)"),
        (torch.zeros(1, 1, 60, 60), r"images must be .* shape \(1, 1, 60, 60\)"),
        (torch.zeros(60, 60), r"images must be .* shape \(60, 60\)"),
        (torch.zeros(1, 3, 46, 60), "an image of 46x60 is smaller than the small net's window of 47x47"),
        (
            torch.zeros(1, 3, 60, 46),
            "an image of 60x46 is smaller than the small net's window of 47x47; enlarge",
        ),
    ],
)
def test_images_of_other_shapes_are_refused(make_net, images, words):
    net = make_net("small")
    for run in (net, net.features, lambda x: net(x, "fine"), lambda x: net.layer_output(x, 3)):
        with pytest.raises(ValueError, match=words):
            run(images)


@pytest.mark.parametrize("stride", ["medium", 1, None])
def test_other_strides_are_refused(make_net, stride):
    with pytest.raises(ValueError, match=f"stride must be 'fine', 'coarse', 4 or 12 for the small net, not {stride!r}"):
        make_net("small")(pixels(60, 60), stride)


@pytest.mark.parametrize("stride", STRIDES)
def test_maps_that_are_too_small_are_refused(make_net, stride):
    net = make_net("small")
    for shape in ((1, 128, 5, 9), (1, 128, 2, 9)):
        with pytest.raises(ValueError, match="smaller than"):
            net.classifier(torch.zeros(shape), stride)
    with pytest.raises(ValueError, match="maps have 64 channels, the weight has 128"):
        net.classifier(torch.zeros(1, 64, 9, 9), stride)


# Classes, weights, modes


@pytest.mark.parametrize("classes", [1, 2, 7, 1000])
def test_any_number_of_classes(classes):
    net = build("small", classes)
    assert net.num_classes == len(net.class_names) == classes
    with torch.no_grad():
        assert net(pixels(47, 47)).shape == (1, classes, 1, 1)
        assert net(pixels(47, 51), "fine").shape == (1, classes, 1, 2)


def test_unknown_names_and_no_classes_are_refused():
    with pytest.raises(InputError, match="no net is called 'big'; there are fast, accurate, small"):
        build("big")
    for classes in (0, -3):
        with pytest.raises(InputError, match=f"at least one class, not {classes}"):
            build("small", classes)


def test_reset_classifier_changes_the_last_layer_alone(make_net):
    net = make_net("small").half()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net.reset_classifier(["cat", "dog", "owl"])
    assert net.num_classes == 3 and net.class_names == ["cat", "dog", "owl"]
    after = net.state_dict()
    assert before.keys() == after.keys()
    for name in before:
        if not name.startswith("fc_layers.2"):
            assert torch.equal(before[name], after[name])
    assert after["fc_layers.2.weight"].shape == (3, 256, 1, 1) and after["fc_layers.2.weight"].dtype == torch.float16
    assert after["fc_layers.2.weight"].std().item() == pytest.approx(0.01, rel=0.2)
    assert not after["fc_layers.2.bias"].any()
    assert net.float()(pixels(47, 47)).shape == (1, 3, 1, 1)


def test_reset_classifier_needs_classes(make_net):
    with pytest.raises(InputError, match="at least one class"):
        make_net("small").reset_classifier([])


def test_initial_weights_follow_the_architecture():
    small = ARCHITECTURES["small"]
    net = build(replace(small, init_std=0.01), 10)
    for layer in (*net.conv_layers, *net.fc_layers):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1) and not layer.bias.any()
    net = build("small", 10)
    for layer in (*net.conv_layers, *net.fc_layers):
        he = (2 / layer.weight[0].numel()) ** 0.5
        assert layer.weight.std().item() == pytest.approx(he, rel=0.1)
        assert not layer.bias.any()


def test_dropout_in_training_only(make_net):
    net = make_net("small")
    images = pixels(60, 60)
    with torch.no_grad():
        calm = net(images, "fine")
        assert torch.equal(net(images, "fine"), calm)
        net.train()
        assert not torch.equal(net(images, "fine"), net(images, "fine"))
        net.dropout = 0.0
        assert torch.equal(net(images, "fine"), calm)


def test_dropout_keeps_the_mean_and_drops_its_fraction(make_net):
    """With identities for the later layers, what dropout did to the first is what comes out."""
    net = make_net("small", classes=256).train()
    images = image_for(net, 12, 15)
    with torch.no_grad():
        for full in net.fc_layers[1:]:
            full.weight.copy_(torch.eye(256)[..., None, None])
            full.bias.zero_()
        output = net(images, "fine")
        plain = net.eval()(images, "fine")
    alive = plain > 0
    kept = output[alive] != 0
    assert kept.float().mean().item() == pytest.approx(0.25, abs=0.02)  # two dropouts of one half each
    assert_matches(output[alive][kept], 4 * plain[alive][kept], torch.float32)


# Architectures


def test_an_architecture_survives_being_written_as_text():
    convs = (Conv(4, 3, stride=2, pad=1, pool=2), Conv(5, 3, pool=2))
    custom = Architecture("mine", convs, 2, (6,), 40, 1.5, 2.5, ((24, 28),) * 6)
    for architecture in (*ARCHITECTURES.values(), custom):
        again = Architecture.from_json(architecture.to_json())
        assert again == architecture and again.steps == architecture.steps


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "3", '{"name": "x"}', '{"convs": [1]}'])
def test_invalid_text_of_an_architecture(text):
    with pytest.raises((ValueError, KeyError, TypeError)):
        Architecture.from_json(text)


@pytest.mark.parametrize(
    "architecture",
    [
        Architecture("no last pooling", (Conv(4, 3, stride=2), Conv(5, 3)), 3, (6, 7), 20),
        Architecture("one hidden layer", (Conv(4, 3, pool=2), Conv(5, 3, pad=1, pool=2)), 2, (6,), 20),
        Architecture("four hidden layers", (Conv(4, 5, pool=4),), 2, (6, 5, 4, 3), 20),
        Architecture("no hidden layer", (Conv(4, 3, pool=2), Conv(5, 3, pool=2)), 2, (), 20),
    ],
    ids=lambda a: a.name,
)
def test_architectures_of_other_shapes(make_net, architecture):
    net = make_net(architecture, 3).double()
    images = image_for(net, 5, 6)
    with torch.no_grad():
        for stride in STRIDES:
            step = architecture.stride(stride)
            if not any(conv.pad for conv in architecture.convs):
                windows, shape = crops(images, architecture.window, step)
                assert_matches(net(images, stride), as_map(net(windows), shape), torch.float64)
        assert_matches(net.layer_output(images, len(architecture.layers) - 1), net(images), torch.float64)
        assert overfeat.classify(net.float(), images).shape == (1, 3)
    kinds = [layer.kind for layer in architecture.layers]
    assert kinds.count("full") == len(architecture.hidden) + 1


def test_nets_compile_whole(make_net):
    torch._dynamo.reset()
    net = make_net("thin accurate").double()
    images = image_for(net, 4, 5).double()
    for stride in STRIDES:
        compiled = torch.compile(OverFeat.forward, fullgraph=True, backend="aot_eager")
        actual, expected = compiled(net, images, stride), net(images, stride)
        assert_matches(actual, expected, torch.float64)
        leaves = list(net.parameters())
        actual, expected = (torch.autograd.grad(scores.square().sum(), leaves) for scores in (actual, expected))
        assert_matches(actual, expected, torch.float64)
