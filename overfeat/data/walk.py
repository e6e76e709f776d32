"""Work on every annotated image, with a journal."""

import sys
from collections.abc import Callable, Sequence

from torch import Tensor
from tqdm import tqdm

from overfeat.data.annotated import Annotated, Sample
from overfeat.data.images import MAX_PIXELS
from overfeat.errors import InputError, with_path
from overfeat.files import Journal


def each_image(
    data: Annotated,
    work: Callable[[Tensor], list],
    max_pixels: int = MAX_PIXELS,
    limit: int | None = None,
    journal: Journal | None = None,
) -> tuple[list[tuple[int, Sample, list]], list[str]]:
    """(place in data, sample, what `work` gives of the image as JSON knows it) of the images that can be used, and what
    is wrong with the others.

    limit, journal: see `evaluate_detection`. Raises InputError where no image can be used, or none with an object.
    """
    results, unreadable, done = [], [], {} if journal is None else journal.done
    chosen = subsample(list(enumerate(data.samples)), limit)
    if not any(len(sample.labels) for _, sample in chosen):
        raise InputError(f"no objects in the {len(chosen)} images, so there is nothing to find; give others")
    for place, sample in tqdm(chosen, unit="image", file=sys.stderr, disable=None):
        key = f"{place} {sample.path.name}"
        if key not in done:
            try:
                result = work(sample.read(max_pixels))
            except InputError as error:
                unreadable.append(with_path(sample.path, error))
                continue
            if journal is not None:
                journal.add(key, result)
            done[key] = result
        results.append((place, sample, done[key]))
    if not any(len(sample.labels) for _, sample, _ in results):
        first = (unreadable or ["no images"])[0]
        raise InputError(f"none of the {len(data)} images with objects can be used; the first: {first}")
    return results, unreadable


def subsample(samples: Sequence, limit: int | None) -> Sequence:
    """`limit` of the samples, evenly spaced; all where there are no more, or the limit is None."""
    if not limit or limit >= len(samples):
        return samples
    return [samples[i * len(samples) // limit] for i in range(limit)]
