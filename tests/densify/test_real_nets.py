"""Published nets with their own weights against cropped windows."""

import pytest
import torch
from cropping import Apply, assert_like_crops, numbers
from real_nets import NETS, published
from torch import nn

import overfeat
from overfeat.models import squeezenet


@pytest.mark.parametrize("name", NETS)
def test_published_nets(name):
    module, window = published(name)
    if name == "O-Net":  # no net of the library has landmarks
        module = Apply(lambda s, x: s.net(x)[::2], net=module)
    net = overfeat.densify(module, window, check=False)
    images = numbers(1, net.in_channels, window + 9, window + 13, seed=1)
    assert_like_crops(net, module, images, (window, window), (1, 2, 3, 8))


def test_squeezenet():
    module = squeezenet.pretrained().double()
    net = overfeat.densify(module, squeezenet.WINDOW, check=False)
    images = 60 * numbers(1, 3, squeezenet.WINDOW + 33, squeezenet.WINDOW + 50)
    assert_like_crops(net, module, images, (squeezenet.WINDOW, squeezenet.WINDOW), (16, 32, 50))


TORCHVISION = [
    "alexnet",
    "densenet121",
    "googlenet",
    "mobilenet_v2",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "vgg11_bn",
]
TIMM = ["convnext_atto", "efficientnet_b0", "mobilenetv3_small_050", "resnet18", "vit_tiny_patch16_224"]


def check_random_weights(module: nn.Module) -> None:
    module = module.double().eval()
    net = overfeat.densify(module, 224, check=False)
    assert_like_crops(net, module, numbers(1, 3, 224 + 32, 224 + 48), (224, 224), (32, 48))


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name):
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    torch.manual_seed(0)
    check_random_weights(models.get_model(name, weights=None))


@pytest.mark.parametrize("name", TIMM)
def test_timm(name):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    torch.manual_seed(0)
    check_random_weights(timm.create_model(name, pretrained=False))
