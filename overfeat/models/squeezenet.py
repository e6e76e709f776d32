"""SqueezeNet 1.1 (Iandola et al. 2016): a classifier of ImageNet's 1,000 classes, whose weights ship."""

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from overfeat.files import ASSETS

WINDOW = 227
MEAN = (103.939, 116.779, 123.68)  # of ImageNet's blue, green and red pixel values
CHANNEL_ORDER = "BGR"
WEIGHTS, LABELS = ASSETS / "squeezenet.safetensors", ASSETS / "imagenet.txt"

# (channels in, squeezed, of each of the two expanding convolutions) of fire2 to fire9.
FIRES = (
    (64, 16, 64), (128, 16, 64), (128, 32, 128), (256, 32, 128),
    (256, 48, 192), (384, 48, 192), (384, 64, 256), (512, 64, 256),
)  # fmt: skip


class Fire(nn.Module):
    """A 1x1 convolution to few channels, then 1x1 and 3x3 convolutions side by side; [N, C, h, w] to the same size."""

    def __init__(self, channels: int, squeezed: int, expanded: int):
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Of [N, channels, h, w], gives [N, 2 * expanded, h, w]."""
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], dim=1)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1: logits [N, num_classes] of windows [N, 3, 227, 227], blue, green and red minus `MEAN`.

    The first convolution has no padding and the 3/2 pools round down, as in the net that the shipped weights are of;
    the weights are random here, see `pretrained`. `fire2` to `fire9` are the paper's names.
    """

    def __init__(self, num_classes: int = 1000):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, stride=2)
        self.pool1 = nn.MaxPool2d(3, stride=2)
        self.fire2, self.fire3 = Fire(*FIRES[0]), Fire(*FIRES[1])
        self.pool3 = nn.MaxPool2d(3, stride=2)
        self.fire4, self.fire5 = Fire(*FIRES[2]), Fire(*FIRES[3])
        self.pool5 = nn.MaxPool2d(3, stride=2)
        self.fire6, self.fire7, self.fire8, self.fire9 = (Fire(*widths) for widths in FIRES[4:])
        self.conv10 = nn.Conv2d(512, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, num_classes] of windows [N, 3, h, w]."""
        x = self.pool1(F.relu(self.conv1(x)))
        x = self.pool3(self.fire3(self.fire2(x)))
        x = self.pool5(self.fire5(self.fire4(x)))
        x = self.fire9(self.fire8(self.fire7(self.fire6(x))))
        return F.relu(self.conv10(x)).mean(dim=(2, 3))


def pretrained() -> SqueezeNet:
    """SqueezeNet 1.1 with the shipped ImageNet weights, float32, in evaluation mode. Sources: assets/SOURCES.md."""
    with torch.device("meta"):
        net = SqueezeNet()
    net = net.float().to_empty(device="cpu").eval()
    net.load_state_dict(load_file(WEIGHTS))  # copies float16 into float32
    return net


def imagenet_classes() -> list[str]:
    """Short English names of ImageNet's 1,000 classes, in the order of `SqueezeNet`'s outputs."""
    return LABELS.read_text(encoding="utf-8").splitlines()
