"""Error rates of a classifier."""

from torch import Tensor

from overfeat.errors import InputError


def error_rates(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Top-1 and top-5 error in percent: scores [N, classes], labels int64 [N].

    An image is wrong at k if at least k other classes score as high as its own, so ties and NaN count as errors.
    """
    if len(scores) == 0:
        raise InputError("no images, so there is no error rate; give at least one")
    own = scores.gather(1, labels[:, None])
    ahead = (~(scores < own)).sum(dim=1) - 1
    return {f"top{k}": 100.0 * (ahead >= k).double().mean().item() for k in (1, 5)}


def error_table(errors: dict[str, dict[str, float]]) -> str:
    """Error rates as aligned lines of text."""
    width = max(len(name) for name in errors)
    lines = [f"{'':{width}}  top-1 error %  top-5 error %"]
    lines += [f"{name:{width}}  {rates['top1']:13.2f}  {rates['top5']:13.2f}" for name, rates in errors.items()]
    return "\n".join(lines)
