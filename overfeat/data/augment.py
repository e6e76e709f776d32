"""Augmentation of images with boxes: mirror images, quarter turns and colours."""

import numpy as np
import torch
from torch import Tensor

MIN_BOXES = 20  # of a class, from which their aspect ratios show whether it has an upright direction
MAX_LOG_ASPECT = 0.15  # of width to height on average, of classes without one
GREY = (0.299, 0.587, 0.114)  # ITU-R 601


def mirror_image(image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """The image [3, H, W] and its boxes [n, 4], flipped horizontally."""
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    width = image.shape[2]
    return image.flip(-1), torch.stack([width - x2, y1, width - x1, y2], dim=1)


def quarter_turn(image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """The image [3, H, W] and its boxes [n, 4], turned counterclockwise by 90 degrees."""
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    width = image.shape[2]
    return image.rot90(1, (1, 2)), torch.stack([y1, width - x2, y2, width - x1], dim=1)


def jitter_color(image: Tensor, rng: np.random.Generator, strength: float) -> Tensor:
    """An image uint8 [3, H, W] with random brightness, contrast, saturation and colour cast.

    strength: Largest relative change of each but the cast, whose gains change by at most half of it.
    """
    brightness, contrast, saturation, *cast = 1 + strength * rng.uniform(-1, 1, 6) * [1, 1, 1, 0.5, 0.5, 0.5]
    pixels = image.float()
    weights = pixels.new_tensor(GREY).view(3, 1, 1)
    pixels = pixels.lerp((pixels * weights).sum(dim=0, keepdim=True), 1 - saturation)
    mean = pixels.mean()
    gains = brightness * pixels.new_tensor(cast).view(3, 1, 1)
    return ((pixels - mean) * contrast + mean).mul_(gains).round_().clamp_(0, 255).to(torch.uint8)


def allows_quarter_turns(boxes: np.ndarray, labels: np.ndarray) -> bool:
    """Whether the boxes [n, 4] suggest objects without an upright direction, for which quarter turns are as likely.

    That is so if the boxes of every class with MIN_BOXES or more are as often wide as high: the mean logarithm of width
    to height is within MAX_LOG_ASPECT of 0. False if no class has as many.
    """
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-6)
    aspect = np.log(sides[:, 0] / sides[:, 1])
    counts = np.bincount(labels)
    known = [aspect[labels == label] for label in np.flatnonzero(counts >= MIN_BOXES)]
    return bool(known) and all(abs(values.mean()) <= MAX_LOG_ASPECT for values in known)
