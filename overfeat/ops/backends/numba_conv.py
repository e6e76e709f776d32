"""Convolutions of float32 maps on a CPU, compiled by numba: bias, ReLU and pooling come before an output is stored.

Direct sums, and Winograd's minimal filtering (see winograd.py) in blocks of tiles whose transforms stay in the cache.
A program is an array of int64: a header, then jobs, which run one after the other. Any number of threads run it at
once, each taking the next block of outputs. The 1x1 convolutions that follow a job are computed with its blocks, while
their inputs are in the cache. Maps and outputs are channels-last. Weights are packed in panels of `COLUMNS` output
channels: [panels, taps, C, COLUMNS].
"""

from overfeat import toom_cook
from overfeat.ops.backends import simd
from overfeat.ops.backends.numba_compile import compiled, compiled_for_c
from overfeat.ops.backends.simd import bits, clear, copy, finish, finished, load, store, take
from overfeat.ops.backends.winograd import OUTPUT_TILE, POINTS

# Where the numbers are. Of the header: threads that have come, and the number of jobs.
SLOT, JOBS = 0, 8
HEADER = 16  # numbers
# Of a job: the next block and the finished ones, in cache lines of their own; counts, addresses, distances in bytes.
NEXT, DONE = 0, 64
(
    METHOD, BLOCKS, FOLLOWERS,  # the jobs after this one that are computed with its blocks
    SCRATCH, SCRATCH_BYTES,  # memory of all threads, and of one
    MAPS, MAPS_IMAGE, MAPS_ROW, MAPS_COLUMN, MAPS_HEIGHT, MAPS_WIDTH,  # distances between rows of the maps
    HEIGHT, WIDTH, CHANNELS, POSITIONS,  # of the outputs before pooling; of all images together
    STRIDE, POOL, RELU, OUT, BIAS, PANELS,  # the bias is as long as the panels
    TAPS, NUM_TAPS, RUN,  # distances of an output's runs of floats in the maps, and their length
    WEIGHT, TRANSFORMED, ZEROS,  # transformed: [t * t, panels, C, COLUMNS]; zeros: as many as output channels
    PER_BLOCK,  # outputs of a block; tiles in minimal filtering
    KERNEL, DILATION, IN_CHANNELS, DOWN, ACROSS, TILES,  # in minimal filtering; tiles down and across of one phase
    # Where a thread's memory has tables of positions and of where their outputs go, and the same for rows of one
    # chunk; outputs; outputs of a chunk of followers, twice; a tile of outputs, one of inputs; transforms.
    AT_POSITIONS, AT_TARGETS, AT_CHUNK_POSITIONS, AT_CHUNK_TARGETS,
    AT_OUTPUTS, AT_CHUNKS, CHUNK_BYTES, AT_TILE, AT_PADDED, AT_INPUTS, AT_PRODUCTS,
) = range(128, 128 + 8 * 45, 8)  # fmt: skip
JOB = 64  # numbers of a job
JOB_BYTES = 8 * JOB
DIRECT, POOLED, FILTERED, OFFSET_POOL = range(4)  # methods

REGISTERS = simd.registers() or simd.NEON
ROWS, COLUMNS, LANES = REGISTERS.rows, REGISTERS.columns, REGISTERS.lanes
CHUNK = 3 * ROWS  # rows that followers compute at a time
BLOCK_BYTES = 4 * ROWS * COLUMNS  # at the start of a thread's memory, for a block that is cut, and its rows' distances
BLOCK_TARGETS = BLOCK_BYTES
TABLE_BYTES = BLOCK_BYTES + 8 * ROWS
KERNELS = (2, 3)  # that minimal filtering is compiled for


def axis_transforms(k):
    """Transforms of the outputs, the weights and the maps, for one axis: see toom_cook.transforms."""
    return toom_cook.transforms(OUTPUT_TILE, k, tuple(POINTS[: OUTPUT_TILE + k - 2]))


RGB = 3  # channels of images that are normalised
_interleave = simd.interleave(LANES, RGB)
_microkernel = simd.microkernel(REGISTERS)
_maximum = simd.maximum(LANES)
_input_2, _input_3 = (simd.input_transform(LANES, axis_transforms(k)[2].tolist()) for k in KERNELS)
_output_2, _output_3 = (simd.output_transform(LANES, axis_transforms(k)[0].tolist()) for k in KERNELS)


@compiled
def _length(job):
    """Bytes of the outputs of one position, in whole panels."""
    return 4 * COLUMNS * load(job + PANELS)


@compiled
def _steps(table, count, step):
    """A table of the distances 0, step, 2 * step, ..."""
    for i in range(count):
        store(table + 8 * i, i * step)


