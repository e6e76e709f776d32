"""Reading machine code: loops, and the counts of a step of the hot one."""

from bench.kernel_report.sass import Instruction, summarize

PERSISTENT = """
    S2R R0, SR_CTAID.X
    LDG.E R8, desc[UR4][R2.64]
    LDGSTS.E.BYPASS.128 [R9], desc[UR4][R2.64]
    DEPBAR.LE SB0, 0x2
    BAR.SYNC.DEFER_BLOCKING 0x0
    HGMMA.64x256x16.F32.BF16 R24, gdesc[UR4].tnspB, R24
    HGMMA.64x256x16.F32.BF16 R24, gdesc[UR4].tnspB, R24, gsb0
    WARPGROUP.DEPBAR.LE gsb0, 0x1
    LDGSTS.E.BYPASS.LTC128B.128 [R9], desc[UR4][R2.64], P2
    LDGSTS.E.64 [R9], desc[UR4][R2.64], P2
    BRA 0x0030
    WARPGROUP.DEPBAR.LE gsb0, 0x0
    SHFL.BFLY PT, R3, R2, 0x10, 0x1f
    STG.E desc[UR4][R2.64], R3
    BRA 0x0010
    EXIT
    BRA 0x0100
    NOP
"""


def code(text):
    lines = [line.split(maxsplit=1) for line in text.strip().splitlines()]
    return [Instruction(16 * i, opcode, "".join(rest)) for i, (opcode, *rest) in enumerate(lines)]


def test_the_innermost_loop_with_matrix_instructions_is_the_step():
    read = summarize(code(PERSISTENT))
    assert (read.instructions, read.loops, read.matrix) == (16, 2, "HGMMA x2")
    assert read.step.instructions == 8 and read.step.matrix == 2
    assert read.step.loads == (("LDGSTS.128", 1), ("LDGSTS.64", 1)) and read.step.narrow == 1
    assert read.step.in_flight == 2 and read.step.full_waits == 0
    assert (read.barriers, read.shuffles) == (1, 1)  # of the outer loop


def test_serialised_wgmma_spills_and_divisions_are_counted():
    worse = PERSISTENT.replace("gsb0, 0x1", "gsb0, 0x0").replace("BAR.SYNC.DEFER_BLOCKING 0x0", "LDL R5, [R1+0x8]")
    worse = worse.replace("LDGSTS.E.64 [R9], desc[UR4][R2.64], P2", "I2F.U32.RP R8, R9")
    step = summarize(code(worse)).step
    assert (step.full_waits, step.local, step.divisions) == (1, 1, 1)


def test_a_kernel_without_loops_is_one_step():
    read = summarize(code("LDG.E.128 R4, desc[UR4][R2.64]\nLDG.E.U16 R4, desc[UR4][R2.64]\nEXIT\nBRA 0x0030\nNOP"))
    assert (read.instructions, read.loops, read.step.instructions, read.step.narrow) == (3, 0, 3, 1)
