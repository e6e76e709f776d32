"""Items of data sets of images with boxes: dicts of an image and tensors of its boxes."""

import torch
from torch import Tensor


def empty_image(side: int) -> dict:
    """A black square image without boxes."""
    return {
        "image": torch.zeros(3, side, side, dtype=torch.uint8),
        "boxes": torch.empty(0, 4),
        "labels": torch.empty(0, dtype=torch.int64),
        "difficult": torch.empty(0, dtype=torch.bool),
    }


def mirror_image(image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """The image [3, H, W] and its boxes [n, 4], flipped horizontally."""
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    width = image.shape[2]
    return image.flip(-1), torch.stack([width - x2, y1, width - x1, y2], dim=1)


def collate_list(samples: list[dict]) -> dict:
    """A batch of images of any sizes: a list of each of the items' values, and the tensor "unreadable"."""
    batch = {name: [sample[name] for sample in samples] for name in samples[0] if name != "unreadable"}
    return {**batch, "unreadable": torch.tensor([sample["unreadable"] for sample in samples])}
