"""GEMMs by large float32 matrices on a CPU, compiled by numba: every weight is read from memory once, in order.

A job is an array of int64, which the constants below index; any number of threads run it at once, each taking the next
group of panels. Matrices are packed in panels of `COLUMNS` outputs: [matrices, panels, C, COLUMNS].
"""

from overfeat.ops.backends import simd
from overfeat.ops.backends.numba_compile import compiled_for_c
from overfeat.ops.backends.simd import copy, load, take

# Where a job's numbers are: counts, addresses, and distances in bytes.
SLOT, NEXT = 0, 8  # threads that have come, and the next item: in a cache line of their own
(
    ITEMS,  # groups of panels: of every matrix, or of their sum
    SCRATCH, SCRATCH_BYTES,  # memory of all threads, and of one
    ROWS_AT, ROWS_MATRIX, PITCH, WEIGHT, WEIGHT_MATRIX, OUT, OUT_MATRIX,  # pitch: between rows of one matrix
    START,  # what the sums begin with, as long as the panels
    MATRICES, SUMMED, PANELS, BLOCKS, BLOCK_ROWS, COUNT,  # summed: 1 for the sum of all products; count: of rows
    IN_CHANNELS, CHANNELS, RELU,
) = range(128, 128 + 8 * 20, 8)  # fmt: skip
JOB = 36  # numbers of a job

REGISTERS = simd.registers() or simd.NEON
ROWS, COLUMNS = REGISTERS.rows, REGISTERS.columns
FEW_ROWS = ROWS // 2 + 1  # of a block, where fewer are then left empty
GROUP = 8  # panels that a thread takes at a time

_kernel = simd.streaming_kernel(REGISTERS)
_few_kernel = simd.streaming_kernel(REGISTERS._replace(rows=FEW_ROWS))


@compiled_for_c
def streamed(job):
    """Run a job, together with all threads that call it."""
    sums = load(job + SCRATCH) + take(job + SLOT) * load(job + SCRATCH_BYTES)
    panels, blocks, channels = load(job + PANELS), load(job + BLOCKS), load(job + IN_CHANNELS)
    size, step, groups = load(job + BLOCK_ROWS), 4 * load(job + CHANNELS), (panels + GROUP - 1) // GROUP
    item, pitch = take(job + NEXT), load(job + PITCH)
    while item < load(job + ITEMS):
        matrix, first = item // groups, item % groups * GROUP
        last, end = min(first + GROUP, panels), load(job + MATRICES) if load(job + SUMMED) else matrix + 1
        for m in range(matrix, end):
            relu = load(job + RELU) * (m == end - 1)
            for panel in range(first, last):
                weight = load(job + WEIGHT) + m * load(job + WEIGHT_MATRIX) + 4 * panel * channels * COLUMNS
                for block in range(blocks):
                    rows = load(job + ROWS_AT) + m * load(job + ROWS_MATRIX) + block * size * pitch
                    total = sums + 4 * ((panel - first) * blocks + block) * size * COLUMNS
                    start, distance = load(job + START) + 4 * panel * COLUMNS, 0
                    if m > matrix:
                        start, distance = total, 4 * COLUMNS
                    if size == ROWS:
                        _kernel(rows, pitch, weight, channels, start, distance, total, relu)
                    else:
                        _few_kernel(rows, pitch, weight, channels, start, distance, total, relu)
        for panel in range(first, last):
            width = 4 * min(COLUMNS, load(job + CHANNELS) - panel * COLUMNS)
            out = load(job + OUT) + matrix * load(job + OUT_MATRIX) + 4 * panel * COLUMNS
            for row in range(load(job + COUNT)):
                copy(out + row * step, sums + 4 * ((panel - first) * blocks * size + row) * COLUMNS, width)
        item = take(job + NEXT)