@compiled
def _matmul(job, maps, positions, count, out, targets, whole, scratch):
    """Outputs at `count` positions, at out + targets[i]: whole panels where `whole`, or their channels.

    positions: distances in the maps, as many as whole blocks of rows need.
    """
    for panel in range(load(job + PANELS)):
        width = COLUMNS if whole else min(COLUMNS, load(job + CHANNELS) - panel * COLUMNS)
        weight = load(job + WEIGHT) + 4 * panel * COLUMNS * load(job + NUM_TAPS) * load(job + RUN)
        bias = load(job + BIAS) + 4 * panel * COLUMNS
        target = out + 4 * panel * COLUMNS
        for first in range(0, count, ROWS):
            rows = min(ROWS, count - first)
            direct = rows == ROWS and width == COLUMNS
            _microkernel(
                maps, positions + 8 * first, load(job + TAPS), load(job + NUM_TAPS), load(job + RUN), weight, bias,
                target if direct else scratch, targets + 8 * first if direct else scratch + BLOCK_TARGETS,
                load(job + RELU),
            )  # fmt: skip
            if not direct:
                for row in range(rows):
                    copy(target + load(targets + 8 * (first + row)), scratch + 4 * row * COLUMNS, 4 * width)


@compiled
def _fill(positions, count):
    """Repeat the last of `count` positions up to a whole block of rows."""
    for i in range(count, (count + ROWS - 1) // ROWS * ROWS):
        store(positions + 8 * i, load(positions + 8 * (count - 1)))


@compiled
def _follow(job, count, scratch):
    """The 1x1 convolutions that follow the job, of `count` of its outputs in the thread's memory."""
    positions, targets = scratch + load(job + AT_CHUNK_POSITIONS), scratch + load(job + AT_CHUNK_TARGETS)
    followers = load(job + FOLLOWERS)
    for first in range(0, count, CHUNK):
        rows = min(CHUNK, count - first)
        maps = scratch + load(job + AT_OUTPUTS) + first * _length(job)
        for number in range(1, followers + 1):
            follower = job + number * JOB_BYTES
            _steps(positions, rows, _length(follower - JOB_BYTES))
            _fill(positions, rows)
            if number == followers:
                final = scratch + load(job + AT_TARGETS) + 8 * first
                _matmul(follower, maps, positions, rows, load(follower + OUT), final, False, scratch)
            else:
                _steps(targets, rows, _length(follower))
                out = scratch + load(job + AT_CHUNKS) + number % 2 * load(job + CHUNK_BYTES)
                _matmul(follower, maps, positions, rows, out, targets, True, scratch)
                maps = out


@compiled
def _pool(values, step, across, size, length):
    """The maxima of size x size values of `length` bytes, into the first; a row of values is `across` long."""
    for i in range(1, size * size):
        source = values + (i // size * across + i % size) * step
        for at in range(0, length, 4 * LANES):
            _maximum(values + at, values + at, source + at)


@compiled
def _direct_block(job, block, scratch):
    """Consecutive outputs, row by row and image by image."""
    width, area = load(job + WIDTH), load(job + HEIGHT) * load(job + WIDTH)
    first = block * load(job + PER_BLOCK)
    count = min(load(job + PER_BLOCK), load(job + POSITIONS) - first)
    positions, targets = scratch + load(job + AT_POSITIONS), scratch + load(job + AT_TARGETS)
    followers = load(job + FOLLOWERS)
    step = 4 * load(job + followers * JOB_BYTES + CHANNELS)
    image, row, column = first // area, first % area // width, first % width
    for i in range(count):
        at = image * load(job + MAPS_IMAGE) + load(job + STRIDE) * (
            row * load(job + MAPS_ROW) + column * load(job + MAPS_COLUMN)
        )
        store(positions + 8 * i, at)
        store(targets + 8 * i, (first + i) * step)
        column += 1
        if column == width:
            column, row = 0, row + 1
            if row == load(job + HEIGHT):
                row, image = 0, image + 1
    _fill(positions, count)
    if followers == 0:
        _matmul(job, load(job + MAPS), positions, count, load(job + OUT), targets, False, scratch)
    else:
        chunk = scratch + load(job + AT_CHUNK_TARGETS)
        _steps(chunk, count, _length(job))
        _matmul(job, load(job + MAPS), positions, count, scratch + load(job + AT_OUTPUTS), chunk, True, scratch)
        _follow(job, count, scratch)


@compiled
def _pooled_block(job, block, scratch):
    """Consecutive outputs of the pooling: a part of a row."""
    size, per_block = load(job + POOL), load(job + PER_BLOCK)
    height, width = load(job + HEIGHT) // size, load(job + WIDTH) // size
    parts = (width + per_block - 1) // per_block
    line, first = block // parts, block % parts * per_block
    across = min(per_block, width - first)
    image, row = line // height, line % height
    positions, targets = scratch + load(job + AT_POSITIONS), scratch + load(job + AT_TARGETS)
    start = image * load(job + MAPS_IMAGE) + load(job + STRIDE) * size * (
        row * load(job + MAPS_ROW) + first * load(job + MAPS_COLUMN)
    )
    count, length = across * size * size, _length(job)
    for i in range(count):
        y, x = i // (across * size), i % (across * size)
        step = y * load(job + MAPS_ROW) + x * load(job + MAPS_COLUMN)
        store(positions + 8 * i, start + load(job + STRIDE) * step)
    _fill(positions, count)
    _steps(targets, count, length)
    values = scratch + load(job + AT_OUTPUTS)
    _matmul(job, load(job + MAPS), positions, count, values, targets, True, scratch)
    out = load(job + OUT) + 4 * load(job + CHANNELS) * (line * width + first)
    for i in range(across):
        _pool(values + length * size * i, length, across * size, size, length)
        copy(out + 4 * load(job + CHANNELS) * i, values + length * size * i, 4 * load(job + CHANNELS))


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
def _outputs_of_tile(job, number, products, step, out, scratch):
    """The outputs of a tile by its products, into `out`; directly summed if one is not finite: it spreads in a tile.

    Returns the first row and column, and how many there are down and across.
    """
    length, finite = _length(job), 1
    for at in range(0, length, 4 * LANES):
        if load(job + KERNEL) == 2:
            finite &= _output_2(products + at, step, load(job + BIAS) + at, load(job + RELU), out + at, length)
        else:
            finite &= _output_3(products + at, step, load(job + BIAS) + at, load(job + RELU), out + at, length)
    image, row, column = _tile(job, number)
    dilation = load(job + DILATION)
    rows = min(OUTPUT_TILE, (load(job + HEIGHT) - row + dilation - 1) // dilation)
    columns = min(OUTPUT_TILE, (load(job + WIDTH) - column + dilation - 1) // dilation)
    if not finite:
        positions, targets = scratch + load(job + AT_CHUNK_POSITIONS), scratch + load(job + AT_CHUNK_TARGETS)
        for i in range(OUTPUT_TILE * OUTPUT_TILE):
            y, x = min(i // OUTPUT_TILE, rows - 1), min(i % OUTPUT_TILE, columns - 1)
            at = (row + y * dilation) * load(job + MAPS_ROW) + (column + x * dilation) * load(job + MAPS_COLUMN)
            store(positions + 8 * i, image * load(job + MAPS_IMAGE) + at)
        _fill(positions, OUTPUT_TILE * OUTPUT_TILE)
        _steps(targets, OUTPUT_TILE * OUTPUT_TILE, length)
        _matmul(job, load(job + MAPS), positions, OUTPUT_TILE * OUTPUT_TILE, out, targets, True, scratch)
    return image, row, column, rows, columns


@compiled
def _transform_output(job, number, products, step, written, scratch):
    """Write the outputs of a tile, by its products.

    Where jobs follow, they are written to the thread's memory, after those that were `written`; returns how many.
    """
    values, length = scratch + load(job + AT_TILE), _length(job)
    image, row, column, rows, columns = _outputs_of_tile(job, number, products, step, values, scratch)
    dilation, size, followers = load(job + DILATION), load(job + POOL), load(job + FOLLOWERS)
    height, width = load(job + HEIGHT) // size, load(job + WIDTH) // size
    bytes_ = 4 * load(job + followers * JOB_BYTES + CHANNELS)
    outputs, targets = scratch + load(job + AT_OUTPUTS), scratch + load(job + AT_TARGETS)
    for y in range(rows // size):
        for x in range(columns // size):
            value = values + length * size * (y * OUTPUT_TILE + x)
            _pool(value, length, OUTPUT_TILE, size, length)
            at = (image * height + row // size + y * dilation) * width + column // size + x * dilation
            if followers:
                copy(outputs + length * written, value, length)
                store(targets + 8 * written, bytes_ * at)
                written += 1
            else:
                copy(load(job + OUT) + bytes_ * at, value, bytes_)
    return written


@compiled
def _multiply(job, count, scratch):
    """Multiply the transformed tiles by the transformed weights: one GEMM for each position of a tile."""
    panels, channels, per_block = load(job + PANELS), load(job + IN_CHANNELS), load(job + PER_BLOCK)
    side = OUTPUT_TILE + load(job + KERNEL) - 1
    positions, targets = scratch + load(job + AT_CHUNK_POSITIONS), scratch + load(job + AT_CHUNK_TARGETS)
    _steps(positions, ROWS, 4 * channels)
    _steps(targets, ROWS, _length(job))
    for i in range(side * side):
        maps = scratch + load(job + AT_INPUTS) + 4 * i * per_block * channels
        out = scratch + load(job + AT_PRODUCTS) + i * per_block * _length(job)
        for panel in range(panels):
            weight = load(job + TRANSFORMED) + 4 * (i * panels + panel) * channels * COLUMNS
            for first in range(0, count, ROWS):
                _microkernel(
                    maps + 4 * first * channels, positions, load(job + ZEROS), 1, channels, weight, load(job + ZEROS),
                    out + first * _length(job) + 4 * COLUMNS * panel, targets, 0,
                )  # fmt: skip


@compiled
def _filtered_block(job, block, scratch):
    """Consecutive tiles, by minimal filtering."""
    channels, per_block, length = load(job + IN_CHANNELS), load(job + PER_BLOCK), _length(job)
    first = block * per_block
    count = min(per_block, load(job + TILES) - first)
    inputs, products = scratch + load(job + AT_INPUTS), scratch + load(job + AT_PRODUCTS)
    padded = scratch + load(job + AT_PADDED)
    for i in range(count):
        _transform_input(job, first + i, inputs + 4 * i * channels, 4 * per_block * channels, padded)
    _multiply(job, count, scratch)
    written = 0
    for i in range(count):
        written = _transform_output(job, first + i, products + i * length, per_block * length, written, scratch)
    if load(job + FOLLOWERS):
        _follow(job, written, scratch)


@compiled
def _offset_pool_block(job, block, scratch):
    """A row of maxima at every offset; the channels are whole vectors."""
    size, channels, width = load(job + POOL), 4 * load(job + CHANNELS), load(job + WIDTH)
    image, row = block // load(job + HEIGHT), block % load(job + HEIGHT)
    maps = load(job + MAPS) + image * load(job + MAPS_IMAGE) + row * load(job + MAPS_ROW)
    down, values = load(job + MAPS_ROW), scratch + load(job + AT_OUTPUTS)
    out = load(job + OUT) + block * width * channels
    for at in range(0, (width + size - 1) * channels, 4 * LANES):
        _maximum(values + at, maps + at, maps + down + at)
        for i in range(2, size):
            _maximum(values + at, values + at, maps + i * down + at)
    for at in range(0, width * channels, 4 * LANES):
        _maximum(out + at, values + at, values + channels + at)
        for i in range(2, size):
            _maximum(out + at, out + at, values + i * channels + at)


@compiled_for_c
def normalise(job):
    """(x - mean) / std of RGB images of at least LANES columns, channels-last, together with all threads that call it.

    job: int64: the next row, rows of all images and of one, columns, distances of images, planes and rows in bytes,
    addresses of the pixels, the results, and the float32 means and standard deviations.
    """
    rows, height, width, pixels, out = load(job + 8), load(job + 16), load(job + 24), load(job + 56), load(job + 64)
    number = take(job)
    while number < rows:
        source = pixels + number // height * load(job + 32) + number % height * load(job + 48)
        for column in range(0, width, LANES):
            at = min(column, width - LANES)
            _interleave(
                source + 4 * at, load(job + 40), load(job + 72), load(job + 80), out + 4 * RGB * (number * width + at)
            )
        number = take(job)


@compiled_for_c
def compare(table):
    """Whether values of weights are as they were, into table[1].

    table: int64: how many weights, the result, and for each weight the number of values, and addresses of the weight,
    of the values' distances in it in bytes, and of the float32 values that they had.
    """
    same = 1
    for weight in range(load(table)):
        entry = table + 16 + 32 * weight
        for i in range(load(entry)):
            now = load(entry + 8) + load(load(entry + 16) + 8 * i)
            same &= bits(now) == bits(load(entry + 24) + 4 * i)
    store(table + 8, same)


@compiled_for_c
def run(program):
    """Run a program, together with all threads that call it."""
    slot = take(program + SLOT)
    job = program + 8 * HEADER
    end = job + load(program + JOBS) * JOB_BYTES
    while job < end:
        scratch = load(job + SCRATCH) + slot * load(job + SCRATCH_BYTES)
        _steps(scratch + BLOCK_TARGETS, ROWS, 4 * COLUMNS)
        method, blocks = load(job + METHOD), load(job + BLOCKS)
        block = take(job + NEXT)
        while block < blocks:
            if method == DIRECT:
                _direct_block(job, block, scratch)
            elif method == POOLED:
                _pooled_block(job, block, scratch)
            elif method == FILTERED:
                _filtered_block(job, block, scratch)
            else:
                _offset_pool_block(job, block, scratch)
            finish(job + DONE)
            block = take(job + NEXT)
        while finished(job + DONE) < blocks:
            pass
        job += (1 + load(job + FOLLOWERS)) * JOB_BYTES
