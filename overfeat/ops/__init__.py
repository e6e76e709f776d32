"""The library's ops: checked, differentiable, compilable, and open to faster backends.

Each op is a `torch.library.custom_op` with a fake and an autograd rule, in a file of its own; registry.py selects
the backend that runs it.
"""

from overfeat.ops import reference
from overfeat.ops.backends import eager
from overfeat.ops.class_scores import class_scores
from overfeat.ops.layers import convolution, convolution_pool, linear, normalise
from overfeat.ops.merge_boxes import BOX_AVERAGES, Merged, merge_boxes
from overfeat.ops.pooling import offset_max_pool
from overfeat.ops.registry import Backend, active_override, backend, register_backend, select_backend
from overfeat.ops.skip_classifier import skip_classifier, skip_classifier_flat, skip_classifier_scales

__all__ = [
    "BOX_AVERAGES", "Backend", "Merged", "active_override", "backend", "class_scores", "convolution",
    "convolution_pool", "linear", "merge_boxes", "normalise", "offset_max_pool", "register_backend", "select_backend",
    "skip_classifier", "skip_classifier_flat", "skip_classifier_scales",
]  # fmt: skip

register_backend(reference.BACKEND)
register_backend(eager.BACKEND)
