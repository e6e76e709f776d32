"""Resizing image tensors: bilinear and antialiased, in training, voting and dense evaluation alike."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from overfeat.data.limits import MAX_RESIZED_PIXELS
from overfeat.errors import InputError


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """[N, C, H, W] to [N, C, *size]; uint8 stays uint8. Raises InputError for enormous sizes."""
    if size[0] * size[1] > MAX_RESIZED_PIXELS:
        height, width = images.shape[2:]
        raise InputError(f"an image of {height}x{width} would become {size[0]}x{size[1]} px; crop it or choose scales")
    if tuple(images.shape[2:]) == tuple(size):
        return images
    if images.dtype in (torch.float16, torch.bfloat16):
        return resize(images.float(), size)
    # torch has no kernel for bytes on other devices, and one that fails where a single pixel is left.
    if images.dtype == torch.uint8 and (images.device.type != "cpu" or tuple(size) == (1, 1)):
        return resize(images.float(), size).round_().clamp_(0, 255).to(torch.uint8)
    return F.interpolate(images, size=tuple(size), mode="bilinear", antialias=True, align_corners=False)


def pad_color(images: Tensor, padding: tuple[int, int, int, int], color: Sequence[float]) -> Tensor:
    """Images [..., C, H, W] with so many pixels (left, right, top, bottom) of a colour around them.

    color: in 0..255, one number for each channel or for all; rounded for uint8 images.
    """
    if not any(padding):
        return images
    (left, right, top, bottom), (height, width) = padding, images.shape[-2:]
    values = torch.tensor(color, dtype=torch.float64)
    if not images.is_floating_point():
        values = values.round().clamp(0, 255)
    size = (*images.shape[:-2], top + height + bottom, left + width + right)
    padded = values.to(images).view(-1, 1, 1).expand(size).contiguous()
    padded[..., top : top + height, left : left + width] = images
    return padded


def resize_short_side(images: Tensor, short_side: int) -> Tensor:
    """Resize [N, C, H, W] to a shorter side of `short_side` pixels, keeping the aspect ratio."""
    height, width = images.shape[2:]
    scale = short_side / min(height, width)
    return resize(images, (max(short_side, round(height * scale)), max(short_side, round(width * scale))))


def resize_crop(image: Tensor, box: Sequence[float], size: tuple[int, int]) -> Tensor:
    """Crop a box (x1, y1, x2, y2), rounded to whole pixels, from an image [C, H, W]; resize to [C, *size]."""
    height, width = image.shape[1:]
    x, y = (min(max(0, round(low)), length - 1) for low, length in zip(box, (width, height), strict=False))
    right, bottom = max(x + 1, round(box[2])), max(y + 1, round(box[3]))
    return resize(image[None, :, y:bottom, x:right], size)[0]
