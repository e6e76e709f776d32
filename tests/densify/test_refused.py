"""Modules and arguments that are refused, each with its message."""

import re

import pytest
import torch
import torch.nn.functional as F
from cropping import Apply
from torch import nn

import overfeat
from overfeat.errors import ArgumentError, InputError


def head(channels=4):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


def net(function=None, *more):
    """A net for windows of 9 pixels with a function of its maps in the middle."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), Apply(function) if function else nn.ReLU(), head(), *more)


def gives(function):
    return net(None, Apply(function))


def exported(batch, window=9):
    shapes = ({0: torch.export.Dim("n")},) if batch is None else None
    images = torch.zeros(batch or 2, 3, window, window)
    return torch.export.export(net().eval(), (images,), dynamic_shapes=shapes, strict=False)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x, y):
        return self.conv(x + y).mean((2, 3))


BATCH = "output 0 of a window depends on the others in its batch"
RANDOM = "draws random numbers"
VALUES = "depends on the values of its input"
EXPORT = "torch.export cannot follow the module: .*; its forward must use tensors only"
SHAPES = (
    re.escape("must give scores [N, classes], or scores and boxes [N, 4], [N, 4 * classes] or [N, classes, 4]; ")
    + "it gives "
)

MODULES = {
    "a window that is too small": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 11), head()),
        r"window and channels must be ones that the module runs on; on windows \[N, 3, 9, 9\]: .*Kernel size",
    ),
    "a window that does not fit the classifier": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(100, 5)),
        r"window and channels must be .* \[N, 3, 9, 9\]: .*\(2x196 and 100x5\)",
    ),
    "an error of its own": (lambda: net(lambda x: [][1]), "window and channels must be.*: list index out of range"),
    "two inputs": (TwoInputs, "window and channels must be ones.* missing 1 required positional argument: 'y'"),
    "maps": (lambda: nn.Conv2d(3, 4, 3), SHAPES + r"\[N, 4, 7, 7\]"),
    "one number for the batch": (lambda: gives(lambda x: x.mean()), SHAPES + r"\[\]"),
    "the best class": (lambda: gives(lambda x: x.argmax(1)), SHAPES + r"\[N\] torch.int64"),
    "decisions": (lambda: gives(lambda x: x > 0), SHAPES + r"\[N, 5\] torch.bool"),
    "no classes": (lambda: gives(lambda x: x[:, :0]), SHAPES + r"\[N, 0\]"),
    "None": (lambda: gives(lambda x: (x, None)), SHAPES + r"\[N, 5\] and NoneType"),
    "a number": (lambda: gives(lambda x: (x, 3)), SHAPES + r"\[N, 5\] and int"),
    "nothing": (lambda: gives(lambda x: ()), SHAPES + "nothing"),
    "two outputs, neither boxes": (lambda: gives(lambda x: (x, x[:, :3])), SHAPES + r"\[N, 5\] and \[N, 3\]"),
    "which are scores?": (
        lambda: gives(lambda x: (x, x[:, :4], x[:, :3])),
        "class_names must be given: which of the 3 outputs are scores, 5 or 3 classes?",
    ),
    "scores of 16 classes, or boxes of 4?": (
        lambda: gives(lambda x: (x[:, :4], x[:, :1].expand(-1, 16))),
        "class_names must be given: which of the 2 outputs are scores, 4 or 16 classes?",
    ),
    "the batch's mean": (lambda: net(lambda x: x - x.mean(0)), BATCH),
    "the batch's maximum": (lambda: net(lambda x: x / x.abs().max()), BATCH),
    "statistics of the batch": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), head()),
        BATCH,
    ),
    "the first window": (lambda: net(lambda x: x[:1].expand_as(x)), BATCH),
    "all windows so far": (lambda: net(lambda x: x.cumsum(0)), BATCH),
    "reversed windows": (lambda: net(lambda x: x.flip(0)), BATCH),
    "softmax over windows": (lambda: net(None, nn.Softmax(0)), BATCH),
    "the number of windows": (lambda: net(lambda x: x * x.shape[0]), BATCH),
    "dropout": (lambda: net(lambda x: F.dropout(x, training=True)), "F.dropout needs training=self.training"),
    "random slopes": (lambda: net(lambda x: F.rrelu(x, training=True)), RANDOM),
    "random attention": (
        lambda: net(lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)), f"attention at 1 {RANDOM}"
    ),
    "noise": (lambda: net(lambda x: x + torch.randn_like(x)), f"randn_like at 1 {RANDOM}"),
    "a number read": (lambda: net(lambda x: x * x.max().item()), VALUES),
    "a mask": (lambda: net(lambda x: x + x[x > 0].sum()), VALUES),
    "a condition": (lambda: net(lambda x: x if x.sum() > 0 else -x), EXPORT),
    "NumPy": (lambda: net(lambda x: torch.from_numpy(x.numpy() * 2)), EXPORT),
    "a batch of two": (lambda: gives(lambda x: x.view(2, 5)), EXPORT),
    "a loop over windows": (lambda: net(lambda x: torch.stack([y for y in x])), EXPORT),
    "probabilities": (lambda: net(None, nn.Softmax(1)), "logits must be False: .* sum is 1"),
    "a program for one batch": (lambda: exported(2), "module must be exported for any batch"),
    "a program for another window": (lambda: exported(None, 11), r"window must be \(11, 11\), for which .*, not 9"),
    "a script": (lambda: torch.jit.trace(net().eval(), torch.zeros(2, 3, 9, 9)), "must be the module that torch.jit"),
    "sigmoids": (lambda: net(None, nn.Sigmoid(), nn.Unflatten(1, (5, 1, 1))), "logits must be False: .* sigmoid"),
    "weights that are not loaded": (lambda: net().to("meta"), "some are on the meta device"),
    "a function": (lambda: torch.relu, "module must be a torch.nn.Module or an ExportedProgram, not <"),
    "a class": (lambda: nn.ReLU, r"module must be .*, not the class ReLU; give an instance, such as ReLU\(\)"),
    "a state dict": (lambda: net().state_dict(), "not a state dict; load it into the module"),
    "a name": (lambda: "resnet18", "module must be .*, not 'resnet18'"),
    "no convolution": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(243, 2)), "channels must be given"),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_modules(name):
    make, message = MODULES[name]
    with pytest.raises(InputError, match=message) as caught:
        overfeat.densify(make(), 9)
    assert "\n" not in str(caught.value)


ARGUMENTS = [
    ("window", {"window": 0}, "not 0"),
    ("window", {"window": -3}, "not -3"),
    ("window", {"window": 9.5}, "not 9.5"),
    ("window", {"window": "9"}, "not '9'"),
    ("window", {"window": True}, "not True"),
    ("window", {"window": (9, 9, 9)}, r"not \(9, 9, 9\)"),
    ("class_names", {"class_names": ["a", "b"]}, "must be 5, one for each score of the module, not 2"),
    ("class_names", {"class_names": []}, "must be 5"),
    ("class_names", {"class_names": "abcde"}, "not 'abcde'"),
    ("mean", {"mean": [1, 2]}, "must be one number or one for each of the module's 3 channels, not 2"),
    ("mean", {"mean": float("nan")}, "must be finite, not nan"),
    ("mean", {"mean": "127"}, "not '127'"),
    ("std", {"std": 0}, "must be above 0, not 0"),
    ("std", {"std": (58, 57, -1)}, "must be above 0"),
    ("std", {"std": (0.229, 0.224, 0.225)}, "multiply mean and std by 255"),
    ("mean", {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}, "255"),
    ("channel_order", {"channel_order": "GBR"}, "must be one of RGB, BGR, not 'GBR'"),
    ("channels", {"channels": 0}, "not 0"),
    ("borders", {"borders": "zeros"}, "must be one of exact, neighbours, refuse, not 'zeros'"),
    ("box_coder", {"box_coder": "xywh"}, "must be one of xyxy, cxcywh, not 'xywh'"),
    ("logits", {"logits": False}, "must be True: there are scores from"),
]


@pytest.mark.parametrize(("argument", "options", "message"), ARGUMENTS, ids=str)
def test_arguments(argument, options, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        overfeat.densify(net(), **{"window": 9, **options})
    assert caught.value.argument == argument


IMAGES = {
    "too small": (torch.zeros(1, 3, 8, 20), "coarse", "8x20 is smaller than the .* window of 9x9"),
    "other channels": (torch.zeros(1, 4, 20, 20), "coarse", "shape"),
    "no axis of channels": (torch.zeros(20, 20), "coarse", "shape"),
    "whole numbers": (torch.zeros(1, 3, 20, 20, dtype=torch.int64), "coarse", "int64"),
    "stride 0": (torch.zeros(1, 3, 20, 20), 0, "stride must be .*not 0"),
    "stride of text": (torch.zeros(1, 3, 20, 20), "medium", "stride must be .*not 'medium'"),
    "half a pixel": (torch.zeros(1, 3, 20, 20), 1.5, "stride must be .*not 1.5"),
}


@pytest.fixture(scope="module")
def converted():
    return overfeat.densify(net(), 9)


@pytest.mark.parametrize("name", IMAGES)
def test_images_and_strides(converted, name):
    images, stride, message = IMAGES[name]
    with pytest.raises(ValueError, match=message):
        converted(images, stride)


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_wrapped_modules(converted, wrap):
    images = torch.rand(1, 3, 12, 14)
    assert torch.equal(overfeat.densify(wrap(net()), 9)(images), converted(images))


def test_unknown_layer(converted):
    with pytest.raises(InputError, match=r"no submodule or node 'features'; its submodules: 0, 1, 2\.0, 2\.1, 2\.2"):
        converted.layer_output(torch.zeros(1, 3, 20, 20), "features")


def test_a_wrong_conversion_is_reported(monkeypatch):
    from overfeat.densify import rules

    original = rules.RULES["conv2d"]
    monkeypatch.setitem(rules.RULES, "conv2d", lambda *args: original(*args).map(lambda maps: 1.1 * maps))
    with pytest.raises(InputError, match=r"differs from the module's by .*; please report this module"):
        overfeat.densify(net(), 9)
    assert overfeat.densify(net(), 9, check=False)


def test_torch_prints_nothing_of_its_own(capfd):
    with pytest.raises(InputError, match="cannot follow the module"):
        overfeat.densify(net(lambda x: x if x.sum() > 0 else -x), 9)
    assert capfd.readouterr() == ("", "")
