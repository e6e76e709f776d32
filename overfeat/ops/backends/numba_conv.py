"""Convolutions of float32 maps on a CPU, compiled by numba: bias, ReLU and pooling come before an output is stored.

Direct sums, and Winograd's minimal filtering (see winograd.py) in blocks of tiles whose transforms stay in the cache.
A job is an array of int64, which the constants below index; any number of threads run it at once, each taking the next
block of outputs. Maps and outputs are channels-last. Weights are packed in panels of `COLUMNS` output channels:
[panels, taps, C, COLUMNS].
"""

from overfeat import toom_cook
from overfeat.ops.backends import simd
from overfeat.ops.backends.numba_compile import compiled, compiled_for_c
from overfeat.ops.backends.simd import clear, copy, load, store, take
from overfeat.ops.backends.winograd import OUTPUT_TILE, POINTS

# Where a job's numbers are: counts, addresses, and distances in bytes.
SLOT, NEXT = 0, 8  # threads that have come, and the next block: in a cache line of their own
(
    BLOCKS,
    SCRATCH, SCRATCH_BYTES,  # memory of all threads, and of one
    MAPS, MAPS_IMAGE, MAPS_ROW, MAPS_COLUMN, MAPS_HEIGHT, MAPS_WIDTH,  # distances between rows of the maps
    HEIGHT, WIDTH, CHANNELS, POSITIONS,  # of the outputs before pooling; of all images together
    STRIDE, POOL, RELU, OUT, BIAS, PANELS,  # the bias is as long as the panels
    TAPS, NUM_TAPS, RUN,  # distances of an output's runs of floats in the maps, and their length
    WEIGHT, TRANSFORMED, ZEROS,  # transformed: [t * t, panels, C, COLUMNS]; zeros: as many as output channels
    PER_BLOCK,  # outputs of a block; tiles in minimal filtering
    KERNEL, DILATION, IN_CHANNELS, DOWN, ACROSS, TILES,  # in minimal filtering; tiles down and across of one phase
) = range(128, 128 + 8 * 32, 8)  # fmt: skip
JOB = 48  # numbers of a job

REGISTERS = simd.registers() or simd.NEON
ROWS, COLUMNS, LANES = REGISTERS.rows, REGISTERS.columns, REGISTERS.lanes
BLOCK_BYTES = 4 * ROWS * COLUMNS  # at the start of a thread's memory, for a block that is cut
KERNELS = (2, 3)  # that minimal filtering is compiled for


def axis_transforms(k):
    """Transforms of the outputs, the weights and the maps, for one axis: see toom_cook.transforms."""
    return toom_cook.transforms(OUTPUT_TILE, k, tuple(POINTS[: OUTPUT_TILE + k - 2]))


_microkernel = simd.microkernel(REGISTERS)
_maximum = simd.maximum(LANES)
_input_2, _input_3 = (simd.input_transform(LANES, axis_transforms(k)[2].tolist()) for k in KERNELS)
_output_2, _output_3 = (simd.output_transform(LANES, axis_transforms(k)[0].tolist()) for k in KERNELS)


@compiled
def _matmul(job, positions, count, out, step, whole, block):
    """Outputs at `count` positions, to out, `step` apart: whole panels where `whole`, or their channels.

    positions: distances in the maps, as many as whole blocks of rows need. block: memory of one block.
    """
    for panel in range(load(job + PANELS)):
        width = COLUMNS if whole else min(COLUMNS, load(job + CHANNELS) - panel * COLUMNS)
        weight = load(job + WEIGHT) + 4 * panel * COLUMNS * load(job + NUM_TAPS) * load(job + RUN)
        bias = load(job + BIAS) + 4 * panel * COLUMNS
        for first in range(0, count, ROWS):
            rows = min(ROWS, count - first)
            target = out + first * step + 4 * panel * COLUMNS
            direct = rows == ROWS and width == COLUMNS
            _microkernel(
                load(job + MAPS), positions + 8 * first, load(job + TAPS), load(job + NUM_TAPS), load(job + RUN),
                weight, bias, target if direct else block, step if direct else 4 * COLUMNS, load(job + RELU),
            )  # fmt: skip
            if not direct:
                for row in range(rows):
                    copy(target + row * step, block + 4 * row * COLUMNS, 4 * width)


