"""Random detections and objects, for tests."""

import torch

from overfeat.metrics.average_precision import Boxes


def random_scenes(seed, *, images=12, classes=3, zoom=1, difficult=False):
    """Detections and objects of crowded images, with duplicates, ties, wrong classes and misses."""
    rng = torch.Generator().manual_seed(seed)
    detections, truths = [], []
    for _ in range(images):
        count = int(torch.randint(0, 9, (1,), generator=rng))
        corner = torch.randint(0, 60, (count, 2), generator=rng)
        side = torch.randint(8, 50, (count, 2), generator=rng)
        true = torch.cat([corner, corner + side], dim=1).double()
        labels = torch.randint(0, classes, (count,), generator=rng)
        flags = torch.rand(count, generator=rng) < 0.2 if difficult else None
        truths.append(Boxes(true * zoom, labels, difficult=flags))
        shifted = torch.cat([true, true, torch.randint(0, 60, (3, 4), generator=rng).double()])
        shifted = shifted + torch.randint(-9, 10, shifted.shape, generator=rng)
        shifted = torch.cat([shifted[:, :2], shifted[:, 2:].maximum(shifted[:, :2] + 1)], dim=1)
        others = torch.cat([labels, labels.new_zeros(3)])
        changed = torch.rand(len(others), generator=rng) < 0.1
        others[changed] = torch.randint(0, classes, (int(changed.sum()),), generator=rng)
        scores = torch.randint(1, 30, (len(shifted),), generator=rng) / 30
        detections.append(Boxes(shifted * zoom, torch.cat([labels, others]), scores))
    return detections, truths
