"""Names of the implementations that the suite measures, as its rows have them."""

OURS, FAST = "overfeat", "overfeat.fast"
DIRECT = f"{FAST}-direct"  # without Winograd convolutions; on a GPU, our implicit GEMM
EAGER, COMPILED = "torch.eager", "torch.compile"
FROZEN = f"{COMPILED}-frozen"  # the weights are constants, packed when the function is compiled
ONNXRUNTIME, OPENVINO = "onnxruntime", "openvino"
LOOP, NAIVE, MONAI, FRAGMENTS = "offset-loop", "naive-windows", "monai", "fragments"
NAIVE_LAST = "naive-windows-channels-last"
PAPER_LOOP, NMS, WBF = "paper-loop", "nms", "wbf"
EXACT, NEIGHBOURS = "exact", "neighbours"  # borders of `densify`, after -
# Launches on a GPU that the library need not choose: kernels/launch.py.
VARIANTS = tuple(f"{FAST}-{name}" for name in ("direct", "descriptor", "im2col", "filter3", "filter4"))
SEPARATE, FUSED, EACH = f"{FAST}-separate", f"{FAST}-fused", f"{FAST}-each"  # pooling; -each: a call per map
GRAPH, DEFAULT_MEMORY = f"{FAST}-graph", f"{FAST}-default-memory"
IMPLEMENTATIONS = (
    OURS, FAST, *VARIANTS, SEPARATE, FUSED, EACH, GRAPH, DEFAULT_MEMORY,
    EAGER, COMPILED, FROZEN, ONNXRUNTIME, OPENVINO, LOOP, NAIVE, NAIVE_LAST, MONAI, FRAGMENTS, PAPER_LOOP, NMS, WBF,
    *(f"{name}-{borders}" for borders in (EXACT, NEIGHBOURS) for name in (OURS, FAST, ONNXRUNTIME, OPENVINO)),
)  # fmt: skip
