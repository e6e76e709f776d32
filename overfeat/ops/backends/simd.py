"""Vector code for numba, written in LLVM's language: a GEMM microkernel, Winograd's transforms, and small helpers.

LLVM compiles it for the processor at hand, so that the same code uses AVX2, AVX-512 or NEON registers. Addresses and
distances are int64, in bytes; matrices are float32. Every kernel is a function for compiled code only.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import llvmlite.binding
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

CACHE_LINE = 64  # bytes
PREFETCHES = (8192, 2), (1024, 3)  # bytes ahead of weights that are read once, and how near they are brought
FLOAT, INT64, INT32 = ir.FloatType(), ir.IntType(64), ir.IntType(32)


class Registers(NamedTuple):
    """The registers of a processor, and the block of outputs that the microkernel holds in them."""

    lanes: int  # floats of a vector
    rows: int  # of the block
    vectors: int  # along a row of it

    @property
    def columns(self) -> int:
        """Of the block."""
        return self.lanes * self.vectors


AVX512, AVX2, NEON = Registers(16, 14, 2), Registers(8, 6, 2), Registers(4, 12, 2)


def registers() -> Registers | None:
    """Those of this processor; None if it lacks fused multiplications and additions of vectors."""
    features = llvmlite.binding.get_host_cpu_features()
    if features.get("avx512f"):
        return AVX512
    if features.get("avx2") and features.get("fma"):
        return AVX2
    return NEON if features.get("neon") else None


def computes_bfloat16_fast() -> bool:
    """Whether bfloat16 GEMMs are much faster than float32's: by AMX, Arm's products of matrices, or on AMD's cores.

    Intel's products of bfloat16 vectors without AMX take twice the time of float32.
    """
    features = llvmlite.binding.get_host_cpu_features()
    of_amd = llvmlite.binding.get_host_cpu_name().startswith("znver") and features.get("avx512bf16")
    return bool(features.get("amx-bf16") or features.get("bf16") or of_amd)


class Vectors:
    """Writes instructions on vectors of some lanes."""

    def __init__(self, builder: Any, lanes: int):
        self.builder, self.lanes, self.type = builder, lanes, ir.VectorType(FLOAT, lanes)

    def constant(self, value: float) -> Any:
        return ir.Constant(self.type, [ir.Constant(FLOAT, value)] * self.lanes)

    def load(self, address: Any, offset: int = 0) -> Any:
        value = self.builder.load(self._pointer(address, offset))
        value.align = 4
        return value

    def store(self, value: Any, address: Any, offset: int = 0) -> None:
        self.builder.store(value, self._pointer(address, offset)).align = 4

    def splat(self, scalar: Any) -> Any:
        undefined = ir.Constant(self.type, ir.Undefined)
        single = self.builder.insert_element(undefined, scalar, INT32(0))
        return self.builder.shuffle_vector(
            single, undefined, ir.Constant(ir.VectorType(INT32, self.lanes), [0] * self.lanes)
        )

    def splat_of(self, address: Any, offset: int) -> Any:
        """The float at an address in all lanes."""
        scalar = self.builder.load(self.builder.inttoptr(self.builder.add(address, INT64(offset)), FLOAT.as_pointer()))
        scalar.align = 4
        return self.splat(scalar)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        name, module = f"llvm.fma.v{self.lanes}f32", self.builder.module
        function = module.globals.get(name)
        if function is None:
            function = ir.Function(module, ir.FunctionType(self.type, [self.type] * 3), name)
        return self.builder.call(function, [a, b, c])

    def prefetch(self, address: Any, locality: int = 2) -> None:
        """Fetch a cache line that will be read, into the second level, or (3) the first; any address may be given."""
        byte = ir.IntType(8).as_pointer()
        name, module = "llvm.prefetch.p0i8", self.builder.module
        function = module.globals.get(name)
        if function is None:
            function = ir.Function(module, ir.FunctionType(ir.VoidType(), [byte, INT32, INT32, INT32]), name)
        self.builder.call(function, [self.builder.inttoptr(address, byte), INT32(0), INT32(locality), INT32(1)])

    def relu(self, value: Any, relu: Any) -> Any:
        """The ReLU of a vector where the bit `relu` is set; NaN stays NaN."""
        lower = self.builder.select(relu, self.constant(0.0), self.constant(float("-inf")))
        return self.builder.select(self.builder.fcmp_ordered("<", value, lower), lower, value)

    def combine(self, coefficients: Sequence[float], values: Sequence[Any]) -> Any:
        """The sum of values by their coefficients, which are constants."""
        terms = [(c, v) for c, v in zip(coefficients, values, strict=True) if c]
        terms.sort(key=lambda term: abs(term[0]) != 1 or term[0] < 0)  # one that starts the sum without a product
        first, total = terms[0]
        if first != 1:
            total = self.builder.fmul(self.constant(first), total)
        for c, v in terms[1:]:
            if abs(c) == 1:
                total = self.builder.fadd(total, v) if c > 0 else self.builder.fsub(total, v)
            else:
                total = self.fma(self.constant(c), v, total)
        return total

    def separable(self, matrix: Sequence[Sequence[float]], values: list[list[Any]]) -> list[list[Any]]:
        """matrix @ values @ matrix.T."""
        columns = [[self.combine(row, column) for row in matrix] for column in zip(*values, strict=True)]
        return [[self.combine(row, line) for row in matrix] for line in zip(*columns, strict=True)]

    def _pointer(self, address: Any, offset: int) -> Any:
        moved = self.builder.add(address, INT64(offset)) if offset else address
        return self.builder.inttoptr(moved, self.type.as_pointer())


def _kernel(write: Callable[..., Any]) -> Any:
    """A numba intrinsic of int64 arguments from a function (builder, *arguments) that writes its instructions.

    It returns the int64 that the function returns, or nothing.
    """

    @intrinsic
    def kernel(_: Any, *arguments: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, packed: Any) -> Any:
            values = cgutils.unpack_tuple(builder, packed[0])
            values = [context.cast(builder, v, t, types.int64) for v, t in zip(values, arguments, strict=True)]
            result = write(builder, *values)
            return INT64(0) if result is None else result

        return types.int64(types.StarArgTuple.from_types(arguments)), codegen

    return kernel


def microkernel(size: Registers) -> Any:
    """A block of a convolution's outputs: rows (positions) x columns (channels), in registers.

    kernel(maps, positions, taps, count, run, weight, bias, out, targets, relu): row r of the block, at
    out + targets[r], is bias + the sum over the taps t < count of
    (`run` floats at maps + positions[r] + taps[t]) @ weight[t], weight: [count, run, columns]; positions, taps and
    targets are addresses of int64 distances; relu: 0 or 1.
    """
    return _kernel(lambda builder, *arguments: _Microkernel(builder, size).write(*arguments))


class _Microkernel:
    """Writes the microkernel: a loop over the taps, and within it over the run, with the block in registers."""

    def __init__(self, builder: Any, size: Registers):
        self.builder, self.size, self.vectors = builder, size, Vectors(builder, size.lanes)
        self.offsets = [4 * size.lanes * v for v in range(size.vectors)]
        self.ahead: list[tuple[Any, int]] = []  # distances at which weights are fetched, and how near

    def write(
        self, maps: Any, positions: Any, taps: Any, count: Any, run: Any, weight: Any, bias: Any, out: Any,
        targets: Any, relu: Any,
    ) -> None:  # fmt: skip
        builder, vectors = self.builder, self.vectors
        rows = [builder.add(maps, self._int64(positions, r)) for r in range(self.size.rows)]
        block = [[vectors.load(bias, offset) for offset in self.offsets] for _ in rows]

        self.ahead = [(builder.mul(builder.mul(count, run), INT64(4 * self.size.columns)), 2)]  # the next panel's

        def tap(t: Any, weight: Any, block: list[list[Any]]) -> tuple[Any, list[list[Any]]]:
            at = builder.load(builder.inttoptr(builder.add(taps, builder.shl(t, INT64(3))), INT64.as_pointer()))
            starts = [builder.add(row, at) for row in rows]
            return self._loop(run, weight, block, lambda i, w, b: self._multiply(starts, i, w, b))

        _, block = self._loop(count, weight, block, tap)
        positive = builder.icmp_signed("!=", relu, INT64(0))
        for r, row in enumerate(block):
            target = builder.add(out, self._int64(targets, r))
            for offset, value in zip(self.offsets, row, strict=True):
                vectors.store(vectors.relu(value, positive), target, offset)

    def _int64(self, address: Any, index: int) -> Any:
        return self.builder.load(self.builder.inttoptr(self.builder.add(address, INT64(8 * index)), INT64.as_pointer()))

    def _multiply(self, rows: list[Any], index: Any, weight: Any, block: list[list[Any]]) -> tuple[Any, Any]:
        """Add one float of each row times a row of the weight."""
        builder, vectors = self.builder, self.vectors
        columns = [vectors.load(weight, offset) for offset in self.offsets]
        for distance, locality in self.ahead:
            following = builder.add(weight, distance)
            for offset in range(0, 4 * self.size.columns, CACHE_LINE):
                vectors.prefetch(builder.add(following, INT64(offset)), locality)
        result = []
        for row, sums in zip(rows, block, strict=True):
            start = builder.inttoptr(row, FLOAT.as_pointer())
            value = builder.load(builder.gep(start, [index]))
            value.align = 4
            both = zip(columns, sums, strict=True)
            scalar = vectors.splat(value)
            result.append([vectors.fma(scalar, column, total) for column, total in both])
        return builder.add(weight, INT64(4 * self.size.columns)), result

    def _loop(self, count: Any, weight: Any, block: list[list[Any]], body: Callable[..., Any]) -> tuple[Any, Any]:
        """for i in range(count), which is at least 1: weight, block = body(i, weight, block)."""
        builder, before = self.builder, self.builder.block
        start, end = builder.append_basic_block("loop"), builder.append_basic_block("end")
        builder.branch(start)
        builder.position_at_end(start)
        index, pointer = builder.phi(INT64), builder.phi(INT64)
        sums = [[builder.phi(self.vectors.type) for _ in row] for row in block]
        new_pointer, new_block = body(index, pointer, sums)
        following = builder.add(index, INT64(1))
        carried = [(index, INT64(0), following), (pointer, weight, new_pointer)]
        for rows in zip(sums, block, new_block, strict=True):
            carried += zip(*rows, strict=True)
        for phi, first, later in carried:
            phi.add_incoming(first, before)
            phi.add_incoming(later, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, count), start, end)
        builder.position_at_end(end)
        return new_pointer, new_block


def streaming_kernel(size: Registers) -> Any:
    """The product of a block of rows and a panel of a large matrix, whose weights are read ahead.

    kernel(rows, pitch, weight, count, start, distance, out, relu): out [rows, columns] is start + rows @ weight, where
    row r is `count` floats at rows + r * pitch, the weight [count, columns], and row r of the start at
    start + r * distance; relu: 0 or 1.
    """

    def write(
        builder: Any, row: Any, pitch: Any, weight: Any, count: Any, start: Any, distance: Any, out: Any, relu: Any
    ) -> None:
        kernel = _Microkernel(builder, size)
        kernel.ahead = [(INT64(distance), locality) for distance, locality in PREFETCHES]
        vectors, block, rows = kernel.vectors, [], []
        for _ in range(size.rows):
            rows.append(row)
            block.append([vectors.load(start, offset) for offset in kernel.offsets])
            row, start = builder.add(row, pitch), builder.add(start, distance)

        _, block = kernel._loop(count, weight, block, lambda i, w, b: kernel._multiply(rows, i, w, b))
        positive = builder.icmp_signed("!=", relu, INT64(0))
        for values in block:
            for offset, value in zip(kernel.offsets, values, strict=True):
                vectors.store(vectors.relu(value, positive), out, offset)
            out = builder.add(out, INT64(4 * size.columns))

    return _kernel(write)


def input_transform(lanes: int, matrix: Sequence[Sequence[float]]) -> Any:
    """kernel(maps, down, across, out, step): Winograd's transform of a tile of the maps, for `lanes` channels.

    matrix: [t, t]. The t x t positions are at maps + i * down + j * across, the results at out + (i * t + j) * step.
    """

    def write(builder: Any, maps: Any, down: Any, across: Any, out: Any, step: Any) -> None:
        vectors, values = Vectors(builder, lanes), []
        for _ in matrix:
            row, position = [], maps
            for _ in matrix:
                row.append(vectors.load(position))
                position = builder.add(position, across)
            values.append(row)
            maps = builder.add(maps, down)
        for line in vectors.separable(matrix, values):
            for value in line:
                vectors.store(value, out)
                out = builder.add(out, step)

    return _kernel(write)


def output_transform(lanes: int, matrix: Sequence[Sequence[float]]) -> Any:
    """kernel(products, step, bias, relu, out, out_step): Winograd's transform to m x m outputs, for `lanes` channels.

    matrix: [m, t]. The t x t products are `step` apart, the outputs `out_step`. Returns 1 if all outputs are finite.
    """

    def write(builder: Any, products: Any, step: Any, bias: Any, relu: Any, out: Any, out_step: Any) -> Any:
        vectors, values = Vectors(builder, lanes), []
        for _ in matrix[0]:
            row = []
            for _ in matrix[0]:
                row.append(vectors.load(products))
                products = builder.add(products, step)
            values.append(row)
        positive, added = builder.icmp_signed("!=", relu, INT64(0)), vectors.load(bias)
        zeros = vectors.constant(0.0)
        for line in vectors.separable(matrix, values):
            for value in line:
                total = builder.fadd(value, added)
                zeros = vectors.fma(total, vectors.constant(0.0), zeros)  # NaN if it is not finite
                vectors.store(vectors.relu(total, positive), out)
                out = builder.add(out, out_step)
        lost = builder.fcmp_unordered("uno", zeros, zeros)
        bits = builder.bitcast(lost, ir.IntType(lanes))
        return builder.zext(builder.icmp_unsigned("==", bits, ir.Constant(ir.IntType(lanes), 0)), INT64)

    return _kernel(write)


def interleave(lanes: int, channels: int) -> Any:
    """kernel(maps, apart, mean, std, out): (x - mean) / std of `lanes` pixels of planes, channels-last.

    The planes are `apart`; mean and std are addresses of a float32 for each of them.
    """

    def write(builder: Any, maps: Any, apart: Any, mean: Any, std: Any, out: Any) -> None:
        vectors = Vectors(builder, lanes)
        wide: Any = None
        for channel in range(channels):
            values = builder.fsub(vectors.load(maps), vectors.splat_of(mean, 4 * channel))
            values = builder.fdiv(values, vectors.splat_of(std, 4 * channel))
            wide = values if wide is None else _concat(builder, wide, values)
            maps = builder.add(maps, apart)
        order = [pixel + channel * lanes for pixel in range(lanes) for channel in range(channels)]
        mask = ir.Constant(ir.VectorType(INT32, len(order)), order)
        mixed = builder.shuffle_vector(wide, ir.Constant(wide.type, ir.Undefined), mask)
        builder.store(mixed, builder.inttoptr(out, mixed.type.as_pointer())).align = 4

    return _kernel(write)


def _concat(builder: Any, first: Any, second: Any) -> Any:
    """Two vectors as one; the second may be shorter."""
    count, more = first.type.count, second.type.count
    undefined = ir.Constant(second.type, ir.Undefined)
    mask = ir.Constant(ir.VectorType(INT32, count), [min(i, more) for i in range(count)])
    second = builder.shuffle_vector(second, undefined, mask)
    both = ir.Constant(ir.VectorType(INT32, count + more), list(range(count + more)))
    return builder.shuffle_vector(first, second, both)


def maximum(lanes: int) -> Any:
    """kernel(target, first, second): the larger of each of `lanes` floats, into the target; NaN propagates."""

    def write(builder: Any, target: Any, first: Any, second: Any) -> None:
        vectors = Vectors(builder, lanes)
        old, new = vectors.load(first), vectors.load(second)
        unordered = builder.fcmp_unordered("uno", new, new)
        larger = builder.or_(builder.fcmp_ordered(">", new, old), unordered)
        vectors.store(builder.select(larger, new, old), target)

    return _kernel(write)


@_kernel
def copy(builder: Any, target: Any, source: Any, count: Any) -> None:
    """copy(target, source, count): copy some bytes, which do not overlap."""
    byte = ir.IntType(8).as_pointer()
    cgutils.raw_memcpy(builder, builder.inttoptr(target, byte), builder.inttoptr(source, byte), count, 1)


@_kernel
def clear(builder: Any, target: Any, count: Any) -> None:
    """clear(target, count): set some bytes to 0."""
    cgutils.memset(builder, builder.inttoptr(target, ir.IntType(8).as_pointer()), count, 0)


@_kernel
def load(builder: Any, address: Any) -> Any:
    """load(address): the int64 there."""
    return builder.load(builder.inttoptr(address, INT64.as_pointer()))


@_kernel
def bits(builder: Any, address: Any) -> Any:
    """bits(address): the 32 bits there."""
    return builder.zext(builder.load(builder.inttoptr(address, INT32.as_pointer())), INT64)


@_kernel
def store(builder: Any, address: Any, value: Any) -> None:
    """store(address, value): write an int64."""
    builder.store(value, builder.inttoptr(address, INT64.as_pointer()))


@_kernel
def take(builder: Any, address: Any) -> Any:
    """take(address): the int64 there, which one is added to at the same time for all threads."""
    return builder.atomic_rmw("add", builder.inttoptr(address, INT64.as_pointer()), INT64(1), "monotonic")


@_kernel
def finish(builder: Any, address: Any) -> None:
    """finish(address): add one to the int64 there, once all that this thread wrote can be read by others."""
    builder.atomic_rmw("add", builder.inttoptr(address, INT64.as_pointer()), INT64(1), "release")


@_kernel
def finished(builder: Any, address: Any) -> Any:
    """finished(address): the int64 there; what its writers wrote before `finish` can be read."""
    return builder.load_atomic(builder.inttoptr(address, INT64.as_pointer()), "acquire", 8)
