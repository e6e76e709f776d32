"""Read a kernel's machine code (SASS): its loops, and what a step of the hot one does.

A loop is the code between the target of a backward branch and the branch. Counts are of instructions in the code, each
of which every warp issues once a step, predicated off or not.
"""

import re
import struct
import subprocess
import tempfile
from bisect import bisect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

BYTES = 16  # of an instruction
MATRIX = re.compile(r"HMMA|HGMMA|UTC\w*MMA")
# Of bits, a load's width in its opcode; 32 if it has none. Copies by descriptor (UTMALDG) are of whole tiles.
WIDTHS = {"256": 256, "128": 128, "64": 64, "U16": 16, "S16": 16, "U8": 8, "S8": 8}
WIDE = 128


@dataclass(frozen=True)
class Instruction:
    address: int
    opcode: str  # LDG.E.128
    operands: str

    @property
    def name(self) -> str:
        """LDG"""
        return self.opcode.split(".")[0]


@dataclass(frozen=True)
class Loop:
    """What the code of a loop does at each step, or a kernel without loops in all."""

    instructions: int
    matrix: int  # matrix instructions
    loads: tuple[tuple[str, int], ...]  # global loads by name and width in bits: ("LDGSTS.128", 12)
    in_flight: int | None  # groups of asynchronous copies (LDGSTS) that the weakest wait leaves in flight
    full_waits: int  # waits for all groups of wgmma: one after each HGMMA if ptxas serialised them
    local: int  # loads and stores of spilled registers
    divisions: int  # of integers, inline, and calls: of a division or a root

    @property
    def narrow(self) -> int:
        """Global loads of less than 16 bytes."""
        return sum(count for name, count in self.loads if name != "TMA" and int(name.split(".")[1]) < WIDE)


@dataclass(frozen=True)
class Code:
    """A kernel's machine code."""

    instructions: int
    loops: int
    matrix: str  # matrix instructions, with their counts
    step: Loop  # the innermost loop with most matrix instructions, or else the longest
    barriers: int  # in the longest loop that lies in no other
    shuffles: int


def read(cubins: Sequence[bytes], tool: Path, architecture: str) -> list[Code]:
    """What the code of each cubin does; architecture: SM90a."""
    return [summarize(code) for code in disassemble(cubins, tool, architecture)]


def disassemble(cubins: Sequence[bytes], tool: Path, architecture: str) -> list[list[Instruction]]:
    """The instructions of each cubin. The disassembler is slow to start, so it gets the code of all at once."""
    codes = [_machine_code(cubin) for cubin in cubins]
    ends = list(accumulate(map(len, codes)))
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(b"".join(codes))
        file.flush()
        command = [tool, "--no-dataflow", "--binary", architecture, file.name]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    listed: list[list[Instruction]] = [[] for _ in codes]
    address = 0
    for match in re.finditer(r"^\s*/\*([0-9a-f]+)\*/\s+(?:@!?\w+\s+)?([\w.]+)([^;]*);", listing, re.MULTILINE):
        address = int(match[1], 16)
        listed[bisect(ends, address)].append(Instruction(address, match[2], match[3].strip()))
    assert address + BYTES == ends[-1], "all were disassembled"
    return listed


def _length(code: list[Instruction]) -> int:
    """Instructions without what fills the end of the code: a branch to itself, then NOP."""
    return next((i for i, instruction in enumerate(code) if _target(instruction) == instruction.address), len(code))


def _target(instruction: Instruction) -> int | None:
    """The address that a branch goes to."""
    target = re.search(r"0x([0-9a-f]+)$", instruction.operands)
    return int(target[1], 16) if instruction.name == "BRA" and target else None


def _machine_code(cubin: bytes) -> bytes:
    """The code sections of a 64-bit ELF file."""
    (headers,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<3H", cubin, 0x3A)
    # A header: name, type, flags (64 bits), address, offset, length.
    sections = [struct.unpack_from("<2I4Q", cubin, headers + number * size) for number in range(count)]
    code = [s for s in sections if cubin.startswith(b".text.", sections[names][4] + s[0])]
    return b"".join(cubin[offset : offset + length] for *_, offset, length in code)


def summarize(code: list[Instruction]) -> Code:
    """The counts of a kernel's code."""
    code = code[: _length(code)]
    loops = [code[start:stop] for start, stop in _loops(code)]
    outer = max((c for c in loops if not any(_inside(c, d) for d in loops)), key=len, default=code)
    inner = [c for c in loops if not any(_inside(d, c) for d in loops)]
    step = max(inner, key=lambda c: (_matrix(c).total(), len(c)), default=code)
    matrix = " ".join(f"{name} x{count}" for name, count in sorted(_matrix(code).items()))
    barriers = sum(i.name == "BAR" and not i.opcode.startswith("BAR.ARV") for i in outer)
    return Code(len(code), len(loops), matrix, _count(step), barriers, sum(i.name == "SHFL" for i in outer))


def _loops(code: list[Instruction]) -> list[tuple[int, int]]:
    """First instruction, and one past the last, of every loop."""
    number = {instruction.address: i for i, instruction in enumerate(code)}
    ends: dict[int, int] = {}
    for i, instruction in enumerate(code):
        target = _target(instruction)
        if target is not None and target < instruction.address:
            ends[number[target]] = max(ends.get(number[target], 0), i + 1)
    return sorted(ends.items())


def _inside(inner: list[Instruction], outer: list[Instruction]) -> bool:
    """Whether one loop lies in another one."""
    contained = outer[0].address <= inner[0].address and inner[-1].address <= outer[-1].address
    return contained and len(inner) < len(outer)


def _matrix(code: list[Instruction]) -> Counter[str]:
    return Counter(i.name for i in code if MATRIX.fullmatch(i.name))


def _count(code: list[Instruction]) -> Loop:
    names = Counter(i.name for i in code)
    copies = [int(i.operands.split(",")[-1], 16) for i in code if i.name == "DEPBAR" and i.operands.startswith("SB0")]
    groups = [i.operands for i in code if i.opcode.startswith("WARPGROUP.DEPBAR")]
    return Loop(
        instructions=len(code),
        matrix=_matrix(code).total(),
        loads=tuple(sorted(Counter(filter(None, map(_load, code))).items())),
        in_flight=min(copies, default=None),
        full_waits=sum(operands.endswith("0x0") for operands in groups),
        local=names["LDL"] + names["STL"],
        # Inline, a division starts from the reciprocal of a converted divisor: I2F.U32.RP, MUFU.RCP.
        divisions=names["CALL"] + sum(i.name == "I2F" and i.opcode.endswith(".RP") for i in code),
    )


def _load(instruction: Instruction) -> str | None:
    """Name and width in bits of a global load: LDG.128; TMA for a copy by descriptor."""
    if instruction.name == "UTMALDG":
        return "TMA"
    if instruction.name not in ("LDG", "LDGSTS"):
        return None
    width = next((WIDTHS[part] for part in instruction.opcode.split(".") if part in WIDTHS), 32)
    return f"{instruction.name}.{width}"
