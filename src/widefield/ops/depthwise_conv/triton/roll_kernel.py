"""The device side of `roll`, in Gluon: rows of the input stream by while tiles of the kernel roll through registers."""

# Kernel bodies are Gluon's language, not Python's: types of its values mean nothing to a checker.
# pyright: basic, reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false
# ruff: noqa: N803, N806

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, warpgroup_mma, warpgroup_mma_wait

# Triton 3.6 calls it thread_barrier.
barrier = getattr(gl, "barrier", None) or gl.thread_barrier


@gluon.jit
def roll(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    batch,
    channels,
    image_tiles,
    HEIGHT: gl.constexpr,
    WIDTH: gl.constexpr,
    KERNEL_H: gl.constexpr,
    KERNEL_W: gl.constexpr,
    COLUMNS: gl.constexpr,
    IMAGES: gl.constexpr,
    LENGTH: gl.constexpr,
    OFFSET: gl.constexpr,
    VECTOR: gl.constexpr,
    HAS_BIAS: gl.constexpr,
    num_warps: gl.constexpr,
):
    """Compute 4 * (64 / COLUMNS) output rows of one channel of IMAGES images, all columns of a row at once.

    Accumulator a holds the output rows i0 + a + 4 s, for s = 0 .. 64 / COLUMNS - 1: 64 rows (s, j) by IMAGES columns.
    Input row r adds T(r - i0 + PAD_H - a) @ x[r] to it, where T(k)[(s, j), j'] = w[k - 4 s, j' - j + PAD_W]. One row
    on, each tile is the one that its left neighbour had: a single tile is loaded for each input row.
    """
    PAD_H: gl.constexpr = KERNEL_H // 2
    PAD_W: gl.constexpr = KERNEL_W // 2
    ROWS: gl.constexpr = 4 * (64 // COLUMNS)
    ROW_TILES: gl.constexpr = (HEIGHT + ROWS - 1) // ROWS
    TAP_ROW: gl.constexpr = 2 * LENGTH
    PLANE: gl.constexpr = HEIGHT * WIDTH
    DTYPE: gl.constexpr = x_ptr.dtype.element_ty

    mma: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[num_warps, 1], instr_shape=[16, IMAGES, 16]
    )
    operand: gl.constexpr = gl.DotOperandLayout(0, mma, 2)
    shared: gl.constexpr = gl.NVMMASharedLayout(2 * COLUMNS, 16, rank=2)
    blocked: gl.constexpr = gl.BlockedLayout([1, 8], [256 // COLUMNS, COLUMNS // 8], [num_warps, 1], [1, 0])
    ring = gl.allocate_shared_memory(DTYPE, [2, IMAGES, COLUMNS], shared)

    pid = gl.program_id(0)
    i0 = (pid % ROW_TILES) * ROWS
    n0 = ((pid // ROW_TILES) % image_tiles) * IMAGES
    c = pid // (ROW_TILES * image_tiles)
    start = (n0.to(gl.int64) * channels + c) * PLANE

    image = gl.arange(0, IMAGES, gl.SliceLayout(1, blocked))
    column = gl.arange(0, COLUMNS, gl.SliceLayout(0, blocked))
    is_x = (n0 + image < batch)[:, None] & (column < WIDTH)[None, :]
    # A lane that is masked off points at the first pixel: never at a wild address.
    x_offset = gl.where(is_x, (image * (channels * PLANE))[:, None] + column[None, :], 0)
    x_offset = gl.max_contiguous(gl.multiple_of(x_offset, [1, VECTOR]), [1, VECTOR])
    x_base = x_ptr + start

    # The kernel comes with ROWS rows of zeros above and below and in two copies, the second one element further on:
    # a pair of neighbouring taps is then one aligned load, and nothing needs a mask.
    out = gl.arange(0, 64, gl.SliceLayout(1, operand))
    inner = gl.arange(0, COLUMNS, gl.SliceLayout(0, operand))
    j = out % COLUMNS
    copy = (j + PAD_W + OFFSET) % 2
    tap = (inner[None, :] + (PAD_W + OFFSET)) + (copy * (LENGTH + 1) - j - (out // COLUMNS) * (4 * TAP_ROW))[:, None]
    tap = gl.max_contiguous(gl.multiple_of(tap, [1, 2]), [1, 2])
    tap_base = weight_ptr + (c.to(gl.int64) * (KERNEL_H + 2 * ROWS) + ROWS) * TAP_ROW

    first = gl.maximum(i0 - PAD_H, 0)
    last = gl.minimum(i0 + ROWS + PAD_H, HEIGHT)
    k = first - i0 + PAD_H
    t0 = gl.load(tap_base + k * TAP_ROW + tap)
    t1 = gl.load(tap_base + (k - 1) * TAP_ROW + tap)
    t2 = gl.load(tap_base + (k - 2) * TAP_ROW + tap)
    t3 = gl.load(tap_base + (k - 3) * TAP_ROW + tap)
    a0 = gl.zeros([64, IMAGES], gl.float32, mma)
    a1 = gl.zeros([64, IMAGES], gl.float32, mma)
    a2 = gl.zeros([64, IMAGES], gl.float32, mma)
    a3 = gl.zeros([64, IMAGES], gl.float32, mma)
    value = gl.load(x_base + first * WIDTH + x_offset, mask=is_x, other=0.0)
    ring.index(first % 2).store(value)
    for r in range(first, last):
        fence_async_shared()
        barrier()
        b = ring.index(r % 2).permute((1, 0))
        k = r + 1 - i0 + PAD_H
        a0 = warpgroup_mma(t0, b, a0, is_async=True)
        a1 = warpgroup_mma(t1, b, a1, is_async=True)
        a2 = warpgroup_mma(t2, b, a2, is_async=True)
        a3 = warpgroup_mma(t3, b, a3, is_async=True)
        value = gl.load(x_base + gl.minimum(r + 1, HEIGHT - 1) * WIDTH + x_offset, mask=is_x, other=0.0)
        t = gl.load(tap_base + k * TAP_ROW + tap)
        a0, a1, a2, a3 = warpgroup_mma_wait(0, deps=[a0, a1, a2, a3])
        ring.index((r + 1) % 2).store(value)
        t3 = t2
        t2 = t1
        t1 = t0
        t0 = t

    if HAS_BIAS:
        bias = gl.load(bias_ptr + c).to(gl.float32)
        a0 += bias
        a1 += bias
        a2 += bias
        a3 += bias
    out = gl.arange(0, 64, gl.SliceLayout(1, mma))
    image = gl.arange(0, IMAGES, gl.SliceLayout(0, mma))
    j = out % COLUMNS
    i = i0 + 4 * (out // COLUMNS)
    is_y = (j < WIDTH)[:, None] & (n0 + image < batch)[None, :]
    y_offset = (i * WIDTH + j)[:, None] + (image * (channels * PLANE))[None, :]
    y_ptrs = y_ptr + start + y_offset
    gl.store(y_ptrs, a0.to(DTYPE), mask=is_y & (i < HEIGHT)[:, None])
    gl.store(y_ptrs + WIDTH, a1.to(DTYPE), mask=is_y & (i + 1 < HEIGHT)[:, None])
    gl.store(y_ptrs + 2 * WIDTH, a2.to(DTYPE), mask=is_y & (i + 2 < HEIGHT)[:, None])
    gl.store(y_ptrs + 3 * WIDTH, a3.to(DTYPE), mask=is_y & (i + 3 < HEIGHT)[:, None])
