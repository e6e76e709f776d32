"""An implementation of your own for one of the library's operators, here that of the class scores of an image.

    python examples/register_backend.py

A backend is a name, its functions by operator, and `supports`, which says why a call is not for it. It takes precedence
over those that were registered before; what it does not have or support runs on the next one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

import overfeat
from overfeat import ops
from overfeat.files import ASSETS

calls: list[int] = []  # windows of each


def class_scores(logits: Tensor, counts: Sequence[int]) -> Tensor:
    """The largest softmax of each class over the windows of each image: [windows, classes] -> [images, classes].

    The exponential of the largest logarithm, in place of the largest of all exponentials. counts: of the windows.
    """
    calls.append(len(logits))
    logarithms = logits.float().log_softmax(dim=1)
    return torch.stack([of_image.amax(dim=0) for of_image in logarithms.split(list(counts))]).exp()


def supports(op: str, device: torch.device, dtype: torch.dtype, num_classes: int | None = None) -> str | None:
    """Why the backend does not run an operator on such tensors; None: it does."""
    return None if device.type == "cpu" else "for CPUs only"


def main() -> None:
    """Compare the backend with the reference, and classify an image on it."""
    ops.register_backend(ops.Backend("mine", {"class_scores": class_scores}, supports))

    logits, counts = torch.randn(500, 10), [300, 200]  # of two images
    with overfeat.backend("reference"):  # every operator the slow, obvious way
        expected = ops.class_scores(logits, counts)
    difference = (ops.class_scores(logits, counts) - expected).abs().max()
    print(f"largest difference from the reference: {difference:.1g}")

    net, image = overfeat.load(ASSETS / "small.safetensors"), ASSETS / "scenes" / "00001.png"  # a net of digits
    calls.clear()
    scores = overfeat.classify(net, image)[0]
    label = int(scores.argmax())
    print(f"{image.name}: {net.class_names[label]}, {scores[label]:.2f}, of {sum(calls)} windows")
    with overfeat.backend("torch"):  # eager PyTorch
        difference = (overfeat.classify(net, image)[0] - scores).abs().max()
    print(f"largest difference from eager PyTorch: {difference:.1g}")


if __name__ == "__main__":
    main()