@compiled
def _fill(positions, count):
    """Repeat the last of `count` positions up to a whole block of rows."""
    for i in range(count, (count + ROWS - 1) // ROWS * ROWS):
        store(positions + 8 * i, load(positions + 8 * (count - 1)))


@compiled
def _pool(values, step, across, size, length):
    """The maxima of size x size values of `length` floats, into the first; a row of values is `across` long."""
    for i in range(size * size):
        if i:
            source = values + (i // size * across + i % size) * step
            for at in range(0, 4 * length, 4 * LANES):
                _maximum(values + at, source + at)


@compiled
def _direct_block(job, block, scratch):
    """Consecutive outputs, row by row and image by image."""
    width, area = load(job + WIDTH), load(job + HEIGHT) * load(job + WIDTH)
    first = block * load(job + PER_BLOCK)
    count = min(load(job + PER_BLOCK), load(job + POSITIONS) - first)
    positions = scratch + BLOCK_BYTES
    image, row, column = first // area, first % area // width, first % width
    for i in range(count):
        at = image * load(job + MAPS_IMAGE) + load(job + STRIDE) * (
            row * load(job + MAPS_ROW) + column * load(job + MAPS_COLUMN)
        )
        store(positions + 8 * i, at)
        column += 1
        if column == width:
            column, row = 0, row + 1
            if row == load(job + HEIGHT):
                row, image = 0, image + 1
    _fill(positions, count)
    step = 4 * load(job + CHANNELS)
    _matmul(job, positions, count, load(job + OUT) + first * step, step, False, scratch)


@compiled
def _pooled_block(job, block, scratch):
    """Consecutive outputs of the pooling: a part of a row."""
    size, per_block = load(job + POOL), load(job + PER_BLOCK)
    height, width = load(job + HEIGHT) // size, load(job + WIDTH) // size
    parts = (width + per_block - 1) // per_block
    line, first = block // parts, block % parts * per_block
    across = min(per_block, width - first)
    image, row = line // height, line % height
    positions = scratch + BLOCK_BYTES
    start = image * load(job + MAPS_IMAGE) + load(job + STRIDE) * size * (
        row * load(job + MAPS_ROW) + first * load(job + MAPS_COLUMN)
    )
    count = across * size * size
    for i in range(count):
        y, x = i // (across * size), i % (across * size)
        step = y * load(job + MAPS_ROW) + x * load(job + MAPS_COLUMN)
        store(positions + 8 * i, start + load(job + STRIDE) * step)
    _fill(positions, count)
    values, length = positions + 8 * (size * size * per_block + ROWS), load(job + PANELS) * COLUMNS
    _matmul(job, positions, count, values, 4 * length, True, scratch)
    out = load(job + OUT) + 4 * load(job + CHANNELS) * (line * width + first)
    for i in range(across):
        _pool(values + 4 * length * size * i, 4 * length, across * size, size, length)
        copy(out + 4 * load(job + CHANNELS) * i, values + 4 * length * size * i, 4 * load(job + CHANNELS))


@compiled_for_c
def direct(job):
    """Run a job of a direct convolution, together with all threads that call it."""
    scratch = load(job + SCRATCH) + take(job + SLOT) * load(job + SCRATCH_BYTES)
    block = take(job + NEXT)
    while block < load(job + BLOCKS):
        if load(job + POOL) == 1:
            _direct_block(job, block, scratch)
        else:
            _pooled_block(job, block, scratch)
        block = take(job + NEXT)


@compiled
def _tile(job, number):
    """Image, and first row and column of the outputs of a tile, by image, row phase, row, column phase and column."""
    dilation, down, across = load(job + DILATION), load(job + DOWN), load(job + ACROSS)
    number, column = number // across, number % across
    number, phase_x = number // dilation, number % dilation
    number, row = number // down, number % down
    image, phase_y = number // dilation, number % dilation
    return image, row * OUTPUT_TILE * dilation + phase_y, column * OUTPUT_TILE * dilation + phase_x


@compiled
def _transform_input(job, number, out, step, padded):
    """Transform a tile of the maps; padded: memory of one that is filled up by zeros where it overhangs."""
    image, row, column = _tile(job, number)
    dilation, channels = load(job + DILATION), load(job + IN_CHANNELS)
    side = OUTPUT_TILE + load(job + KERNEL) - 1
    maps = load(job + MAPS) + image * load(job + MAPS_IMAGE)
    maps += row * load(job + MAPS_ROW) + column * load(job + MAPS_COLUMN)
    down, across = dilation * load(job + MAPS_ROW), dilation * load(job + MAPS_COLUMN)
    rows = (load(job + MAPS_HEIGHT) - row + dilation - 1) // dilation
    columns = (load(job + MAPS_WIDTH) - column + dilation - 1) // dilation
    if rows < side or columns < side:
        clear(padded, 4 * side * side * channels)
        for y in range(min(rows, side)):
            for x in range(min(columns, side)):
                copy(padded + 4 * (y * side + x) * channels, maps + y * down + x * across, 4 * channels)
        maps, down, across = padded, 4 * side * channels, 4 * channels
    for at in range(0, 4 * channels, 4 * LANES):
        if side == OUTPUT_TILE + 1:
            _input_2(maps + at, down, across, out + at, step)
        else:
            _input_3(maps + at, down, across, out + at, step)


@compiled
def _transform_output(job, number, products, step, out, scratch):
    """Write the outputs of a tile, by its products; directly summed if one is not finite, which spreads in a tile."""
    length = load(job + PANELS) * COLUMNS
    finite = 1
    for at in range(0, 4 * length, 4 * LANES):
        if load(job + KERNEL) == 2:
            finite &= _output_2(products + at, step, load(job + BIAS) + at, load(job + RELU), out + at, 4 * length)
        else:
            finite &= _output_3(products + at, step, load(job + BIAS) + at, load(job + RELU), out + at, 4 * length)
    image, row, column = _tile(job, number)
    dilation = load(job + DILATION)
    rows = min(OUTPUT_TILE, (load(job + HEIGHT) - row + dilation - 1) // dilation)
    columns = min(OUTPUT_TILE, (load(job + WIDTH) - column + dilation - 1) // dilation)
    if not finite:
        positions = scratch + BLOCK_BYTES
        for i in range(OUTPUT_TILE * OUTPUT_TILE):
            y, x = min(i // OUTPUT_TILE, rows - 1), min(i % OUTPUT_TILE, columns - 1)
            at = (row + y * dilation) * load(job + MAPS_ROW) + (column + x * dilation) * load(job + MAPS_COLUMN)
            store(positions + 8 * i, image * load(job + MAPS_IMAGE) + at)
        _fill(positions, OUTPUT_TILE * OUTPUT_TILE)
        _matmul(job, positions, OUTPUT_TILE * OUTPUT_TILE, out, 4 * length, True, scratch)
    size, bytes_ = load(job + POOL), 4 * load(job + CHANNELS)
    height, width = load(job + HEIGHT) // size, load(job + WIDTH) // size
    for y in range(rows // size):
        for x in range(columns // size):
            value = out + 4 * length * size * (y * OUTPUT_TILE + x)
            _pool(value, 4 * length, OUTPUT_TILE, size, length)
            at = (image * height + row // size + y * dilation) * width + column // size + x * dilation
            copy(load(job + OUT) + bytes_ * at, value, bytes_)


@compiled
def _multiply(job, inputs, products, positions, count):
    """Multiply the transformed tiles by the transformed weights: one GEMM for each position of a tile."""
    panels, channels, per_block = load(job + PANELS), load(job + IN_CHANNELS), load(job + PER_BLOCK)
    side = OUTPUT_TILE + load(job + KERNEL) - 1
    for i in range(side * side):
        maps, out = inputs + 4 * i * per_block * channels, products + 4 * i * per_block * panels * COLUMNS
        for panel in range(panels):
            weight = load(job + TRANSFORMED) + 4 * (i * panels + panel) * channels * COLUMNS
            for first in range(0, count, ROWS):
                target = out + 4 * COLUMNS * (first * panels + panel)
                _microkernel(
                    maps + 4 * first * channels, positions, load(job + ZEROS), 1, channels, weight, load(job + ZEROS),
                    target, 4 * panels * COLUMNS, 0,
                )  # fmt: skip


@compiled_for_c
def filtered(job):
    """Run a job of minimal filtering, together with all threads that call it."""
    scratch = load(job + SCRATCH) + take(job + SLOT) * load(job + SCRATCH_BYTES)
    panels, channels, per_block = load(job + PANELS), load(job + IN_CHANNELS), load(job + PER_BLOCK)
    length, side = panels * COLUMNS, OUTPUT_TILE + load(job + KERNEL) - 1
    positions = scratch + BLOCK_BYTES + 8 * (OUTPUT_TILE * OUTPUT_TILE + ROWS)
    for i in range(ROWS):
        store(positions + 8 * i, 4 * channels * i)
    outputs = positions + 8 * ROWS
    padded = outputs + 4 * OUTPUT_TILE * OUTPUT_TILE * length
    inputs = padded + 4 * side * side * channels
    products = inputs + 4 * side * side * per_block * channels
    block = take(job + NEXT)
    while block < load(job + BLOCKS):
        first = block * per_block
        count = min(per_block, load(job + TILES) - first)
        for i in range(count):
            _transform_input(job, first + i, inputs + 4 * i * channels, 4 * per_block * channels, padded)
        _multiply(job, inputs, products, positions, count)
        for i in range(count):
            _transform_output(job, first + i, products + 4 * i * length, 4 * per_block * length, outputs, scratch)
        block = take(job + NEXT)
