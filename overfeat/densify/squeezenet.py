"""`squeezenet`: the ImageNet net that ships, converted."""

from overfeat.densify.convert import densify
from overfeat.densify.net import DensifiedNet
from overfeat.models.squeezenet import CHANNEL_ORDER, MEAN, WINDOW, imagenet_classes, pretrained

STRIDE = 32  # pixels between windows; at 16 a photograph takes 2.7 times as long, at 8 10 times


def squeezenet() -> DensifiedNet:
    """SqueezeNet 1.1 with ImageNet weights: the scores of 1,000 classes in windows of 227 x 227 pixels, exactly.

    `with_borders("neighbours")` is many times faster, and its scores are others.
    """
    net = densify(
        pretrained(), WINDOW, class_names=imagenet_classes(), mean=MEAN, channel_order=CHANNEL_ORDER, check=False
    )
    net.default_stride, net.scale_factors = STRIDE, None
    return net
